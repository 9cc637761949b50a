from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from eval.floors import bm25_scores, decoder_scores, length_scores, random_scores
from eval.judged import Fold, Judged
from influcoder.examples import Example, Turn
from influcoder.influence.decoder import Decoder
from influcoder.influence.tokens import tokenize
from tests.eval.fake_runs import make_decoder


def row(name: str, prompt: str, response: str) -> Example:
    return Example(id=name, context=(Turn(role="user", content=prompt),), response=response)


ROWS = (
    row("a", "What is the sum of 7 and 2?", "The sum is 9"),
    row("b", "Name a sea", "The North Sea"),
    row("c", "the the the", "a an the"),
    row("d", "Add 7 to 4", "It is 11"),
    row("e", "Zebra", "Stripes"),
)
FOLDS = (Fold(queries=np.array([0, 1]), candidates=np.array([2, 3, 4])),)
JUDGED = Judged(rows=ROWS, folds=FOLDS, task_queries=(row("q", "the 7", "seven"), row("none", "Quux", "quuux")))


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    return make_decoder(ROWS)


def lucene(query: list[str], document: list[str], corpus: list[list[str]]) -> float:
    """Return BM25 as Lucene defines it, one term at a time."""
    average, total = sum(map(len, corpus)) / len(corpus), 0.0
    for word in query:
        containing = sum(word in other for other in corpus)
        idf = math.log(1 + (len(corpus) - containing + 0.5) / (containing + 0.5))
        count = document.count(word)
        total += idf * count / (count + 1.5 * (1 - 0.75 + 0.75 * len(document) / average))
    return total


def test_bm25_equals_a_loop_over_words_with_stop_words_and_digits_kept() -> None:
    corpus = [f"{row.prompt} {row.response}".lower().replace("?", "").split() for row in ROWS]
    scores = bm25_scores(JUDGED)
    asked = [*corpus[:2], ["the", "7", "seven"], ["quux", "quuux"]]  # fidelity queries first
    expected = [[lucene(query, document, corpus) for document in corpus] for query in asked]
    assert scores.asked.shape == (1, 4, 5) and scores.own is None
    np.testing.assert_allclose(scores.asked[0], expected, rtol=1e-5)


def test_bm25_of_responses_looks_at_nothing_else() -> None:
    corpus = [row.response.lower().split() for row in ROWS]
    scores = bm25_scores(JUDGED, response_only=True)
    expected = [[lucene(query, document, corpus) for document in corpus] for query in (*corpus[:2], ["seven"], ["quuux"])]
    np.testing.assert_allclose(scores.asked[0], expected, rtol=1e-5)


def test_bm25_scores_every_row_those_without_a_common_word_by_zero() -> None:
    (scores,) = bm25_scores(JUDGED).asked
    assert scores[1, 4] == 0
    assert (scores[3] == 0).all(), "a query of unknown words"


def test_length_is_that_of_the_response_and_the_same_for_every_query() -> None:
    scores = length_scores(JUDGED)
    assert scores.asked.tolist() == [[[12, 13, 8, 8, 7]] * 4]
    assert scores.own is not None and scores.own.tolist() == [[12, 13, 8, 8, 7]]


def test_random_is_seeded_and_differs_between_queries() -> None:
    first, again, other = (random_scores(JUDGED, seed) for seed in (0, 0, 1))
    assert first.own is not None and again.own is not None and other.own is not None
    assert (first.asked == again.asked).all() and not (first.asked == other.asked).any()
    assert (first.own == again.own).all() and not (first.own == other.own).any()
    assert not (first.asked[0, 0] == first.asked[0, 1]).any()


def test_loss_equals_a_loop_over_rows_and_tokens(decoder: Decoder) -> None:
    scores = decoder_scores(lambda: decoder, JUDGED)["loss"]
    expected = []
    for tokens in tokenize(ROWS, decoder):
        ids = torch.tensor(tokens.input_ids)
        with torch.no_grad():
            log_chances = decoder.model.eval()(ids[None]).logits[0].log_softmax(-1)
        losses = [-float(log_chances[place - 1, ids[place]]) for place in range(tokens.response_start, len(ids))]
        expected.append(np.mean(losses))
    assert scores.own is not None and scores.asked.shape == (1, 4, 5)
    np.testing.assert_allclose(scores.own, [expected], rtol=1e-5)
    assert (scores.asked == scores.own).all(), "every query gets the same scores"


def test_representations_are_compared_by_their_cosine(decoder: Decoder) -> None:
    found = decoder_scores(lambda: decoder, JUDGED)
    lasts, means = [], []
    for tokens in tokenize([*ROWS, *JUDGED.task_queries], decoder):
        with torch.no_grad():
            states = decoder.model.eval()(torch.tensor([tokens.input_ids]), output_hidden_states=True).hidden_states[-1][0]
        lasts.append(states[-1].numpy())
        means.append(states.mean(0).numpy())
    for name, states in (("rep_sim", np.array(lasts)), ("rep_sim_mean", np.array(means))):
        unit = states / np.linalg.norm(states, axis=1, keepdims=True)
        np.testing.assert_allclose(found[name].asked, (unit[[0, 1, 5, 6]] @ unit[:5].T)[None], atol=1e-5)
        assert found[name].own is None


def test_the_decoder_is_loaded_once_and_every_floor_says_what_it_costs(decoder: Decoder) -> None:
    loads: list[Decoder] = []
    found = decoder_scores(lambda: loads.append(decoder) or decoder, JUDGED)  # type: ignore[func-returns-value]
    assert len(loads) == 1 and list(found) == ["rep_sim", "rep_sim_mean", "loss"]
    costs = {name: scores.cost for name, scores in found.items()}
    costs |= {"bm25": bm25_scores(JUDGED).cost, "length": length_scores(JUDGED).cost, "random": random_scores(JUDGED, 0).cost}
    bytes_per_row = {name: cost.bytes_per_row for name, cost in costs.items() if cost is not None}
    assert bytes_per_row.pop("bm25") > 4
    assert bytes_per_row == {"rep_sim": 64, "rep_sim_mean": 64, "loss": 4, "length": 8, "random": 0}
    timed = {name for name, cost in costs.items() if cost is not None and cost.seconds_per_1000 > 0}
    assert timed == {"rep_sim", "rep_sim_mean", "loss", "bm25"}


@pytest.mark.parametrize("method", [bm25_scores, length_scores])
def test_without_a_task_the_fidelity_queries_alone_ask(method: object) -> None:
    assert callable(method)
    assert method(Judged(rows=ROWS, folds=FOLDS)).asked.shape == (1, 2, 5)
