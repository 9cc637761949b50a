from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from eval.config import EvalConfig, LabelsConfig
from eval.data import load_student, load_teacher
from eval.judged import make_judged, select_test_rows
from eval.labels import Labels
from eval.stage import run
from influcoder.errors import ConfigError, DataError, RunError
from influcoder.examples import Example, Turn, fingerprint, write_examples
from influcoder.program import parse_config
from influcoder.runs import open_run
from tests.eval.fake_runs import PARTS, Runs, make_features, make_rows

FLOORS = {"untrained_encoder", "query_blind", "bm25", "rep_sim", "rep_sim_mean", "length", "random"}
METRICS = {
    "per_query_spearman", "within_group_spearman", "residual_spearman", "aggregated_spearman", "top10_overlap",
    "poison_auprc", "poison_recall_at_positives", "poison_auprc_mean", "poison_auprc_max",
}  # fmt: skip


def edit_record(run_folder: Path, **changes: object) -> None:
    path = run_folder / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def plant(runs: Runs, place: int, row: Example) -> None:
    """Put another row into the pool, and make every artifact agree with it."""
    rows = [*runs.rows[:place], row, *runs.rows[place + 1 :]]
    teacher = runs.folder / "teacher"
    write_examples(teacher / "rows.parquet", rows)
    for seed in (0, 1):
        folder = teacher / "features" / f"seed-{seed}" / "rows"
        (folder / "manifest.json").unlink()
        make_features(folder, rows, np.random.default_rng(seed).normal(size=(len(rows), 16)).astype(np.float32), seed)
    edit_record(teacher, rows_fingerprint=fingerprint(rows))
    edit_record(runs.folder / "student", rows_fingerprint=fingerprint(rows))


