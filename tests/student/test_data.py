from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import BoW

from student.config import RecipeConfig
from student.coordinates import principal_coordinates
from student.data import Block, DistillationData, Pairs, Tokens, plan_epoch

FULL = RecipeConfig(block_rows=8)
REFERENCE = RecipeConfig(objective="reference", num_queries=3, num_candidates=5)


@pytest.mark.parametrize("recipe", [FULL, REFERENCE])
@pytest.mark.parametrize("num_asking", [None, 9])
def test_a_plan_depends_on_seed_and_epoch_alone(recipe: RecipeConfig, num_asking: int | None) -> None:
    def flat(seed: int, epoch: int) -> list[int]:
        return [int(place) for block in plan_epoch(num_asking, 40, recipe, seed, epoch) for side in block for place in side]

    np.random.seed(1)
    first = flat(0, 2)
    np.random.seed(2)
    assert flat(0, 2) == first
    assert flat(0, 3) != first != flat(1, 2)


@pytest.mark.parametrize(("num_rows", "size"), [(40, 8), (43, 8), (8, 8), (6, 6)])
def test_full_blocks_hold_a_row_at_most_once_an_epoch_and_every_row_in_time(num_rows: int, size: int) -> None:
    seen: set[int] = set()
    for epoch in range(6):
        plan = plan_epoch(None, num_rows, FULL, 0, epoch)
        rows = [int(row) for found, _ in plan for row in found]
        assert len(rows) == len(set(rows)) == num_rows - num_rows % size
        assert all(len(asked) == size and asked is ranked for asked, ranked in plan)
        seen |= set(rows)
    assert seen == set(range(num_rows))


def test_reference_blocks_keep_queries_and_candidates_apart() -> None:
    plan = plan_epoch(None, 12, REFERENCE, 0, 0)
    assert sorted(int(row) for asked, _ in plan for row in asked) == list(range(12))
    for asked, ranked in plan:
        assert (len(asked), len(ranked), len({*asked.tolist(), *ranked.tolist()})) == (3, 5, 8)


def test_few_rows_still_make_a_reference_block() -> None:
    ((asked, ranked), *_) = plan_epoch(None, 6, RecipeConfig(objective="reference"), 0, 0)
    assert (len(asked), len(ranked)) == (3, 3)


@pytest.mark.parametrize(
    ("num_asking", "num_rows", "recipe", "shape", "blocks"),
    [
        (6, 40, FULL, (4, 4), 10),  # half of a block asks; the rows decide how long an epoch is
        (40, 6, FULL, (4, 4), 10),  # or the queries, where these are more
        (6, 40, RecipeConfig(block_rows=64), (6, 40), 1),  # all there are, and the block's rest are rows
        (6, 43, REFERENCE, (3, 5), 8),
        (2, 3, REFERENCE, (2, 3), 1),
    ],
)
def test_queries_meet_rows_until_both_have_been_seen(
    num_asking: int, num_rows: int, recipe: RecipeConfig, shape: tuple[int, int], blocks: int
) -> None:
    plan = plan_epoch(num_asking, num_rows, recipe, 0, 0)
    assert len(plan) == blocks
    for side, size, total in zip((0, 1), shape, (num_asking, num_rows), strict=True):
        lots = [block[side].tolist() for block in plan]
        assert all(len(lot) == len(set(lot)) == size for lot in lots)  # nothing twice in a block
        assert {place for lot in lots for place in lot} <= set(range(total))
        assert len({place for lot in lots for place in lot}) >= total - total % size  # all but a remainder, another one every time
    everything = {int(row) for epoch in range(8) for _, ranked in plan_epoch(num_asking, num_rows, recipe, 0, epoch) for row in ranked}
    assert everything == set(range(num_rows))


