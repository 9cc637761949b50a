"""What goes wrong while features are written or after: memory, disk, flipped bytes, other models. One line each, and the rest is usable."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections import namedtuple
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

import influcoder.features
import influcoder.influence.basis
import influcoder.scores
import teacher.features
import teacher.finish
import teacher.prepare
from eval.data import load_teacher
from influcoder.errors import InflucoderError, RunError
from influcoder.features import has_shard, load_features, read_manifest, write_shard
from influcoder.influence.batch_budget import Budget, project_rows
from influcoder.influence.decoder import DecoderConfig
from influcoder.influence.finetune import FinetuneConfig
from influcoder.influence.gradients import GradientConfig, GradientProjector
from influcoder.influence.tokens import TokenizedRow, tokenize
from influcoder.runs import partial_folder
from student.config import EncoderConfig, StudentConfig
from student.stage import load_target
from tests.influcoder.tiny_decoders import ROWS, fresh_decoder
from tests.teacher.test_kill import products
from tests.teacher.test_stage import make_config, run_stage

LESS: dict[str, Any] = {"method": "less", "finetune": FinetuneConfig(epochs=1, checkpoints=2, max_batch_tokens=256)}
Disk = namedtuple("Disk", "total used free")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete run; its inputs lie beside it."""
    return run_stage(make_config(tmp_path_factory.mktemp("whole")))


