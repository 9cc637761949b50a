from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy, pad
from transformers import LlamaConfig, LlamaForCausalLM

from influcoder.error_pooling import STATISTICS, STATISTICS_WEIGHT, ErrorPooling
from influcoder.errors import RunError
from influcoder.influence.tokens import TokenizedRow, row_losses
from influcoder.influence.tokens import pad as pad_rows
from influcoder.sentence_encoder import load_sentence_encoder
from tests.influcoder.conftest import make_texts, save_causal_lm

WIDTH, VOCABULARY, RANK, LAYERS = 16, 40, 4, (0, 2)
MARKER = (5, 7)
ROWS = [
    [9, 5, 7, 11, 12, 13],
    [5, 7, 20, 5, 7, 21, 22],  # the last marker counts
    [10, 11, 12, 13, 14, 15, 16, 17, 18],  # none: all of it is a response
    [5, 7, 9],
    [7, 30, 31, 32, 5],  # the end is not followed by the beginning
    [8, 5, 5, 7, 7, 33, 34, 3, 1, 2, 39],
    [1, 2, 5, 3, 5, 7, 6],
]


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def lm(request: pytest.FixtureRequest) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=request.param,
        initializer_range=0.4,  # large enough to be sure of some tokens, and wrong
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: LlamaForCausalLM = LlamaForCausalLM(config).eval()
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == request.param
    return model


@torch.no_grad()
def make_pooling(lm: LlamaForCausalLM) -> ErrorPooling:
    """Return one whose every buffer is random, but for the output layer."""
    pooling = ErrorPooling(MARKER, LAYERS, RANK, WIDTH, VOCABULARY)
    source = torch.Generator().manual_seed(1)
    for values in pooling.buffers():
        values.copy_(torch.rand(values.shape, generator=source) + 0.1)
    pooling.output_weight.copy_(lm.lm_head.weight)
    return pooling


def pad_ids(rows: Sequence[Sequence[int]], filler: int, left: bool) -> tuple[Tensor, Tensor]:
    """Return ids and mask (B, T)."""
    length = max(map(len, rows))
    sizes = [(length - len(row), 0) if left else (0, length - len(row)) for row in rows]
    ids = torch.stack([pad(torch.tensor(row), size, value=filler) for row, size in zip(rows, sizes, strict=True)])
    return ids, torch.stack([pad(torch.ones(len(row), dtype=torch.long), size) for row, size in zip(rows, sizes, strict=True)])


