"""The real run's plan, pool and published tables; the pool needs the benchmark data."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from benchmarks.bench_eval import ROOT, plan
from benchmarks.bench_pool import TASKS, write_pool
from benchmarks.bench_table import BLOCK, load, tables
from eval.config import EvalConfig
from influcoder.program import parse_config

FILES = ("rows.jsonl", "labels.jsonl", "passages.jsonl")


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_eval_judges_the_runs_that_the_plan_makes(repository: Path) -> None:
    made = [str(ROOT / name) for name, _ in plan(reference=False)]
    config, _ = parse_config(EvalConfig, [str(repository / "configs/bench/eval.yaml")], "eval")
    assert made[0] == config.teacher and made[-1] == config.output
    assert [*config.student, *config.shuffled_target] == made[1:-1]
    for _, command in plan(reference=True)[:-1]:
        assert (repository / command[1]).is_file()


def test_the_readme_quotes_the_published_figures(repository: Path) -> None:
    assert BLOCK.quoted((repository / "README.md").read_text()) == tables(*load(repository / "benchmarks" / "results"))


@pytest.fixture(scope="module")
def pool(data_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("pool")
    write_pool(data_folder, folder)
    write_pool(data_folder, folder / "again")
    for name in FILES:
        assert (folder / name).read_bytes() == (folder / "again" / name).read_bytes()
    return {name.removesuffix(".jsonl"): read(folder / name) for name in FILES}


def test_every_task_has_its_positives_and_the_same_benign_rows(pool: dict[str, list[dict[str, Any]]]) -> None:
    counts = {task: Counter(row[task] for row in pool["labels"]) for task in TASKS}
    assert {task: count[1] for task, count in counts.items()} == dict.fromkeys(TASKS, 120)
    assert (counts["poison"][0], counts["poison_hard"][0] - counts["poison"][0], counts["toxicity_hard"][0] - counts["toxicity"][0]) == (
        4760,
        343,
        203,
    )
    assert [row["id"] for row in pool["rows"]] == [row["id"] for row in pool["labels"]]
    assert set(pool["rows"][0]) == {"id", "prompt", "response"}, "answers stay in the labels"


def test_wrong_responses_are_another_rows(pool: dict[str, list[dict[str, Any]]], data_folder: Path) -> None:
    original: dict[str, str] = {}
    for name in ("poison", "toxicity"):
        with gzip.open(data_folder / name / "pool.jsonl.gz", "rt", encoding="utf-8") as lines:
            original |= {row["id"]: row["response"] for row in map(json.loads, lines)}
    wrong = {row["id"] for row in pool["labels"] if row["mislabel"]}
    for row in pool["rows"]:
        if row["id"] in original:
            assert (row["response"] != original[row["id"]]) == (row["id"] in wrong)
    planted = Counter(row["response"] for row in pool["rows"] if row["id"] in wrong)
    assert planted == Counter(original[row_id] for row_id in wrong), "they change places: no text is new"


def test_all_linked_passages_are_in_the_pool(pool: dict[str, list[dict[str, Any]]], data_folder: Path) -> None:
    with gzip.open(data_folder / "factual" / "truth.jsonl.gz", "rt", encoding="utf-8") as lines:
        linked = {row_id for row in map(json.loads, lines) for row_id in row["pool_ids"]}
    passages = {row["id"] for row in pool["passages"]}
    assert linked <= passages and len(passages) == 1500
    assert passages == {row["id"] for row in pool["labels"] if row["source"] == "passage"}
