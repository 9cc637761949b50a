"""Factors in a folder: the same as those in memory; a fit that is stopped anywhere goes on and ends with the same bytes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from influcoder.errors import RunError
from influcoder.influence.capture import gradient_layers
from influcoder.influence.checked_tensors import commit_tensors, is_committed, read_tensors, remove_tensors
from influcoder.influence.ekfac import Batches, PseudoBatch, factor_bytes, fit_ekfac
from influcoder.influence.ekfac_decoder import Draws, decoder_batches, fit_decoder_ekfac
from influcoder.influence.ekfac_files import fit_ekfac_into, load_ekfac
from influcoder.influence.pseudo_gradients import output_batches, softmax_cotangents
from influcoder.influence.tokens import tokenize
from tests.influcoder.tiny_decoders import ROWS, fresh_decoder

torch.manual_seed(0)
MODEL = nn.Sequential(nn.Linear(6, 5, bias=False), nn.Tanh(), nn.Linear(5, 4, bias=False), nn.Tanh(), nn.Linear(4, 3, bias=False))
LAYERS = gradient_layers(MODEL)
INPUTS = torch.randn(12, 6, generator=torch.Generator().manual_seed(1))
GROUPED = factor_bytes(LAYERS["0"]) + factor_bytes(LAYERS["2"])
"""bytes with which the first two layers are one group and the third another"""


class Killed(Exception):
    pass


def batches(stop_after: int | None = None) -> Batches:
    """Return three batches of four rows; the `stop_after`-th batch of all passes does not come."""
    whole, given = output_batches(MODEL, INPUTS, softmax_cotangents, 4), 0

    def stopping(step: int) -> Iterator[PseudoBatch]:
        nonlocal given
        for batch in whole(step):
            if given == stop_after:
                raise Killed
            given += 1
            yield batch

    return stopping


def fit(folder: Path, stop_after: int | None = None, of: str = "a", **settings: object) -> None:
    fit_ekfac_into(folder, LAYERS, batches(stop_after), of=of, num_rows=12, max_bytes=GROUPED, **settings)  # type: ignore[arg-type]


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_what_is_read_is_what_is_fitted_in_memory(tmp_path: Path) -> None:
    fit(tmp_path)
    expected, found = fit_ekfac(LAYERS, batches()), load_ekfac(tmp_path, LAYERS)
    assert list(found) == list(expected) == ["0", "2", "4"]
    for name, factors in expected.items():
        for side in ("inputs", "outputs", "values"):
            assert torch.equal(getattr(found[name], side), getattr(factors, side)), (name, side)
    assert sorted(content(tmp_path)) == [f"group-00{number}.{kind}" for number in (0, 1) for kind in ("json", "safetensors")]
    assert list(load_ekfac(tmp_path, {"2": LAYERS["2"]})) == ["2"]


def test_a_fit_that_was_stopped_goes_on_and_ends_with_the_same_bytes(tmp_path: Path) -> None:
    """Two passes of three batches a group: each place to stop, and how many batches are then left."""
    fit(tmp_path / "whole")
    for stop, left in ((0, 12), (2, 12), (3, 9), (5, 9), (6, 6), (7, 6), (9, 3), (11, 3)):
        folder = tmp_path / str(stop)
        with pytest.raises(Killed):
            fit(folder, stop)
        shutil.copytree(folder, copy := tmp_path / f"{stop} again")
        with pytest.raises(Killed):
            fit(copy, left - 1)
        fit(folder, left)
        assert content(folder) == content(tmp_path / "whole")
        fit(folder, 0)  # nothing is left to do


def test_groups_are_shared_among_processes(tmp_path: Path) -> None:
    fit(tmp_path / "whole")
    for number in (1, 0):
        fit(tmp_path / "shared", takes=lambda group, number=number: group == number)
        if number:
            with pytest.raises(RunError, match=r"shared: factors of layer '0' have shapes \[None, None, None\]; expected those of 5 x 6"):
                load_ekfac(tmp_path / "shared", LAYERS)
    assert content(tmp_path / "shared") == content(tmp_path / "whole")


@pytest.mark.parametrize("name", ["group-000.safetensors", "group-001.safetensors"])
def test_a_changed_file_is_refused_by_name(name: str, tmp_path: Path) -> None:
    fit(tmp_path)
    path = tmp_path / name
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(bytes(raw))
    for use in (lambda: load_ekfac(tmp_path, LAYERS), lambda: fit(tmp_path)):
        with pytest.raises(RunError, match=rf"{name}: checksum .*; it was changed; remove it") as caught:
            use()
        assert "\n" not in str(caught.value)
    path.unlink()
    with pytest.raises(RunError, match=rf"{name}: missing or not committed"):
        load_ekfac(tmp_path, LAYERS)


def test_factors_of_something_else_are_refused(tmp_path: Path) -> None:
    fit(tmp_path)
    with pytest.raises(RunError, match=r"group-000.safetensors: of a, expected b; it belongs to another job; remove"):
        fit(tmp_path, of="b")
    with pytest.raises(Killed):
        fit(tmp_path / "begun", 4)
    with pytest.raises(RunError, match=r"group-000-vectors.safetensors: of a, expected b"):
        fit(tmp_path / "begun", of="b")
    other = gradient_layers(nn.Sequential(nn.Linear(5, 6, bias=False)))
    with pytest.raises(RunError, match=r"factors of layer '0' have shapes .*; expected those of 6 x 5 weights; fit them again"):
        load_ekfac(tmp_path, other)


def test_tensors_count_only_with_their_record(tmp_path: Path) -> None:
    path = tmp_path / "some.safetensors"
    tensors = {"b": torch.arange(3.0), "a": torch.ones(2, 2).T}
    commit_tensors(path, tensors, "x")
    assert is_committed(path, "x") and list(read_tensors(path)) == ["a", "b"] and torch.equal(read_tensors(path, "x")["b"], tensors["b"])
    assert json.loads(path.with_suffix(".json").read_text())["of"] == "x"
    path.with_suffix(".json").unlink()
    assert not is_committed(path, "x")
    with pytest.raises(RunError, match="missing or not committed"):
        read_tensors(path)
    commit_tensors(path, tensors, "x")
    remove_tensors(path)
    assert not list(tmp_path.iterdir())
    with pytest.raises(RunError, match="cannot be written"):
        commit_tensors(tmp_path / "none" / "some.safetensors", tensors, "x")


@pytest.mark.parametrize("changed", ["draws", "seed", "rows", "decoder"])
def test_a_decoders_factors_are_of_its_weights_rows_and_draws(changed: str, tmp_path: Path) -> None:
    decoder = fresh_decoder()
    layers, rows = gradient_layers(decoder.model), tokenize(ROWS, decoder)
    fit_decoder_ekfac(decoder, layers, rows, tmp_path, Draws(), 64)
    found, expected = load_ekfac(tmp_path, layers), fit_ekfac(layers, decoder_batches(decoder, rows, Draws(), 64))
    assert all(torch.equal(found[name].values, expected[name].values) for name in layers)
    before = content(tmp_path)
    fit_decoder_ekfac(decoder, layers, rows, tmp_path, Draws(), 1000)
    assert content(tmp_path) == before, "they were fitted anew"
    draws = {"draws": Draws(count=3), "seed": Draws(seed=1)}.get(changed, Draws())
    other = fresh_decoder(seed=5) if changed == "decoder" else decoder
    with pytest.raises(RunError, match="belongs to another job"):
        fit_decoder_ekfac(other, gradient_layers(other.model), rows[::-1] if changed == "rows" else rows, tmp_path, draws, 64)