@torch.no_grad()
def features_of(lm: LlamaForCausalLM, rows: Sequence[Sequence[int]], filler: int = 0, left: bool = False) -> dict[str, Any]:
    """Return what a Transformer that gives all its layers would."""
    ids, mask = pad_ids(rows, filler, left)
    states = lm.model(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states
    return {"input_ids": ids, "attention_mask": mask, "all_layer_embeddings": states}


def response_start(row: Sequence[int], marker: Sequence[int] = MARKER) -> int:
    """Return the first position whose token is predicted."""
    ends = [place + len(marker) for place in range(len(row)) if list(row[place : place + len(marker)]) == list(marker)]
    return max([1, *ends])


def losses_and_gradient(lm: LlamaForCausalLM, row: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return a row's token losses (R,), and the gradient (T, D) of their mean at its last states, alone in its batch."""
    with torch.no_grad():
        states = lm.model(input_ids=torch.tensor([row])).last_hidden_state[0]
    start = response_start(row)
    logits = lm.lm_head(states.requires_grad_())
    losses = cross_entropy(logits[start - 1 : -1], torch.tensor(row[start:]), reduction="none")
    (gradient,) = torch.autograd.grad(losses.mean(), states)
    return losses.detach(), gradient


def test_errors_are_the_gradient_of_the_mean_loss_at_the_last_states(lm: LlamaForCausalLM) -> None:
    pooling, features = make_pooling(lm), features_of(lm, ROWS)
    mean = pooling.raw(features)[:, :WIDTH]
    _, errors, _, weights = pooling.tokens(features)
    for place, row in enumerate(ROWS):
        gradient = losses_and_gradient(lm, row)[1]
        assert gradient.sum(0).norm() > 0.1
        np.testing.assert_allclose(mean[place], gradient.sum(0), atol=1e-5)
        weighted = errors[place] * weights[place, :, None]
        np.testing.assert_allclose(weighted[: len(row)], gradient, atol=1e-5)
        assert not weighted[len(row) :].any()


def test_losses_are_those_of_the_teacher_and_their_statistics_those_of_a_loop(lm: LlamaForCausalLM) -> None:
    pooling, features = make_pooling(lm), features_of(lm, ROWS)
    statistics = pooling.raw(features)[:, -STATISTICS:].numpy()
    batch = pad_rows([TokenizedRow(tuple(row), response_start(row)) for row in ROWS], 0, torch.device("cpu"))
    with torch.no_grad():
        np.testing.assert_allclose(statistics[:, 0], row_losses(lm, *batch), atol=1e-5)
    for row, found in zip(ROWS, statistics, strict=True):
        losses = losses_and_gradient(lm, row)[0].numpy()
        count = len(losses)
        expected = [losses.mean(), losses.max(), losses[0], losses.std(), 1 / count, np.log(count)]
        np.testing.assert_allclose(found, expected, atol=1.5e-3)  # the deviation of one loss is 0.001, not 0
        np.testing.assert_allclose(np.delete(found, 3), np.delete(expected, 3), atol=1e-5)


def test_products_and_states_equal_a_loop_over_positions(lm: LlamaForCausalLM) -> None:
    pooling = make_pooling(lm)
    raw = pooling.raw(features_of(lm, ROWS)).numpy()
    for row, found in zip(ROWS, raw, strict=True):
        states = [layer[0].numpy() for layer in features_of(lm, [row])["all_layer_embeddings"]]
        gradient = losses_and_gradient(lm, row)[1].numpy()
        places = range(response_start(row) - 1, len(row) - 1)
        expected = [gradient.sum(0), np.mean([states[-1][place] for place in places], axis=0)]
        for layer, axes in zip(LAYERS, pooling.state_axes.numpy(), strict=True):
            product = np.zeros((RANK, RANK))
            for place in places:
                unit = states[layer][place] / np.sqrt((states[layer][place] ** 2).mean())
                product += np.outer(axes.T @ unit, pooling.error_axes.numpy().T @ gradient[place])
            expected.append(product.flatten())
        np.testing.assert_allclose(found[:-STATISTICS], np.concatenate(expected), rtol=2e-5, atol=1e-5)


def test_the_embedding_is_each_part_centred_and_of_length_one(lm: LlamaForCausalLM) -> None:
    pooling, features = make_pooling(lm), features_of(lm, ROWS)
    embeddings = pooling(dict(features))["sentence_embedding"].numpy()
    assert embeddings.shape == (len(ROWS), pooling.get_embedding_dimension())
    for found, raw in zip(embeddings, pooling.raw(features).numpy(), strict=True):
        parts = np.split(raw - pooling.centre.numpy(), np.cumsum([WIDTH, WIDTH, RANK**2, RANK**2]))
        expected = [part / np.linalg.norm(part) for part in parts[:-1]]
        expected.append(STATISTICS_WEIGHT * parts[-1] / pooling.spread.numpy())
        np.testing.assert_allclose(found, np.concatenate(expected), atol=1e-6)


@pytest.mark.parametrize(("filler", "left"), [(0, False), (5, False), (7, False), (0, True)])
def test_padding_and_batch_mates_change_nothing(lm: LlamaForCausalLM, filler: int, left: bool) -> None:
    pooling = make_pooling(lm)
    together = pooling(features_of(lm, ROWS, filler, left))["sentence_embedding"]
    alone = torch.cat([pooling(features_of(lm, [row]))["sentence_embedding"] for row in ROWS])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    assert (together[0] - together[1]).abs().max() > 0.1


texts = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=9), min_size=1, max_size=4)


