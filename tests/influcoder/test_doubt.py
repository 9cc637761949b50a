from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from influcoder.attribution import AttributionConfig, attribute
from influcoder.doubt import is_of, warn
from influcoder.errors import ConfigError, RunError
from influcoder.influence.decoder import DecoderConfig, fingerprint_model, load_decoder
from influcoder.readers import DataSource
from influcoder.runs import open_run
from tests.influcoder.test_attribution import make_rows, write_jsonl
from tests.influcoder.tiny_decoders import fresh_decoder, trained_adapter

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")  # PEFT's own
OURS, OTHER = "0123456789abcdef", "fedcba9876543210"


@pytest.fixture
def encoder(tmp_path: Path) -> Path:
    folder = tmp_path / "encoder"
    folder.mkdir()
    (folder / "fidelity.json").write_text(json.dumps({"decoder_fingerprint": OURS, "teacher_method": "logra"}))
    return folder


def teacher_run(folder: Path, fingerprint: str) -> Path:
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps({"stage": "teacher", "schema_version": 1, "decoder_fingerprint": fingerprint}))
    return folder


def test_a_checkpoint_is_named_by_fingerprint_or_by_a_teacher_run(
    encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ours, other = teacher_run(tmp_path / "ours", OURS), teacher_run(tmp_path / "other", OTHER)
    for checkpoint in (OURS, str(ours)):
        assert warn(encoder, checkpoint, None) == [] and capsys.readouterr().err == ""
    for checkpoint in (OTHER, str(other)):
        (line,) = warn(encoder, checkpoint, None)
        assert f"imitates the decoder of fingerprint {OURS}, and not {checkpoint}" in line
        assert capsys.readouterr().err == f"warning: {line}\n"
    with pytest.raises(RunError, match="expected stage 'teacher'"):
        (other / "run.json").write_text(json.dumps({"stage": "student", "schema_version": 1}))
        warn(encoder, str(other), None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_folder_is_known_by_its_weights_however_the_teacher_loaded_it(dtype: torch.dtype, tmp_path: Path) -> None:
    decoder = fresh_decoder()
    for folder, seed in (("model", 0), ("other", 1)):
        (decoder if not seed else fresh_decoder(seed)).model.save_pretrained(tmp_path / folder)
        decoder.tokenizer.save_pretrained(tmp_path / folder)
    name = "float32" if dtype == torch.float32 else "bfloat16"
    loaded = load_decoder(DecoderConfig(path=str(tmp_path / "model"), dtype=name, device="cpu"), [], 0)  # type: ignore[arg-type]
    fingerprint = fingerprint_model(loaded.model)
    assert is_of(str(tmp_path / "model"), fingerprint) and not is_of(str(tmp_path / "other"), fingerprint)
    with pytest.raises(ConfigError, match="cannot be loaded"):
        is_of(str(tmp_path / "nowhere"), fingerprint)


def test_an_adapter_is_known_with_what_it_is_on(tmp_path: Path) -> None:
    decoder = fresh_decoder()
    decoder.model.save_pretrained(tmp_path / "model")
    decoder.tokenizer.save_pretrained(tmp_path / "model")
    adapted = trained_adapter(load_decoder(DecoderConfig(path=str(tmp_path / "model"), device="cpu"), [], 0))
    adapted.model.save_pretrained(tmp_path / "adapter")
    config = DecoderConfig(path=str(tmp_path / "model"), adapter=str(tmp_path / "adapter"), device="cpu")
    fingerprint = fingerprint_model(load_decoder(config, [], 0).model)
    assert is_of(str(tmp_path / "adapter"), fingerprint) and not is_of(str(tmp_path / "model"), fingerprint)


def test_a_second_stage_of_another_ranking_is_said(encoder: Path, tmp_path: Path) -> None:
    teacher: dict[str, Any] = {"teacher": "runs/t", "decoder_fingerprint": OURS, "method": "logra"}
    assert warn(encoder, None, teacher) == [] == warn(encoder, OURS, teacher)
    (line,) = warn(encoder, None, teacher | {"method": "ekfac"})
    assert f"imitates logra of decoder {OURS}, and runs/t is ekfac of {OURS}: topk.parquet speaks of the second" in line
    lines = warn(encoder, OURS, teacher | {"decoder_fingerprint": OTHER})
    assert len(lines) == 2 and f"runs/t: of the decoder of fingerprint {OTHER}, and not of {OURS}" in lines[0]
    lines = warn(encoder, OTHER, teacher | {"decoder_fingerprint": OTHER})  # the remedy: only the short-list speaks of another
    assert len(lines) == 2 and f"imitates the decoder of fingerprint {OURS}, and not {OTHER}" in lines[0]


def test_an_encoder_that_says_nothing_of_its_teacher(encoder: Path) -> None:
    (encoder / "fidelity.json").write_text(json.dumps({"validation": {}}))
    assert warn(encoder, None, None) == []
    assert "does not say which decoder it imitates" in warn(encoder, OURS, None)[0]
    assert (
        "does not say whose ranking it imitates" in warn(encoder, None, {"teacher": "t", "decoder_fingerprint": OURS, "method": "less"})[0]
    )
    (encoder / "fidelity.json").write_text("{")
    with pytest.raises(RunError, match=r"fidelity\.json: not readable"):
        warn(encoder, OURS, None)


def test_a_run_records_what_it_warned_of(exported_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    encoder = Path(shutil.copytree(exported_folder, tmp_path / "encoder"))
    (encoder / "fidelity.json").write_text(
        json.dumps({"decoder_fingerprint": OURS, "teacher_method": "logra", "validation": {"queries": 1}})
    )
    rows = DataSource(paths=(write_jsonl(tmp_path / "rows.jsonl", make_rows(10, seed=0)),))
    config = AttributionConfig(encoder=str(encoder), pool=rows, queries=rows, output=str(tmp_path / "run"), checkpoint=OTHER)
    (line,) = attribute(config)["warnings"]
    assert f"warning: {line}\n" in capsys.readouterr().err and open_run(tmp_path / "run", "attribution")["warnings"] == [line]
    assert attribute(replace(config, checkpoint=OURS, output=str(tmp_path / "other")))["warnings"] == []