@pytest.fixture(scope="module")
def judged_run(finished_runs: Runs, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    output = tmp_path_factory.mktemp("judged") / "eval"
    other = str(finished_runs.folder / "student")
    run(finished_runs.config(output=str(output), compare={"reference_recipe": other}), "seed: 0\n")
    return output, json.loads((output / "summary.json").read_text())


def test_summary_has_every_method_metric_and_count(judged_run: tuple[Path, dict[str, Any]]) -> None:
    summary = judged_run[1]
    assert summary["schema_version"] == 1
    assert summary["target"] == {"method": "influcoder", "seed": 0, "exact": False, "decoder_fingerprint": "d" * 16}
    assert summary["counts"] | {"positives": 0} == {
        "rows": 40, "train": 12, "validation": 4, "test": 24, "queries": 8, "candidates": 16, "task_queries": 5, "positives": 0,
    }  # fmt: skip
    assert summary["counts"]["positives"] == sum(part == "test" for part in PARTS[::4])
    roles = {name: method["role"] for name, method in summary["methods"].items()}
    expected = {"teacher": "teacher", "teacher_second_seed": "ceiling", "student": "student", "reference_recipe": "reference"}
    assert roles == expected | dict.fromkeys(FLOORS, "floor")
    assert set(summary["seconds"]) == set(roles)
    for name, method in summary["methods"].items():
        assert set(method["metrics"]) == METRICS
        nulls = {metric for metric, value in method["metrics"].items() if value is None}
        assert nulls == ({metric for metric in METRICS if not metric.startswith("poison")} if name == "teacher" else set())
        for value in method["metrics"].values():
            assert value is None or (set(value) == {"mean", "low", "high", "n"} and -1 <= value["low"] <= value["high"] <= 1)


def test_figures_say_what_the_fixture_is(judged_run: tuple[Path, dict[str, Any]]) -> None:
    methods = judged_run[1]["methods"]
    assert 0.9 < methods["teacher_second_seed"]["metrics"]["per_query_spearman"]["mean"] < 0.99, "two seeds agree, but not wholly"
    assert methods["reference_recipe"]["metrics"] == methods["student"]["metrics"]
    assert methods["untrained_encoder"]["metrics"] != methods["student"]["metrics"]
    base_rate = judged_run[1]["counts"]["positives"] / 24
    for blind in ("query_blind", "length"):
        assert methods[blind]["metrics"]["residual_spearman"]["mean"] == 0
        assert methods[blind]["metrics"]["poison_auprc"]["mean"] == pytest.approx(base_rate)


def test_run_holds_table_plot_and_per_query_figures(judged_run: tuple[Path, dict[str, Any]]) -> None:
    output, summary = judged_run
    assert open_run(output, "eval")["counts"] == summary["counts"]
    assert (output / "config.yaml").read_text() == "seed: 0\n"
    assert (output / "fidelity.png").read_bytes().startswith(b"\x89PNG")
    table = (output / "table.md").read_text()
    assert all(f"| {name} |" in table for name in summary["methods"])
    per_query = pq.read_table(output / "per_query.parquet").to_pylist()
    mine = [row["spearman"] for row in per_query if row["method"] == "student"]
    assert np.mean(mine) == pytest.approx(summary["methods"]["student"]["metrics"]["per_query_spearman"]["mean"])
    assert {row["method"] for row in per_query} == set(summary["methods"]) - {"teacher"}


def test_without_labels_there_is_no_task_and_no_group(runs: Runs, capsys: pytest.CaptureFixture[str]) -> None:
    summary = run(runs.config(labels=None), "")
    assert summary["counts"]["positives"] is None and summary["counts"]["task_queries"] == 0
    metrics = summary["methods"]["student"]["metrics"]
    assert metrics["poison_auprc"] is None and metrics["within_group_spearman"] is None and metrics["per_query_spearman"] is not None
    assert "Task" not in capsys.readouterr().out


def test_queries_are_at_most_half_of_the_test_rows_and_never_candidates(finished_runs: Runs) -> None:
    teacher = load_teacher(finished_runs.folder / "teacher")
    rows = select_test_rows(teacher, load_student(finished_runs.folder / "student", teacher), seed=0)
    judged = make_judged(rows, [], Labels(), num_queries=1000)
    assert (len(judged.queries), len(judged.candidates)) == (12, 12)
    assert {row.id for row in (*judged.queries, *judged.candidates)} == {row.id for row in finished_runs.rows[16:]}
    assert [row.id for row in rows] != sorted(row.id for row in rows), "the order is shuffled, so that ties favour nobody"


def test_a_near_copy_of_a_training_row_in_the_test_split_fails_the_run(runs: Runs) -> None:
    original = runs.rows[0]
    copy = replace(original, id="row20", response=original.response + " ")
    plant(runs, 20, copy)
    with pytest.raises(DataError, match=r"test rows: 1 of 24 have a near-copy"):
        run(runs.config(), "")
    assert not (runs.folder / "eval").exists() and not list(runs.folder.glob(".eval*")), "nothing half-written"


@pytest.mark.parametrize(
    ("ending", "message"), [("", r"'query0' is the training row 'row3'"), (" ", r"task queries: 1 of 5 have a near-copy")]
)
def test_a_task_query_that_the_distillation_saw_fails_the_run(runs: Runs, ending: str, message: str) -> None:
    leaked = replace(runs.rows[3], id="query0", response=runs.rows[3].response + ending)
    write_examples(runs.folder / "teacher" / "queries.parquet", [leaked, *runs.queries[1:]])
    with pytest.raises(DataError, match=message):
        run(runs.config(), "")


@pytest.mark.parametrize(
    ("name", "value"),
    [("rows_fingerprint", "f" * 16), ("decoder_fingerprint", "f" * 16), ("teacher_method", "tracin"), ("teacher_seed", 7)],
)
def test_a_student_of_another_teacher_is_refused_with_both_sides(runs: Runs, name: str, value: object) -> None:
    edit_record(runs.folder / "student", **{name: value})
    with pytest.raises(RunError, match=rf"student: {name} is {value!r}, but .*teacher has '?\w+'?; expected"):
        run(runs.config(), "")


def test_a_compared_student_of_another_split_is_refused(runs: Runs) -> None:
    other = runs.copy("other")
    parts = ["test", *PARTS[1:]]
    pq.write_table(pa.table({"id": [row.id for row in runs.rows], "part": parts}), other / "split.parquet")
    with pytest.raises(RunError, match=r"other: 1 of 40 rows stand on another side"):
        run(runs.config(compare={"other": str(other)}), "")


def test_rows_features_and_text_formats_of_something_else_are_refused(runs: Runs) -> None:
    student, teacher = runs.folder / "student", runs.folder / "teacher"
    text_format = student / "encoder" / "text_format.json"
    original = text_format.read_text()
    text_format.write_text(original.replace("100", "99"))
    with pytest.raises(RunError, match=r"max_prompt_chars=99.*max_prompt_chars=100"):
        run(runs.config(), "")
    text_format.write_text(original)
    make_features(runs.folder / "others", make_rows(40, "row", seed=9), np.eye(40, 16, dtype=np.float32) + 1, 0)
    manifest = teacher / "features" / "seed-0" / "rows" / "manifest.json"
    manifest.write_text((runs.folder / "others" / "manifest.json").read_text())
    with pytest.raises(RunError, match=r"seed-0/rows: features of rows \w+, expected \w+"):
        run(runs.config(), "")
    write_examples(teacher / "rows.parquet", runs.rows[::-1])
    with pytest.raises(RunError, match=r"rows\.parquet: rows \w+, expected \w+ as in run.json"):
        run(runs.config(), "")


def test_a_split_of_other_rows_is_refused(runs: Runs) -> None:
    pq.write_table(pa.table({"id": ["x", "y"], "part": ["test", "train"]}), runs.folder / "student" / "split.parquet")
    with pytest.raises(RunError, match=r"split.parquet: 2 ids that are not, in order, the 40"):
        run(runs.config(), "")


def test_a_row_without_label_fails_the_run(runs: Runs) -> None:
    labels = runs.folder / "labels.jsonl"
    labels.write_text("".join(labels.read_text().splitlines(keepends=True)[:-2]))
    with pytest.raises(DataError, match=r"labels.jsonl: no label for row 'row3[89]' \(2 of 24 test rows have none\)"):
        run(runs.config(), "")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"poisoned": 1', '"poisoned": 2', r"column 'poisoned' holds 2; expected 1, 0, true or false"),
        ('"poisoned": 1', '"poisoned": 0', r"0 of 24 test rows are positive"),
        ('"poisoned"', '"attack"', r"no column 'poisoned'"),
    ],
)
def test_labels_that_say_nothing_fail_the_run(runs: Runs, old: str, new: str, message: str) -> None:
    labels = runs.folder / "labels.jsonl"
    labels.write_text(labels.read_text().replace(old, new))
    with pytest.raises(DataError, match=message):
        run(runs.config(), "")


