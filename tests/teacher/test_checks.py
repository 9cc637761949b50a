"""What a run says of itself: rows alone against together, projected against whole gradients, estimate against cost."""

from __future__ import annotations

import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import teacher.checks
import teacher.estimate
from influcoder.errors import RunError
from influcoder.influence.batch_budget import Budget
from influcoder.influence.gradients import GradientConfig, GradientProjector
from influcoder.influence.tokens import TokenizedRow, tokenize
from influcoder.metrics import per_query_spearman
from teacher.checks import check_projection, check_rows_alone
from teacher.config import ChecksConfig
from teacher.estimate import Estimate, compare, estimate, used_bytes
from tests.influcoder.tiny_decoders import example, fresh_decoder

WHOLE = GradientConfig(rank=None, sketch="none", factors="random")
NARROW = GradientConfig(rank=2, output_rank=2, dim=32, factors="random")
EXAMPLES = [example(f"row-{place}", "red blue green"[: 3 + place], "cat dog bird sings"[: 4 + 3 * (place % 5)]) for place in range(12)]


@pytest.fixture(scope="module")
def rows() -> list[TokenizedRow]:
    return tokenize(EXAMPLES, fresh_decoder())


def projector(config: GradientConfig = WHOLE, seeds: tuple[int, ...] = (0,), **more: Any) -> GradientProjector:
    return GradientProjector(fresh_decoder(), config, seeds, **more)


def test_rows_alone_and_together_are_compared(rows: list[TokenizedRow], capsys: pytest.CaptureFixture[str]) -> None:
    difference = check_rows_alone(projector(), rows)
    assert 0 <= difference < 1e-4
    assert (
        f"self-check: 3 rows together and alone differ by {difference:.1e} of their gradients' length (14 layers)"
        in capsys.readouterr().out
    )


def test_a_decoder_that_mixes_rows_is_refused(rows: list[TokenizedRow]) -> None:
    mixing = projector()
    mixing.decoder.model.get_input_embeddings().register_forward_hook(lambda module, given, found: found + found.mean(0, keepdim=True))
    with pytest.raises(RunError, match=r"gradients of rows taken together differ from single rows by .*; the decoder mixes rows"):
        check_rows_alone(mixing, rows)


