"""SIGKILL between any two steps on the disk, then the same command again: every byte is as if nothing had happened.

`SOAK=50 pytest tests/influcoder/test_attribution_kill.py` (`make soak`) takes 50 points instead of 8.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from influcoder.attribution import AttributionConfig, attribute
from influcoder.errors import RunError
from influcoder.index import open_index
from influcoder.onnx_encoder import OnnxEncoder
from influcoder.readers import Columns, DataSource
from influcoder.runs import open_run, partial_folder
from tests.influcoder.rescoring_runs import make_teachers, query_rows
from tests.influcoder.test_attribution import bad_pool, make_rows, write_jsonl

POINTS = int(os.environ.get("SOAK", "8"))
pytestmark = pytest.mark.slow
ROWS = 196
SETTINGS: dict[str, Any] = {"top_k": 9, "shard_rows": 48, "chunk_rows": 20, "keep_above": 0.912}


def products(run: Path) -> dict[str, bytes]:
    """Return every file of a run but run.json, which has times in it."""
    return {str(path.relative_to(run)): path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name != "run.json"}


@pytest.fixture(scope="module")
def killed(exported_folder: Path, tmp_path_factory: pytest.TempPathFactory, repository: Path) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("killed")
    pool, queries = bad_pool(folder / "pool.jsonl"), write_jsonl(folder / "queries.jsonl", make_rows(5, seed=1))
    config = json.dumps({"encoder": str(exported_folder), "pool": pool, "queries": queries, **SETTINGS})
    command = [sys.executable, "-m", "tests.influcoder.killed_attribution", config, str(folder), str(POINTS)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=repository, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return folder, json.loads(done.stdout)


def test_the_whole_run_has_every_row_once(killed: tuple[Path, dict[str, Any]]) -> None:
    run, steps = killed[0] / "whole" / "run", killed[1]["steps"]
    ids = pq.read_table(run / "rows.parquet")["id"].to_pylist()
    assert len(ids) == len(set(ids)) == ROWS == open_index(run / "index").manifest.num_rows
    assert len((run / "rejected.jsonl").read_text().splitlines()) == 4
    kept, removed = (len((run / name).read_text().splitlines()) for name in ("kept.jsonl", "removed.jsonl"))
    assert kept + removed == ROWS and min(kept, removed) > 20
    assert steps > 100 and not (run / "work").exists() and not [path for path in run.rglob(".*")]


@pytest.mark.parametrize("point", range(POINTS))
def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(point: int, killed: tuple[Path, dict[str, Any]]) -> None:
    folder, record = killed
    assert record["killed"][point]
    made, expected = products(folder / f"point-{point}" / "run"), products(folder / "whole" / "run")
    assert made.keys() == expected.keys()
    assert [name for name in made if made[name] != expected[name]] == []


@pytest.fixture(scope="module")
def killed_rescoring(exported_folder: Path, tmp_path_factory: pytest.TempPathFactory, repository: Path) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("rescoring")
    teacher, _ = make_teachers(folder / "teachers")
    pool, queries = bad_pool(folder / "pool.jsonl"), write_jsonl(folder / "queries.jsonl", query_rows())
    rescore = {"teacher": str(teacher), "rows": 12, "device": "cpu"}
    config = json.dumps({"encoder": str(exported_folder), "pool": pool, "queries": queries, "rescore": rescore, **SETTINGS})
    command = [sys.executable, "-m", "tests.influcoder.killed_attribution", config, str(folder), str(POINTS)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=repository, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return folder, json.loads(done.stdout)


@pytest.mark.parametrize("point", range(POINTS))
def test_a_killed_second_stage_goes_on_and_ends_with_the_same_bytes(point: int, killed_rescoring: tuple[Path, dict[str, Any]]) -> None:
    folder, record = killed_rescoring
    made, expected = products(folder / f"point-{point}" / "run"), products(folder / "whole" / "run")
    assert record["killed"][point] and made.keys() == expected.keys()
    assert [name for name in made if made[name] != expected[name]] == []
    assert open_run(folder / "whole" / "run", "attribution")["rescore"]["computed"] > 30


@pytest.fixture
def unfinished(exported_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AttributionConfig:
    """A job that was interrupted in its third shard."""
    config = AttributionConfig(
        encoder=str(exported_folder),
        pool=DataSource(paths=(write_jsonl(tmp_path / "pool.jsonl", make_rows(200, seed=0)),), columns=Columns(contributor="who")),
        queries=DataSource(paths=(write_jsonl(tmp_path / "queries.jsonl", make_rows(5, seed=1)),)),
        output=str(tmp_path / "run"),
        **SETTINGS,
    )
    embed, calls = OnnxEncoder.embed, iter(range(100))

    def interrupted(encoder: OnnxEncoder, encodings: Any) -> Any:
        if next(calls) == 1 + 3 + 3 + 1:  # the queries, two shards of three chunks, and then
            raise KeyboardInterrupt
        return embed(encoder, encodings)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(OnnxEncoder, "embed", interrupted)
        attribute(config)
    return config


def test_committed_shards_are_not_embedded_again(unfinished: AttributionConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    embed, sizes = OnnxEncoder.embed, []

    def watched(encoder: OnnxEncoder, encodings: Any) -> Any:
        sizes.append(len(encodings))
        return embed(encoder, encodings)

    monkeypatch.setattr(OnnxEncoder, "embed", watched)
    assert attribute(unfinished)["counts"]["rows"] == 200
    assert sum(sizes) == 5 + 200 - 2 * 48


@pytest.mark.parametrize("name", ["index/shard-00001.codes.npy", "work/shard-00001.rows.parquet", "work/shard-00001.json"])
def test_a_shard_that_the_disk_lost_is_made_again(name: str, unfinished: AttributionConfig) -> None:
    path = partial_folder(Path(unfinished.output)) / name
    before = path.read_bytes()
    path.write_bytes(before[: len(before) // 2])
    attribute(unfinished)
    lost = products(Path(unfinished.output))
    other = replace(unfinished, output=f"{unfinished.output}-whole")
    attribute(other)
    expected = products(Path(other.output))
    assert lost | {"config.yaml": b""} == expected | {"config.yaml": b""}


def test_a_pool_that_changed_meanwhile_is_refused(unfinished: AttributionConfig, tmp_path: Path) -> None:
    rows = make_rows(200, seed=0)
    rows[60]["response"] = "river"
    write_jsonl(tmp_path / "pool.jsonl", rows)
    with pytest.raises(RunError, match=r"shard-00001\.json: made of other rows than the pool has now"):
        attribute(unfinished)
    write_jsonl(tmp_path / "pool.jsonl", make_rows(200, seed=0))
    assert attribute(unfinished)["counts"]["rows"] == 200


def test_other_queries_or_settings_meanwhile_are_refused(unfinished: AttributionConfig, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="unfinished work of another config"):
        attribute(replace(unfinished, top_k=3))
    write_jsonl(tmp_path / "queries.jsonl", make_rows(4, seed=1))
    with pytest.raises(RunError, match=r"job\.json: unfinished work of another queries \(queries_fingerprint"):
        attribute(unfinished)