@pytest.fixture(scope="module")
def finished_less(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete run that combines checkpoints."""
    return run_stage(make_config(tmp_path_factory.mktemp("less"), **LESS))


@pytest.fixture
def copy(finished_less: Path, tmp_path: Path) -> Path:
    """A copy of it to spoil."""
    return Path(shutil.copytree(finished_less, tmp_path / "copy"))


def refusal(read: Callable[[], object]) -> str:
    with pytest.raises(InflucoderError) as caught:
        read()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def student_of(run: Path) -> StudentConfig:
    return StudentConfig(teacher=str(run), output=str(run.parent / "student"), encoder=EncoderConfig(path="unused"))


def flip(path: Path, place: int) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])


def test_one_flipped_byte_in_any_shard_is_named_by_every_reader(copy: Path) -> None:
    source = np.random.default_rng(0)
    student = student_of(copy)
    taught = load_teacher(copy)
    shards = sorted((copy / "features").rglob("shard-*.safetensors"))
    assert len(shards) == 2 * (3 + 1 + 3)
    for path in shards:
        place = int(source.integers(path.stat().st_size))
        flip(path, place)
        seed, side = int(path.parent.parent.name[-1]), path.parent.name
        assert refusal(lambda: taught.features(seed, side)).startswith(f"{path}: checksum ")  # noqa: B023
        if seed == 0 and side != "queries":  # the target, of rows that ask
            assert refusal(lambda: load_target(student)).startswith(f"{path}: checksum ")
        for other in ("rows", "queries", "rows_as_queries"):
            if other != side:
                taught.features(seed, other)
        flip(path, place)
    for seed in (0, 1):
        assert taught.features(seed, "rows").manifest.seed == seed


def test_a_cut_shard_and_one_of_another_run_are_named(copy: Path, finished: Path) -> None:
    taught, rows = load_teacher(copy), copy / "features" / "seed-0" / "rows"
    path = rows / "shard-00001.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert refusal(lambda: taught.features(0, "rows")).startswith(f"{path}: checksum ")
    for suffix in (".safetensors", ".json"):  # of the other seed: the same rows, shape, and a whole file
        shutil.copy(copy / "features" / "seed-1" / "rows" / f"shard-00001{suffix}", rows)
    assert re.match(rf"{path}: shard 1 of store \w+, expected shard 1 of \w+", refusal(lambda: taught.features(0, "rows")))
    student = student_of(copy)
    assert refusal(lambda: load_target(student)).startswith(f"{path}: shard 1 of store ")


def limit_memory(monkeypatch: pytest.MonkeyPatch, padded_tokens: int, error: BaseException) -> list[int]:
    """Let batches above a size fail; return the list that these sizes go to."""
    failed: list[int] = []
    project = GradientProjector.project

    def limited(self: GradientProjector, rows: Sequence[TokenizedRow]) -> Tensor:
        size = len(rows) * max(len(row.input_ids) for row in rows)
        if size > padded_tokens:
            failed.append(size)
            raise error
        return project(self, rows)

    monkeypatch.setattr(GradientProjector, "project", limited)
    return failed


def interrupt_after(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    written: list[int] = []

    def write_some(folder: Path, shard: int, gradients: NDArray[np.float32]) -> None:
        if len(written) == count:
            raise KeyboardInterrupt
        written.append(shard)
        write_shard(folder, shard, gradients)

    monkeypatch.setattr(teacher.features, "write_shard", write_some)


OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory"),
    MemoryError(),
    RuntimeError("[enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
]


def test_memory_that_runs_out_halves_the_budget_and_a_resumed_run_keeps_the_plan(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit_memory(monkeypatch, 150, OUT_OF_MEMORY[0])
    whole = run_stage(make_config(tmp_path / "whole"))
    assert json.loads((whole / "budget-0.json").read_text()) == {"max_batch_tokens": 128}
    expected, freely = products(whole), load_features(finished / "features" / "seed-0" / "rows")
    np.testing.assert_allclose(load_features(whole / "features" / "seed-0" / "rows").vectors, freely.vectors, atol=1e-3)

    config = make_config(tmp_path / "again")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt_after(patch, 3)
        run_stage(config)
    partial = partial_folder(Path(config.output))
    stamp = (partial / "budget-0.json").stat().st_mtime_ns
    again = run_stage(config)
    assert products(again) == expected
    assert (again / "budget-0.json").stat().st_mtime_ns == stamp  # it never tried the large batches again


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=["cuda", "python", "cpu"])
def test_a_shard_is_taken_again_in_smaller_batches(
    error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    decoder = fresh_decoder()
    rows = tokenize(ROWS, decoder)
    projector = GradientProjector(decoder, GradientConfig(factors="random", dim=64), [0])
    expected = project_rows(projector, rows, Budget.of(tmp_path, 3, 4096))
    assert not list(tmp_path.iterdir())
    longest = max(len(row.input_ids) for row in rows)
    failed = limit_memory(monkeypatch, 2 * longest, error)
    budget = Budget.of(tmp_path, 3, 4096)
    np.testing.assert_allclose(project_rows(projector, rows, budget), expected, rtol=1e-4, atol=1e-5)
    assert failed and budget.max_batch_tokens < 4096
    assert f"going on with {budget.max_batch_tokens} tokens a batch" in capsys.readouterr().out
    assert Budget.of(tmp_path, 3, 4096) == budget
    assert Budget.of(tmp_path, 2, 4096).max_batch_tokens == 4096  # each process has its own
    assert Budget.of(tmp_path, 3, 16).max_batch_tokens == 16


def test_a_row_too_large_for_memory_ends_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = tokenize(ROWS, decoder := fresh_decoder())
    projector = GradientProjector(decoder, GradientConfig(factors="random", dim=64), [0])
    longest = max(len(row.input_ids) for row in rows)
    limit_memory(monkeypatch, longest - 1, OUT_OF_MEMORY[0])
    message = refusal(lambda: project_rows(projector, rows, Budget.of(tmp_path, 0, 4096)))
    assert message.startswith(f"memory ran out with one row of up to {longest} tokens a batch; expected room for one; set gradients.checkp")
    # and so in a run, which can be taken up where there is more memory
    config = make_config(tmp_path)
    assert refusal(lambda: run_stage(config)).startswith("memory ran out with one row of up to ")
    assert (partial_folder(Path(config.output)) / "decoder").exists()


@pytest.mark.parametrize("error", [RuntimeError("shapes do not fit"), ZeroDivisionError()])
def test_other_errors_pass_through(error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = tokenize(ROWS, decoder := fresh_decoder())
    projector = GradientProjector(decoder, GradientConfig(factors="random", dim=64), [0])
    limit_memory(monkeypatch, 0, error)
    with pytest.raises(type(error)) as caught:
        project_rows(projector, rows, Budget.of(tmp_path, 0, 4096))
    assert caught.value is error
    assert not list(tmp_path.iterdir())


def fill_disk(monkeypatch: pytest.MonkeyPatch, module: object, name: str, after: int) -> None:
    """Let a function that writes fail from its call number `after` on, with a part on the disk."""
    write, calls = getattr(module, name), [0]

    def full(first: Any, *others: Any, **keywords: Any) -> Any:
        calls[0] += 1
        if calls[0] <= after:
            return write(first, *others, **keywords)
        if name == "save_file":
            Path(others[0]).write_bytes(b"half")
            raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, name, full)


@pytest.mark.parametrize(
    ("module", "name", "after"),
    [
        (influcoder.features, "save_file", 9),
        (influcoder.influence.basis, "save_file", 1),
        (influcoder.scores.np, "save", 1),  # type: ignore[attr-defined]  # the module's own numpy
        (teacher.finish, "create_store", 2),
    ],
)
def test_a_full_disk_ends_in_one_line_and_the_rest_goes_on(
    module: object, name: str, after: int, finished_less: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(tmp_path, **LESS)
    with monkeypatch.context() as patch:
        fill_disk(patch, module, name, after)
        message = refusal(lambda: run_stage(config))
    assert "No space left on device" in message and "run the same command again" in message
    partial = partial_folder(Path(config.output))
    assert not list(partial.rglob(".shard-*"))
    committed = [path for path in partial.rglob("shard-*.safetensors") if has_shard(path.parent, int(path.stem[-5:]))]
    assert len(committed) == len(list(partial.rglob("shard-*.safetensors")))
    assert products(run_stage(config)) == products(finished_less)
    assert not list(Path(config.output).rglob("*.writing"))


def test_rows_half_written_do_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write_half(path: Path, _: object) -> None:
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    config = make_config(tmp_path)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(teacher.prepare, "write_examples", write_half)
        teacher.prepare.read_sides(config, tmp_path)
    assert not (tmp_path / "rows.parquet").exists()
    sides = teacher.prepare.read_sides(config, tmp_path)
    assert teacher.prepare.load_sides(tmp_path) == sides
    assert not list(tmp_path.glob(".*"))


def test_other_faults_of_files_pass_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(teacher.features, "create_store", fail)
    with pytest.raises(PermissionError):
        run_stage(make_config(tmp_path))


def test_too_little_room_is_said_before_the_work(finished_less: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = make_config(tmp_path, **LESS)
    needed = 44 * 2 * (2 * (4 * 128 + 4) + 2 * 2 * 128 + 4)  # rows of all sides, seeds, gradients of 2 checkpoints, features of both
    free = [needed - 1]
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Disk(0, 0, free[0]))
    message = refusal(lambda: run_stage(config))
    partial = partial_folder(Path(config.output))
    assert message.startswith(
        f"{partial}: {needed / 1e9:.3g} GB of features to write, {(needed - 1) / 1e9:.3g} GB free; expected room; free"
    )
    assert (partial / "decoder").exists() and not (partial / "gradients").exists()
    free[0] = needed
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt_after(patch, 8)
        run_stage(config)
    written = sum(path.stat().st_size for path in partial.rglob("shard-*.safetensors"))
    stores = [read_manifest(path.parent) for path in (partial / "gradients").rglob("manifest.json")]
    assert {store.dtype for store in stores} == {"float32"}  # what is worked on further is not rounded
    free[0] = needed - written  # what is there already needs no room
    assert products(run_stage(config)) == products(finished_less)


def test_another_model_under_the_same_path_is_refused_with_both(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Path(shutil.copytree(finished / "decoder", tmp_path / "model"))
    config = make_config(tmp_path, decoder=DecoderConfig(path=str(model), device="cpu"), finetune=None)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt_after(patch, 1)
        run_stage(config)
    before = json.loads((finished / "run.json").read_text())["decoder_fingerprint"]
    weights = load_file(model / "model.safetensors")
    next(iter(weights.values()))[0, 0] += 1
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    message = refusal(lambda: run_stage(config))
    assert re.search(rf"manifest.json: decoder_fingerprint is '{before}', expected '\w{{16}}'; it belongs to another job", message)
    os.replace(shutil.copytree(finished / "decoder", tmp_path / "back") / "model.safetensors", model / "model.safetensors")
    made = run_stage(config)  # with the former model it goes on
    assert {name: content for name, content in products(made).items() if name.startswith("features")} == {
        name: content for name, content in products(finished).items() if name.startswith("features")
    }


def test_a_store_that_waits_for_its_first_shard_is_not_readable(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = make_config(tmp_path)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt_after(patch, 0)
        run_stage(config)
    place = partial_folder(Path(config.output))
    assert "missing or not committed" in refusal(lambda: load_features(place / "features" / "seed-0" / "rows"))
    assert "unfinished" in refusal(lambda: load_teacher(Path(config.output)))
    with pytest.raises(RunError):
        load_target(student_of(Path(config.output)))