@pytest.mark.parametrize("rows_ask", [True, False])
@pytest.mark.parametrize("recipe", [FULL, REFERENCE])
def test_targets_are_products_of_the_vectors_of_what_is_tokenised(recipe: RecipeConfig, rows_ask: bool) -> None:
    random = np.random.default_rng(0)
    askers = [str(row) for row in range(24)] if rows_ask else [f"q{query}" for query in range(7)]
    asking, features = (random.normal(size=(size, 4)).astype(np.float32) for size in (len(askers), 24))
    asked: list[list[str]] = []

    def tokenize(texts: list[str]) -> Tokens:
        asked.append(texts)
        return {"input_ids": torch.zeros(len(texts), 1)}

    pairs = Pairs(askers, asking, [str(row) for row in range(24)], features, rows_ask)
    assert pairs.every_text == ([] if rows_ask else askers) + pairs.texts
    blocks: list[Block] = list(DistillationData(pairs, tokenize, recipe, seed=3).train_dataloader())
    assert len(blocks) == len(asked) > 1
    for block, texts in zip(blocks, asked, strict=True):
        queries, candidates = ([texts[place] for place in side] for side in (block.queries, block.candidates))
        expected = [[asking[askers.index(query)] @ features[int(row)] for row in candidates] for query in queries]
        np.testing.assert_allclose(block.target.numpy(), expected, rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(block.mask.numpy(), [[query != row for row in candidates] for query in queries])
        assert (block.mask.sum() < block.mask.numel()) == (recipe is FULL and rows_ask)  # only then has a block a row beside itself
        assert len(texts) == len(set(texts)) == len({*queries, *candidates})  # each is encoded once


def drawn_pairs(rows_ask: bool) -> Pairs:
    """Return rows, or 7 queries and rows, whose texts are their places."""
    rows, askers = [str(row) for row in range(24)], [f"q{query}" for query in range(7)]
    random = np.random.default_rng(1)
    asking, features = (random.normal(size=(len(side), 4)).astype(np.float32) for side in (rows if rows_ask else askers, rows))
    return Pairs(rows if rows_ask else askers, asking, rows, features, rows_ask)


def no_tokens(texts: list[str]) -> Tokens:
    return {}


@pytest.mark.parametrize("rows_ask", [True, False])
def test_a_second_seeds_scores_lie_beside_the_firsts(rows_ask: bool) -> None:
    pairs = drawn_pairs(rows_ask)
    second = replace(pairs, asking=pairs.asking + 1, features=2 * pairs.features)
    blocks = DistillationData(replace(pairs, second_seed=second), no_tokens, FULL, seed=0).train_dataloader()
    alone = [list(DistillationData(each, no_tokens, FULL, seed=0).train_dataloader()) for each in (pairs, second)]
    for block, first, other in zip(blocks, *alone, strict=True):
        assert torch.equal(block.target, first.target) and first.second_target is None
        assert block.second_target is not None and torch.equal(block.second_target, other.target)


@pytest.mark.parametrize("rows_ask", [True, False])
@pytest.mark.parametrize(("name", "width"), [("cka", 3), ("coordinates", 3), ("rank_net", 0)])
def test_candidates_bring_coordinates_as_wide_as_the_encoder_where_a_loss_asks(name: str, width: int, rows_ask: bool) -> None:
    pairs, texts = drawn_pairs(rows_ask), []

    def tokenize(given: list[str]) -> Tokens:
        texts.append(given)
        return {}

    data = DistillationData(pairs, tokenize, replace(FULL, losses={name: 1.0}), seed=0)
    trained = SimpleNamespace(encoder=SentenceTransformer(modules=[BoW(["bark", "dutt", "kish"])], device="cpu"))
    loop = SimpleNamespace(batch_idx=-1)
    data.trainer = SimpleNamespace(lightning_module=trained, current_epoch=0, fit_loop=loop)  # type: ignore[assignment]
    data.setup("fit")
    expected = principal_coordinates(pairs.targets, width).coordinates
    blocks = list(data.train_dataloader())
    assert len(blocks) == len(texts) > 1
    for block, given in zip(blocks, texts, strict=True):
        assert torch.equal(block.coordinates, expected[[int(given[place]) for place in block.candidates]])


def test_where_rows_ask_the_target_of_a_row_is_the_mean_of_its_two_vectors() -> None:
    pairs = drawn_pairs(rows_ask=True)
    pairs = replace(pairs, asking=pairs.asking * 50)  # the product's scale says nothing of either side's
    lengths = [np.sqrt(sum(float(x) ** 2 for x in side.ravel())) for side in (pairs.asking, pairs.features)]
    expected = [
        [(a * lengths[1] / lengths[0] + f) / 2 for a, f in zip(*pair, strict=True)]
        for pair in zip(pairs.asking, pairs.features, strict=True)
    ]
    assert np.abs(np.array(expected) - pairs.features).max() > 0.1
    np.testing.assert_allclose(pairs.targets, expected, rtol=1e-5, atol=1e-6)
    before = pairs.features.copy(), pairs.asking.copy()
    symmetric = replace(pairs, asking=pairs.features.copy())
    np.testing.assert_array_equal(symmetric.targets, pairs.features)  # to the last bit: nothing changes for a symmetric teacher
    asked = drawn_pairs(rows_ask=False)
    np.testing.assert_array_equal(asked.targets, asked.features)
    np.testing.assert_array_equal(pairs.features, before[0])
    np.testing.assert_array_equal(pairs.asking, before[1])