def test_the_self_check_holds_the_weights_that_fit(
    rows: list[TokenizedRow], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    largest = max(4 * layer.weight.numel() for layer in projector().layers.values())
    for size, layers in ((3 * largest, 3), (1, 1)):
        monkeypatch.setattr(teacher.checks, "CHECKED_BYTES", size)
        check_rows_alone(projector(), rows)
        assert f"({layers} layers)" in capsys.readouterr().out


def test_the_self_check_takes_rows_of_which_three_fit(rows: list[TokenizedRow], monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[list[int]] = []

    def check(_: GradientProjector, chosen: list[TokenizedRow]) -> float:
        taken.append([len(row.input_ids) for row in chosen])
        if 3 * taken[-1][-1] > 3 * shortest + 6:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return 0.0

    lengths = sorted(len(row.input_ids) for row in rows)
    shortest = lengths[0]
    monkeypatch.setattr(teacher.checks, "check_gradients", check)
    check_rows_alone(projector(), rows)
    assert taken[0] == [shortest, lengths[6], lengths[-1]]
    assert taken[-1][-1] <= shortest + 2 and len(taken) > 1


def test_nothing_projected_follows_exactly(rows: list[TokenizedRow]) -> None:
    for unit_layers in (False, True):
        found = check_projection(projector(unit_layers=unit_layers), (None, None), rows, ChecksConfig())
        assert found is not None
        assert (found["queries"], found["rows"]) == (4, 8)
        assert found["per_query_spearman"] == pytest.approx(1, abs=1e-6)
        assert found["rms_error"] < 1e-6 < found["spread"]


def test_a_narrow_projection_is_measured(rows: list[TokenizedRow], capsys: pytest.CaptureFixture[str]) -> None:
    narrow = projector(NARROW, seeds=(3, 4))
    found = check_projection(narrow, (None, None), rows, ChecksConfig(queries=3, rows=5))
    assert found is not None and (found["queries"], found["rows"]) == (3, 5)
    chosen = [rows[place] for place in np.random.default_rng(1).permutation(len(rows))[:8]]
    cosines = []
    for space in (narrow, projector()):
        vectors = space.project(chosen)[0].double().numpy()
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        cosines.append(vectors[:3] @ vectors[3:].T)
    assert found["per_query_spearman"] == pytest.approx(per_query_spearman(cosines[0], cosines[1]).mean(), abs=1e-6)
    assert found["rms_error"] == pytest.approx(np.sqrt(np.mean((cosines[0] - cosines[1]) ** 2)), rel=1e-3)
    assert found["spread"] == pytest.approx(cosines[1].std(axis=1).mean(), rel=1e-3)
    assert f"projection: {found['per_query_spearman']:.3f} per-query Spearman with exact cosines" in capsys.readouterr().out


def test_the_transforms_of_either_side_are_compared(rows: list[TokenizedRow]) -> None:
    def cubed(_: str, gradient: torch.Tensor) -> torch.Tensor:
        return gradient**3

    found = check_projection(projector(), (None, cubed), rows, ChecksConfig())
    assert found is not None and found["per_query_spearman"] == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("config", [ChecksConfig(queries=0), ChecksConfig(max_bytes=1)])
def test_the_comparison_can_be_left_out(config: ChecksConfig, rows: list[TokenizedRow], capsys: pytest.CaptureFixture[str]) -> None:
    assert check_projection(projector(), (None, None), rows, config) is None
    assert ("exact cosines left out: exact products: a gradient takes" in capsys.readouterr().out) == (config.queries > 0)


def test_few_rows_are_not_compared(rows: list[TokenizedRow]) -> None:
    assert check_projection(projector(), (None, None), rows[:3], ChecksConfig()) is None
    assert check_projection(projector(), (None, None), rows[:4], ChecksConfig()) is not None


def test_a_comparison_without_memory_costs_no_features(
    rows: list[TokenizedRow], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    budgets: list[int] = []

    def full(*_: object, max_batch_tokens: int, **others: object) -> None:
        budgets.append(max_batch_tokens)
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(teacher.checks, "exact_products", full)
    assert check_projection(projector(), (None, None), rows, ChecksConfig()) is None
    assert budgets[:3] == [1024, 512, 256]
    assert "exact cosines left out: memory ran out with one row" in capsys.readouterr().out


def test_the_estimate_is_of_the_work_of_this_process(rows: list[TokenizedRow], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    timed: list[int] = []

    def take(_: GradientProjector, batch: list[TokenizedRow], __: Budget) -> NDArray[np.float32]:
        timed.append(len(batch) * max(len(row.input_ids) for row in batch))
        clock[0] += timed[-1] / 100  # tokens a second
        return np.ones((2, len(batch), 4), np.float32)

    clock = [0.0]
    monkeypatch.setattr(teacher.estimate, "project_rows", take)
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])
    budget = Budget(None, 64)
    whole, half = (estimate(projector(NARROW), rows, passes, 1000, tmp_path, budget) for passes in (2, 1))
    assert timed[0] == max(timed)  # the heaviest first: does it fit?
    assert half.seconds == pytest.approx(whole.seconds / 2)
    padded = whole.seconds * 100 / 2
    lengths = [len(row.input_ids) for row in rows]
    assert sum(lengths) <= padded <= len(rows) * max(lengths)
    assert whole.disk_bytes == 12 * 1000
    assert whole.peak_bytes > 1e7
    assert not list(tmp_path.iterdir())  # of what was written to time it


def test_room_on_the_disk_is_of_what_is_lacking(rows: list[TokenizedRow], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = namedtuple("disk", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: disk(0, 0, 9_000))
    with pytest.raises(RunError, match=r"1.2e-05 GB of features to write, 9e-06 GB free; expected room"):
        estimate(projector(NARROW), rows, 1, 1000, tmp_path, Budget(None, 64))
    (tmp_path / "gradients" / "seed-0").mkdir(parents=True)
    (tmp_path / "gradients" / "seed-0" / "shard-00000.safetensors").write_bytes(b"." * 3_000)
    assert used_bytes(tmp_path) == 3_000
    estimate(projector(NARROW), rows, 1, 1000, tmp_path, Budget(None, 64))


def test_estimate_and_cost_stand_side_by_side(capsys: pytest.CaptureFixture[str]) -> None:
    before, after = Estimate(90.4, 3_000_000_000, 12_345_678_000), Estimate(8000.0, 2_000_000_000, 1_000_000_000)
    assert compare(before, after)["actual"] == {"seconds": 8000.0, "peak_bytes": 2_000_000_000, "disk_bytes": 1_000_000_000}
    printed = capsys.readouterr().out
    assert "gradients took 2.2 h, 2.0 GB of memory, 1.00 GB of disk; estimated 90 s, 3.0 GB of memory, 12.35 GB of disk" in printed
    assert str(Estimate(600.0, 0, 0)).startswith("10 min, ")
