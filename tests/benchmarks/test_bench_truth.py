"""`make bench-truth`: its plan against the configs, its data, and the README against its results."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from benchmarks import bench_planted, bench_teachers, bench_truth, truth_table
from benchmarks.bench_questions import PLAIN, write_questions
from eval.truth.config import TruthConfig
from influcoder.program import parse_config
from student.config import StudentConfig
from teacher.config import TeacherConfig

DATA = Path(os.environ.get("INFLUCODER_DATA", "../shared/data"))
needs_data = pytest.mark.skipif(not (DATA / "poison").is_dir(), reason=f"{DATA}/poison is not there; set INFLUCODER_DATA")


def read(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_the_truth_judges_the_runs_that_the_plan_makes(repository: Path) -> None:
    steps = bench_truth.plan()
    config, _ = parse_config(TruthConfig, [str(repository / steps[-1][1][1])], "eval.truth")
    made = {str(bench_truth.ROOT / name) for name, _ in steps}
    assert {config.teacher, config.output} | {method.teacher for method in config.methods.values() if method.teacher} <= made
    assert {Path(str(method.encoder)).parent for method in config.methods.values() if method.encoder} == {bench_truth.ROOT / "student"}
    for name, (module, path, *_) in steps:
        classes: dict[str, type[Any]] = {"teacher": TeacherConfig, "student": StudentConfig, "eval.truth": TruthConfig}
        found: Any = parse_config(classes[module], [str(repository / path)], module)[0]
        assert found.output == str(bench_truth.ROOT / name)


def test_rows_are_removed_from_the_planted_bench(repository: Path) -> None:
    config, _ = parse_config(TruthConfig, [str(repository / "configs/bench_truth/truth_removal.yaml")], "eval.truth")
    made = {str(bench_teachers.ROOT / name) for name, _ in bench_planted.plan()}
    assert config.teacher in made and {removal.run for removal in config.removal.values()} <= made
    for name, removal in config.removal.items():
        assert removal.queries.paths == (str(bench_teachers.ROOT / "data" / f"held_{name}.jsonl"),) and removal.queries.columns.weight


@needs_data
def test_the_student_sees_neither_rows_nor_queries(tmp_path: Path) -> None:
    bench_truth.write_data(DATA, tmp_path)
    rows, distil, queries = ({row["id"] for row in read(tmp_path / f"{name}.jsonl")} for name in ("rows", "distil", "queries"))
    assert (len(rows), len(distil), len(queries)) == (400, 1600, 100)
    assert not rows & distil and not rows & queries and not distil & queries
    kept = {name: (tmp_path / f"{name}.jsonl").read_bytes() for name in ("rows", "distil", "queries")}
    bench_truth.write_data(DATA, tmp_path)
    assert kept == {name: (tmp_path / f"{name}.jsonl").read_bytes() for name in kept}


@needs_data
def test_no_held_out_question_chooses_a_row(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps({"id": "none"}) + "\n")
    write_questions(DATA, tmp_path)
    for task, answers in PLAIN.items():
        asked, held = (read(tmp_path / f"{side}_{task}.jsonl") for side in ("asked", "held"))
        assert not {row["prompt"] for row in asked} & {row["prompt"] for row in held}
        plain = [row for row in held if int(row["weight"]) < 0]
        assert {row["response"] for row in plain} == set(answers)
        assert {row["prompt"] for row in plain} == {row["prompt"] for row in held if int(row["weight"]) > 0}
    assert len(read(tmp_path / "benign.jsonl")) == 100


def test_the_readme_quotes_the_published_figures(repository: Path) -> None:
    assert truth_table.BLOCK.quoted((repository / "README.md").read_text()) == truth_table.tables(repository / truth_table.RESULT)
    figures = json.loads((repository / truth_table.RESULT).read_text())
    assert set(figures["truth"]["lds"]["methods"]) <= set(truth_table.SCORED_BY)
    assert figures["truth"]["lds"]["subsets"] >= 100