def test_labels_may_be_words_numbers_or_booleans(runs: Runs) -> None:
    labels = runs.folder / "labels.jsonl"
    words = labels.read_text().replace('"poisoned": 1', '"poisoned": "True"').replace('"poisoned": 0', '"poisoned": false', 20)
    labels.write_text(words)
    assert run(runs.config(), "")["counts"]["positives"] == 6


def test_positive_labels_without_queries_to_ask_fail_the_run(runs: Runs) -> None:
    (runs.folder / "teacher" / "queries.parquet").unlink()
    with pytest.raises(DataError, match=r"the teacher run has no queries"):
        run(runs.config(), "")


def test_too_few_test_rows_fail_the_run() -> None:
    with pytest.raises(DataError, match=r"test split: 3 rows; expected at least 5"):
        make_judged(
            [Example(id=str(place), context=(Turn(role="user", content="x"),), response="y") for place in range(3)], [], Labels(), 2
        )


@pytest.mark.parametrize("changes", [{"num_queries": 0}, {"top": 0}, {"bootstrap_draws": 0}, {"compare": {"bm25": "x"}}])
def test_settings_out_of_range_are_refused(finished_runs: Runs, changes: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(changes))):
        finished_runs.config(**changes)


def test_labels_that_name_no_column_are_refused(finished_runs: Runs) -> None:
    source = finished_runs.config().labels
    assert source is not None
    with pytest.raises(ConfigError, match="positive and group are both null"):
        LabelsConfig(source=source.source)


def test_a_yaml_file_gives_the_config(tmp_path: Path) -> None:
    path = tmp_path / "eval.yaml"
    path.write_text(
        "teacher: t\nstudent: s\noutput: o\ncompare: {reference_recipe: r}\n"
        "labels: {source: {paths: [pool.jsonl.gz], columns: {prompt: question}}, positive: label}\n"
    )
    config, resolved = parse_config(EvalConfig, [str(path), "--top", "3"], "eval")
    assert config.labels is not None
    assert (config.labels.source.columns.prompt, config.labels.positive, config.labels.group) == ("question", "label", None)
    assert (config.compare, config.top, config.wandb_project) == ({"reference_recipe": "r"}, 3, None)
    path.write_text(resolved)
    assert parse_config(EvalConfig, [str(path)], "eval") == (config, resolved)
