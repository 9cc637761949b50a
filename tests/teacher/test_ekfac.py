"""What a run of method ekfac keeps of its curvature, and what can go wrong with it. The scores are compared in test_methods.py."""

from __future__ import annotations

import json
import random
import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from influcoder.errors import RunError
from influcoder.examples import load_examples
from influcoder.features import load_features
from influcoder.influence import ekfac, ekfac_decoder, ekfac_files
from influcoder.influence.capture import gradient_layers
from influcoder.influence.decoder import Decoder, DecoderConfig, load_decoder
from influcoder.influence.ekfac import Whitening, fit_ekfac
from influcoder.influence.ekfac_decoder import Draws, decoder_batches
from influcoder.influence.ekfac_files import load_ekfac
from influcoder.influence.gradients import GradientConfig, GradientProjector
from influcoder.influence.tokens import tokenize
from influcoder.runs import partial_folder
from teacher.config import EkfacConfig, TeacherConfig
from tests.teacher.test_stage import make_config, run_stage

Disk = namedtuple("Disk", "total used free")
FLOATS = 4 * 3 * 16 * 16 + 3 * 3 * 16 * 16
"""of the decoder of `make_config`: four square layers of attention, three of 16 x 16 in its MLP"""


def ekfac_config(folder: Path, **changes: Any) -> TeacherConfig:
    settings: dict[str, Any] = {
        "method": "ekfac",
        "gradients": GradientConfig(rank=None, dim=300, shard_rows=8),
        "ekfac": EkfacConfig(rows=12),
    }
    return make_config(folder, **(settings | changes))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_stage(ekfac_config(tmp_path_factory.mktemp("ekfac")))


def content(run: Path) -> dict[str, bytes]:
    """Return the bytes of factors and features."""
    files = [path for name in ("ekfac", "features") for path in (run / name).rglob("*") if path.is_file()]
    return {str(path.relative_to(run)): path.read_bytes() for path in files}


def test_every_seed_has_its_own_sample_labels_and_coordinates(finished: Path) -> None:
    decoder = load_decoder(DecoderConfig(path=str(finished / "decoder"), device="cpu"), [], 0)
    layers, rows = gradient_layers(decoder.model), tokenize(load_examples(finished / "rows.parquet"), decoder)
    for seed in (0, 1):
        found = load_ekfac(finished / "ekfac" / f"seed-{seed}", layers)
        sample = random.Random(seed).sample(rows, 12)
        expected = fit_ekfac(layers, decoder_batches(decoder, sample, Draws(count=2, seed=seed), 1024))
        assert all(torch.equal(found[name].values, expected[name].values) for name in layers)
        projector = GradientProjector(decoder, GradientConfig(rank=None, dim=300), [seed], whitenings=[Whitening(expected)])
        kept = load_features(finished / "features" / f"seed-{seed}" / "rows")
        assert kept.manifest.normalise == "none" and kept.manifest.dim == 300
        np.testing.assert_allclose(kept.as_rows, projector.project(rows)[0].numpy(), rtol=0, atol=2e-3 * kept.norms.max())


def test_a_run_says_what_its_curvature_takes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_stage(ekfac_config(tmp_path, ekfac=EkfacConfig(rows=1000, draws=3)))
    printed = capsys.readouterr().out
    assert "ekfac: curvature over 20 rows with 3 labels each, 2 seeds; 0.00 GB of disk" in printed
    assert "gradients: 24 rows, 2 seeds, 300 coordinates" in printed and "seed-to-seed agreement" in printed


def test_a_disk_without_room_is_said_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, needed = ekfac_config(tmp_path), 2 * 4 * FLOATS
    with monkeypatch.context() as patch, pytest.raises(RunError) as caught:
        patch.setattr(shutil, "disk_usage", lambda _: Disk(0, 0, needed - 1))
        run_stage(config)
    assert f"{needed / 1e9:.3g} GB of factors to write, {(needed - 1) / 1e9:.3g} GB free; expected room; free some" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (partial_folder(Path(config.output)) / "ekfac").exists()
    run_stage(config)


def test_a_stopped_fit_goes_on_with_the_same_bytes(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped before the eigenvalues of the second seed."""
    config = ekfac_config(tmp_path)
    seen: list[Any] = []

    def stopping(*given: Any) -> Any:
        seen.append(given)
        if len(seen) == 2:
            raise KeyboardInterrupt
        return ekfac.fit_values(*given)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(ekfac_files, "fit_values", stopping)
        run_stage(config)
    partial = partial_folder(Path(config.output))
    kept = sorted(path.name for path in (partial / "ekfac").rglob("*.safetensors"))
    assert kept == ["group-000-vectors.safetensors", "group-000.safetensors"]
    stamp = (partial / "ekfac" / "seed-0" / "group-000.safetensors").stat().st_mtime_ns
    made = run_stage(config)
    assert (made / "ekfac" / "seed-0" / "group-000.safetensors").stat().st_mtime_ns == stamp
    assert content(made) == content(finished)


def test_a_changed_file_of_an_unfinished_run_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = ekfac_config(tmp_path)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("teacher.stage._write_all", interrupt)
        run_stage(config)
    path = partial_folder(Path(config.output)) / "ekfac" / "seed-1" / "group-000.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(RunError, match=r"seed-1/group-000.safetensors: checksum .*; it was changed; remove it"):
        run_stage(config)
    path.unlink()
    path.with_suffix(".json").unlink()
    run_stage(config)


def interrupt(*given: Any) -> None:
    raise KeyboardInterrupt


def test_memory_that_runs_out_halves_the_batches(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backward = ekfac_decoder._backward

    def limited(decoder: Decoder, batch: tuple[Tensor, Tensor, Tensor], *others: Any) -> None:
        if batch[0].numel() > 150:
            raise torch.OutOfMemoryError("CUDA out of memory")
        backward(decoder, batch, *others)

    monkeypatch.setattr(ekfac_decoder, "_backward", limited)
    made = run_stage(ekfac_config(tmp_path))
    for seed in (0, 1):
        assert json.loads((made / "ekfac" / f"seed-{seed}" / "budget-0.json").read_text()) == {"max_batch_tokens": 128}
    found, expected = (load_features(run / "features" / "seed-0" / "rows") for run in (made, finished))
    np.testing.assert_allclose(found.norms, expected.norms, rtol=1e-2)
