"""The teacher's benchmark measures what it says: its slow loop gives the features of the fast pass."""

from __future__ import annotations

import argparse
import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import teacher
from influcoder.examples import Example
from influcoder.influence.decoder import Decoder, FreshDecoder, make_fresh_decoder
from influcoder.influence.tokens import TokenizedRow, tokenize

RANK, TOKENS = 4, 256
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft 0.21 asks for it


@pytest.fixture
def decoder(tiny_rows: list[Example]) -> Decoder:
    return make_fresh_decoder(FreshDecoder(hidden_size=16, layers=2, heads=2, intermediate_size=24, vocab_size=300), tiny_rows, 0)


@pytest.fixture
def rows(tiny_rows: list[Example], decoder: Decoder) -> list[TokenizedRow]:
    return tokenize(tiny_rows, decoder)


@pytest.fixture(autouse=True)
def small_configs(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"rank": RANK, "dim": 64}
    monkeypatch.setattr(teacher, "CONFIGS", {"default": settings, "random factors": settings | {"factors": "random"}})


@pytest.mark.parametrize("name", ["default", "random factors"])
def test_the_loop_over_single_rows_gives_the_same_features(name: str, decoder: Decoder, rows: list[TokenizedRow]) -> None:
    projector = teacher.make_projector(decoder, name, rows, TOKENS)
    alone = teacher.single_rows(replace(decoder, model=copy.deepcopy(decoder.model)), projector)(rows)
    torch.testing.assert_close(alone, projector.project(rows)[0], rtol=1e-4, atol=1e-6)


def test_training_moves_the_adapter_alone(decoder: Decoder, rows: list[TokenizedRow]) -> None:
    before = {name: tensor.clone() for name, tensor in decoder.model.state_dict().items()}
    teacher.train_lora(decoder, TOKENS)(rows)
    after = {name.replace(".base_layer", ""): tensor for name, tensor in decoder.model.state_dict().items()}
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert any(bool(tensor.any()) for name, tensor in after.items() if ".lora_B." in name)


def test_speeds_and_peaks_are_published(
    decoder: Decoder, rows: list[TokenizedRow], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = argparse.Namespace(repeats=2, peers=None, tokens=TOKENS)
    speed = teacher.measure_speed(decoder, rows, options, tmp_path)
    assert {name: len(values) for name, values in speed.items()} == dict.fromkeys(["lora training", *teacher.CONFIGS, "single rows"], 2)
    monkeypatch.setattr(teacher, "RESULT", tmp_path / "speed.json")
    teacher.publish(decoder, speed, {"lora training": {"5": 200}, "default": {"5": 100, "10": 300}}, {"rows": 5})
    written = json.loads((tmp_path / "speed.json").read_text())
    assert written["speed_to_training"]["lora training"] == 1 and written["memory_to_training"]["default"] == 1.5
    assert "single rows" in capsys.readouterr().out


def interpreter(folder: Path, script: str) -> str:
    python = folder / "python"
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)
    return str(python)


def test_peers_read_the_rows_and_say_their_speed(decoder: Decoder, rows: list[TokenizedRow], tmp_path: Path) -> None:
    python = interpreter(tmp_path, "echo TOKENS_PER_SECOND 7.5")
    speeds = {name: run(rows) for name, run in teacher.peers(python, decoder, 64, TOKENS, tmp_path).items()}
    assert speeds == {"bergson build": 7.5, "dattri-llm": 7.5}
    written = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    read = [TokenizedRow(tuple(row["input_ids"]), row["labels"].count(-100)) for row in written]
    assert read == rows


def test_a_peer_that_fails_is_named(decoder: Decoder, rows: list[TokenizedRow], tmp_path: Path) -> None:
    python = interpreter(tmp_path, "echo no such module >&2; exit 1")
    with pytest.raises(SystemExit, match="dattri-llm failed:\nno such module"):
        teacher.peers(python, decoder, 64, TOKENS, tmp_path)["dattri-llm"](rows)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from Linux's /proc")
def test_the_peak_holds_what_the_pass_allocates(decoder: Decoder, rows: list[TokenizedRow], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teacher, "project", lambda projector: lambda rows: torch.ones(25_000_000).sum())
    peak = teacher.peak_bytes(decoder, rows, "default", TOKENS)
    assert 95e6 < peak < 300e6