@given(texts, st.lists(st.integers(0, 2), min_size=1, max_size=3), st.integers(0, 3), st.booleans())
def test_the_response_begins_after_the_last_marker(rows: list[list[int]], marker: list[int], filler: int, left: bool) -> None:
    ids, mask = pad_ids(rows, 3 if left else filler, left)
    pooling = ErrorPooling(marker, [0], 1, 2, 4)
    features = {"input_ids": ids, "attention_mask": mask, "all_layer_embeddings": [torch.zeros(*ids.shape, 2)]}
    weights = pooling.tokens(features)[3]
    for row, found in zip(rows, weights, strict=True):
        places = range(response_start(row, marker) - 1, len(row) - 1)
        begin = ids.shape[1] - len(row) if left else 0
        expected = np.zeros(ids.shape[1])
        expected[[begin + place for place in places]] = 1 / max(1, len(places))
        np.testing.assert_allclose(found, expected, atol=1e-6)
    assert torch.isfinite(pooling(features)["sentence_embedding"]).all()  # of a text without a response too


def test_a_graph_pools_every_position_to_the_same_end(lm: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    pooling, features = make_pooling(lm), features_of(lm, ROWS)
    seen: list[int] = []
    errors = pooling._errors

    def count(last: Tensor, following: Tensor) -> tuple[Tensor, Tensor]:
        seen.append(len(last))
        return errors(last, following)

    monkeypatch.setattr(pooling, "_errors", count)
    eager = pooling(dict(features))["sentence_embedding"]
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
    np.testing.assert_allclose(pooling(dict(features))["sentence_embedding"], eager, atol=1e-6)
    assert seen == [sum(len(row) - response_start(row) for row in ROWS), features["input_ids"].numel()]


def embed(encoder: Any, texts: list[str]) -> NDArray[np.float32]:
    found: NDArray[np.float32] = encoder.encode(texts, show_progress_bar=False)
    return found


def test_an_encoder_comes_back_from_its_folder(tmp_path: Path) -> None:
    made = save_causal_lm(tmp_path)
    texts = [f"<user>{text}<assistant>so {text}<eos>" for text in make_texts(12)]
    loaded = load_sentence_encoder(tmp_path)
    np.testing.assert_array_equal(embed(loaded, texts), embed(made, texts))
    assert np.ptp(embed(loaded, texts), axis=0).max() > 0.1
    assert [type(module) for module in loaded] == [type(module) for module in made]
    assert loaded.max_seq_length == made.max_seq_length == 48
    for name, values in made[1].named_buffers():
        assert torch.equal(loaded[1].get_buffer(name), values)


def test_any_other_folder_is_read_as_sentence_transformers_does(bert_folder: Path) -> None:
    assert [type(module).__name__ for module in load_sentence_encoder(bert_folder)] == ["Transformer", "Pooling"]


@pytest.mark.parametrize("name", ["evil.Evil", "influcoder.evil.Evil", "influcoder.errors.RunError", "torch.nn.Linear"])
def test_a_module_that_is_not_ours_is_refused_and_nothing_of_the_folder_runs(
    causal_lm_folder: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (causal_lm_folder / "evil.py").write_text("import pathlib\npathlib.Path('ran').touch()\nclass Evil: ...\n")
    path = causal_lm_folder / "modules.json"
    modules = json.loads(path.read_text())
    modules.append({"idx": 4, "name": "4", "path": "", "type": name})
    path.write_text(json.dumps(modules))
    monkeypatch.chdir(causal_lm_folder)
    monkeypatch.syspath_prepend(causal_lm_folder)  # it could be imported
    with pytest.raises(RunError, match=rf"modules\.json: module '{name}'; expected only .*ErrorPooling.*; use the influcoder") as caught:
        load_sentence_encoder(causal_lm_folder)
    assert "\n" not in str(caught.value)
    assert not Path("ran").exists() and not {"evil", "influcoder.evil"} & sys.modules.keys()
    importlib.import_module("evil")
    assert Path("ran").exists(), "the test can tell"
    del sys.modules["evil"]
