from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from scipy.stats import spearmanr
from sentence_transformers import SentenceTransformer
from sklearn.metrics import average_precision_score, roc_auc_score

from eval.compare import CompareConfig, compare
from eval.config import METHODS, EvalConfig, GateConfig, TaskConfig
from eval.data import TeacherRun, load_teacher
from eval.fidelity import NAMES
from eval.floors import RANDOM_DRAWS
from eval.judged import Judged, draw_folds
from eval.stage import make_judged, open_runs, run
from eval.task_metrics import CURVE_SHARES, DETECTION, MISLABEL
from influcoder.errors import ConfigError, DataError, GateError, RunError
from influcoder.examples import Example, fingerprint, write_examples
from influcoder.features import load_features
from influcoder.influence.decoder import Decoder
from influcoder.influence.gradients import GradientConfig, GradientProjector
from influcoder.influence.tokens import tokenize
from influcoder.program import parse_config, run_program
from influcoder.readers import DataSource
from influcoder.runs import open_run
from tests.eval.fake_runs import (
    DIM,
    FOLDS,
    PARTS,
    SEEDS,
    Runs,
    edit_record,
    make_decoder,
    make_features,
    make_rows,
    make_teacher,
    parts_of_fold,
)

FLOORS = {"untrained_encoder", "query_blind", "bm25", "bm25_response", "rep_sim", "rep_sim_mean", "loss", "length", "random"}
BLIND = ("query_blind", "length", "loss")
OWN = {"teacher", "loss", "length", "random"}
"""methods that know what a row does to itself"""
TEST_ROWS = range(16, 40)
NO_ANSWERS = ("", "unsure", None)
NO_GATES = GateConfig(trained_share=None, randomised_share=None, cardinality_share=None, shuffled_margin=None)
METRICS = {
    *NAMES,
    *(f"poison_{metric}" for metric in DETECTION),
    *(f"facts_{metric}" for metric in ("recall_at_2", "mrr", "map")),
    *(f"wrong_{metric}" for metric in MISLABEL),
}


@dataclass(frozen=True)
class Finished:
    """An eval run and what it was made from."""

    runs: Runs
    output: Path
    summary: dict[str, Any]

    def table(self, name: str) -> list[dict[str, Any]]:
        """Read one of its parquet tables."""
        rows: list[dict[str, Any]] = pq.read_table(self.output / f"{name}.parquet").to_pylist()
        return rows

    def figure(self, method: str, metric: str) -> dict[str, Any]:
        """Return a figure of the summary that is there."""
        found: dict[str, Any] = self.summary["methods"][method]["metrics"][metric]
        return found


def facts_of(teacher: TeacherRun, rows: Sequence[int] = TEST_ROWS, queries: Sequence[int] = (0, 2, 4)) -> dict[str, list[str]]:
    """Return by query the two rows that the teacher ranks highest: whoever joins the links rightly sees it find them all."""
    scores = teacher.scores(0).values
    best = {number: sorted(rows, key=lambda row: -scores[number, row])[:2] for number in queries}
    return {teacher.queries[number].id: [teacher.rows[row].id for row in found] for number, found in best.items()}


def finish(runs: Runs, **changes: object) -> Finished:
    """Judge; what the run wrote is read back."""
    config = runs.config(**changes)
    run(config, "seed: 0\n")
    output = Path(config.output)
    return Finished(runs, output, json.loads((output / "summary.json").read_text()))


@pytest.fixture(scope="module")
def finished(finished_runs: Runs, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """Every kind of task, a reference, a control."""
    folder = Path(shutil.copytree(finished_runs.folder, tmp_path_factory.mktemp("judged") / "runs"))
    runs = Runs(folder, finished_runs.rows, finished_runs.queries)
    teacher = load_teacher(folder / "teacher")
    facts, norms = facts_of(teacher), teacher.features(0, "rows").norms
    heavy = (np.array(TEST_ROWS)[np.argsort(-norms[TEST_ROWS.start :])]).tolist()
    answers = {runs.rows[place].id: "bad" if place in heavy[:5] else "good" for place in range(len(runs.rows))}
    answers |= {runs.rows[place].id: cell for place, cell in zip(heavy[-len(NO_ANSWERS) :], NO_ANSWERS, strict=True)}
    wrong = runs.write("wrong.jsonl", [{"id": row_id, "answer": answer} for row_id, answer in answers.items()])
    tasks = {
        "poison": TaskConfig(rows=runs.labels, positive="poisoned"),
        "facts": TaskConfig(
            kind="retrieval",
            rows=runs.labels,
            queries=runs.write("facts.jsonl", [{"id": name} for name in facts]),
            links=runs.write("links.jsonl", [{"id": name, "row_ids": rows} for name, rows in facts.items()]),
            cutoff=2,
        ),
        "wrong": TaskConfig(kind="mislabel", rows=wrong, positive="answer", positive_values=("bad",), exclude_values=("unsure",)),
    }
    control = runs.copy("control", shuffle_target=True)
    reference = str(folder / "student")
    return finish(runs, tasks=tasks, compare={"reference_recipe": (reference,)}, shuffled_target=(control,))


@pytest.fixture(scope="module")
def cross_fitted(finished_runs: Runs, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """Two seeds of two folds."""
    output = str(tmp_path_factory.mktemp("cross_fitted") / "eval")
    return finish(finished_runs, student=finished_runs.cross_fitted, output=output, gates=NO_GATES)


def plant(runs: Runs, place: int, row: Example) -> None:
    """Put another row into the pool, and make every artifact agree with it."""
    rows = [*runs.rows[:place], row, *runs.rows[place + 1 :]]
    teacher = runs.folder / "teacher"
    write_examples(teacher / "rows.parquet", rows)
    for seed in (0, 1):
        folder = teacher / "features" / f"seed-{seed}" / "rows"
        (folder / "manifest.json").unlink()
        make_features(folder, rows, np.random.default_rng(seed).normal(size=(len(rows), DIM)).astype(np.float32), seed)
    for name in ("teacher", "student"):
        edit_record(runs.folder / name, rows_fingerprint=fingerprint(rows))


def new_teacher(runs: Runs, vectors: NDArray[np.float32], decoder: Decoder | None = None, rank: int = 4) -> None:
    """Put a teacher of other gradients in the place of the one that there is."""
    shutil.rmtree(runs.folder / "teacher")
    make_teacher(runs.folder / "teacher", runs.rows, runs.queries, vectors=vectors, decoder=decoder, rank=rank)


def encode(folder: Path, rows: Sequence[Example]) -> NDArray[np.float32]:
    texts = [f"Prompt: {row.prompt}\nResponse: {row.response}" for row in rows]
    return np.asarray(SentenceTransformer(str(folder), device="cpu").encode(texts, show_progress_bar=False))


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def judged_of(runs: Runs, **changes: object) -> Judged:
    config = runs.config(**changes)
    contestants = open_runs(config)
    return make_judged(config, contestants.teacher, contestants.student)


def test_summary_has_every_method_metric_and_count(finished: Finished) -> None:
    summary = finished.summary
    assert summary["schema_version"] == 2 and summary["split"] == "test"
    assert summary["target"] == {"method": "influcoder", "seed": 0, "exact": False, "decoder_fingerprint": "d" * 16}
    assert summary["counts"] == {
        "rows": 40, "train": 12, "validation": 4, "judged": 24, "folds": 1, "student_seeds": 1,
        "queries": 8, "candidates": 16, "task_queries": 5,
    }  # fmt: skip
    roles = {name: method["role"] for name, method in summary["methods"].items()}
    assert roles == {
        "teacher": "teacher",
        "teacher_second_seed": "ceiling",
        "student": "student",
        "reference_recipe": "reference",
        "shuffled_target": "control",
    } | dict.fromkeys(FLOORS, "floor")
    assert set(roles) - {"reference_recipe"} == set(METHODS)
    for name, method in summary["methods"].items():
        assert set(method["metrics"]) == METRICS
        expected = set(NAMES) if name == "teacher" else set()  # its fidelity to itself says nothing
        if name not in OWN | {"teacher_second_seed"}:
            expected |= {f"wrong_{metric}" for metric in MISLABEL}
        assert {metric for metric, value in method["metrics"].items() if value is None} == expected, name
        for value in method["metrics"].values():
            assert value is None or (set(value) - {"seeds"} == {"mean", "low", "high", "n"} and -1 <= value["low"] <= value["high"] <= 1)


def test_tasks_say_what_was_asked(finished: Finished) -> None:
    tasks = finished.summary["tasks"]
    positives = sum(place % 4 == 0 for place in TEST_ROWS)
    common, answered = {"candidates": 24, "folds": 1}, 24 - len(NO_ANSWERS)
    assert tasks == {
        "poison": {"kind": "detection", "primary": "auprc", "metrics": list(DETECTION), "queries": 5, **common,
                   "positives": positives, "base_rate": positives / 24},
        "facts": {"kind": "retrieval", "primary": "map", "metrics": ["recall_at_2", "mrr", "map"], "queries": 3, **common,
                  "linked": 6, "answered_queries": 3},
        "wrong": {"kind": "mislabel", "primary": "auroc", "metrics": list(MISLABEL), "queries": 0, "candidates": answered,
                  "folds": 1, "positives": 5, "base_rate": 5 / answered},
    }  # fmt: skip


def test_figures_say_what_the_fixture_is(finished: Finished) -> None:
    methods = finished.summary["methods"]
    assert 0.9 < finished.figure("teacher_second_seed", "per_query_spearman")["mean"] < 0.99, "two seeds agree, but not wholly"
    assert methods["reference_recipe"]["metrics"] == methods["student"]["metrics"]
    assert methods["untrained_encoder"]["metrics"] != methods["student"]["metrics"]
    for metric in ("facts_recall_at_2", "facts_mrr", "facts_map", "wrong_auroc", "wrong_auprc", "wrong_recall_at_positives"):
        assert finished.figure("teacher", metric)["mean"] == 1, "its own best rows were called the answers"
    assert finished.figure("student", "facts_map")["mean"] < 0.9
    for blind in BLIND:
        assert finished.figure(blind, "residual_spearman")["mean"] == 0
        assert finished.figure(blind, "poison_auprc")["mean"] == pytest.approx(finished.summary["tasks"]["poison"]["base_rate"])
        assert finished.figure(blind, "poison_auroc")["mean"] == pytest.approx(0.5), "with contrast nothing is left of a row's own level"


def test_costs_are_measured_and_weighed_against_the_teachers(finished: Finished) -> None:
    costs = {name: method["cost"] for name, method in finished.summary["methods"].items()}
    assert costs["teacher"]["bytes_per_row"] == 2 * DIM + 4 and costs["student"]["bytes_per_row"] == 4 * 8
    assert all((cost["setup_seconds"] > 0) == (name in ("student", "reference_recipe", "shuffled_target")) for name, cost in costs.items())
    assert all((cost["seconds_per_1000"] > 0) == (name not in ("length", "random")) for name, cost in costs.items())
    teacher, student = costs["teacher"], costs["student"]
    seconds = open_run(finished.runs.folder / "student", "student")["seconds"]
    assert student["setup_seconds"] == pytest.approx((12 + 4) * teacher["seconds_per_1000"] / 1000 + seconds)
    saved = (teacher["seconds_per_1000"] - student["seconds_per_1000"]) / 1000
    assert student["break_even_rows"] == (pytest.approx(student["setup_seconds"] / saved) if saved > 0 else None)
    assert costs["bm25"]["break_even_rows"] is None, "it has no set-up to win back"


def test_the_students_lead_is_the_difference_of_the_figures(finished: Finished) -> None:
    leads = finished.summary["student_minus"]
    assert set(leads) == set(finished.summary["methods"]) - {"student", "shuffled_target"}
    compared = {"per_query_spearman", "residual_spearman", "poison_auprc", "facts_map", "wrong_auroc"}
    for name, lead in leads.items():
        assert set(lead) == compared
        for metric, gap in lead.items():
            mine, theirs = finished.figure("student", metric), finished.figure(name, metric)
            if mine is None or theirs is None:
                assert gap is None
            else:
                assert gap["value"] == pytest.approx(mine["mean"] - theirs["mean"])
                assert gap["low"] <= gap["value"] <= gap["high"] or name == "reference_recipe"
    assert leads["reference_recipe"]["per_query_spearman"] == {"value": 0, "low": 0, "high": 0, "p": 1}
    assert leads["teacher"]["per_query_spearman"] is None and leads["teacher"]["poison_auprc"] is not None


def test_gates_are_written_with_their_limits(finished: Finished) -> None:
    gates, methods = finished.summary["gates"], finished.summary["methods"]
    assert set(gates) == {"randomised", "cardinality", "shuffled"} and all(gate["passed"] for gate in gates.values())
    assert gates["randomised"]["limit"] == pytest.approx(0.5 * finished.figure("teacher_second_seed", "per_query_spearman")["mean"])
    assert gates["cardinality"]["value"] == methods["student"]["top10_cardinality"]
    assert gates["cardinality"]["limit"] == pytest.approx(0.25 * methods["teacher"]["top10_cardinality"])
    best = max(finished.figure(name, "per_query_spearman")["mean"] for name in FLOORS)
    assert gates["shuffled"]["value"] == finished.figure("shuffled_target", "per_query_spearman")["mean"]
    assert gates["shuffled"]["limit"] == pytest.approx(best + 0.05)
    assert finished.summary["leakage"] == {"task_queries_with_a_near_copy_in_the_test_rows": 0}
    assert {name: method["constant_queries"] for name, method in methods.items() if method["constant_queries"]} == {}
    for blind in BLIND:
        assert methods[blind]["top10_cardinality"] == pytest.approx(10 / 16), "the same ten rows for every query"


def test_the_run_holds_record_table_and_pictures(finished: Finished) -> None:
    record = open_run(finished.output, "eval")
    assert record["seed"] == 0
    assert {name: record[name] for name in ("target", "counts", "query_set")} == {
        name: finished.summary[name] for name in ("target", "counts", "query_set")
    }
    assert (finished.output / "config.yaml").read_text() == "seed: 0\n"
    for name in ("fidelity", "tasks"):
        assert (finished.output / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    table = (finished.output / "table.md").read_text()
    assert all(f"| {name} |" in table for name in finished.summary["methods"])
    assert all(f"**{name}: " in table for name in finished.summary["tasks"])


def test_the_run_says_what_it_was_made_of_and_reports(finished: Finished) -> None:
    commits = [open_run(finished.runs.folder / name, name)["git_commit"] for name in ("teacher", "student")]
    assert finished.summary["made_of"] == {"decoder": "decoder", "teacher_commit": commits[0], "student_commits": commits[1:]}
    report = json.loads((finished.output / "report.json").read_text())
    assert len(report["verdicts"]) == 3 + len(finished.summary["tasks"])
    page = (finished.output / "report.html").read_text()
    assert all(f"<h2>{title}</h2>" in page for title in ("Verdict", "Fidelity", "Task: poison", "Cases", "What was measured"))
    assert (finished.output / "tables" / "poison.csv").read_text().startswith("method,role,AUPRC")


@pytest.mark.parametrize("name", ["finished", "cross_fitted"])
def test_cases_are_those_of_the_figures_of_each_query(name: str, request: pytest.FixtureRequest) -> None:
    done: Finished = request.getfixturevalue(name)
    content = json.loads((done.output / "cases.json").read_text())
    mine = {row["query_id"]: row for row in done.table("per_query") if row["method"] == "student" and row["seed"] == 0}
    assert len(content["cases"]) == 6
    ordered = sorted((row["spearman"] for row in mine.values()), reverse=True)
    for case, expected in zip(content["cases"], [*ordered[:3], *ordered[::-1][:3]], strict=True):
        assert case["spearman"] == pytest.approx(expected) == pytest.approx(mine[case["query_id"]]["spearman"])
        assert case["fold"] == mine[case["query_id"]]["fold"]
    features = load_features(done.runs.folder / "teacher" / "features" / "seed-0" / "rows")
    places = {row.id: place for place, row in enumerate(done.runs.rows)}
    for case in content["cases"]:
        scores = features.as_rows @ features.as_rows[places[case["query_id"]]]
        found = [float(scores[places[row["row_id"]]]) for row in case["teacher"]]
        assert found == sorted(found, reverse=True)
        assert all(row["positive"] == ["poison"] * (places[row["row_id"]] % 4 == 0) for row in case["teacher"] if name == "cross_fitted")
    second = np.corrcoef(content["ranks"]["teacher"], content["ranks"]["teacher_second_seed"])[0, 1]
    assert second > 0.9 > np.corrcoef(content["ranks"]["teacher"], content["ranks"]["student"])[0, 1]


@pytest.mark.parametrize("name", ["finished", "cross_fitted"])
def test_estimates_give_every_figure_and_its_interval_again(name: str, request: pytest.FixtureRequest) -> None:
    done: Finished = request.getfixturevalue(name)
    rows = done.table("estimates")
    found = {(row["method"], row["metric"]): row for row in rows}
    assert len(found) == len(rows)
    written = {(method, metric) for method, each in done.summary["methods"].items() for metric, value in each["metrics"].items() if value}
    assert set(found) == written
    for (method, metric), row in found.items():
        figure = done.figure(method, metric)
        assert row["value"] == figure["mean"] and row["n"] == figure["n"] and len(row["draws"]) == 20
        assert np.quantile(row["draws"], [0.025, 0.975]) == pytest.approx([figure["low"], figure["high"]])
        assert row["seeds"] == figure.get("seeds", [figure["mean"]])
        assert np.mean(row["seeds"]) == pytest.approx(figure["mean"])


@pytest.mark.parametrize("name", ["finished", "cross_fitted"])
def test_per_query_figures_average_to_those_of_the_summary(name: str, request: pytest.FixtureRequest) -> None:
    done: Finished = request.getfixturevalue(name)
    rows = done.table("per_query")
    texts, skills = (
        {row.id: row for row in done.runs.rows},
        {line["id"]: line["skill"] for line in read_lines(done.runs.folder / "labels.jsonl")},
    )
    assert {row["method"] for row in rows} == set(done.summary["methods"]) - {"teacher"}
    for method in {row["method"] for row in rows}:
        mine = [row for row in rows if row["method"] == method]
        assert np.mean([row["spearman"] for row in mine]) == pytest.approx(done.figure(method, "per_query_spearman")["mean"])
        seeds = RANDOM_DRAWS if method == "random" else SEEDS if name == "cross_fitted" and method == "student" else 1
        assert len(mine) == seeds * 8 == len({(row["query_id"], row["seed"]) for row in mine})
        for row in mine:
            assert (row["length"], row["group"]) == (len(texts[row["query_id"]].response), skills[row["query_id"]])
        strata = done.summary["methods"][method]["strata"]["group"]
        for skill, figure in strata.items():
            assert figure["mean"] == pytest.approx(np.mean([row["spearman"] for row in mine if row["group"] == skill]))
        assert set(strata) == {row["group"] for row in mine}


@pytest.mark.parametrize("name", ["finished", "cross_fitted"])
def test_per_row_scores_give_scikit_learns_figures(name: str, request: pytest.FixtureRequest) -> None:
    done: Finished = request.getfixturevalue(name)
    rows, folds = done.table("per_row"), done.summary["counts"]["folds"]
    truths = {row.id: place % 4 == 0 for place, row in enumerate(done.runs.rows)}
    assert {row["task"] for row in rows} == set(done.summary["tasks"]) - {"facts"}
    for method in done.summary["methods"]:
        mine = [row for row in rows if row["method"] == method and row["task"] == "poison"]
        seeds = len({row["seed"] for row in mine})
        assert seeds == (RANDOM_DRAWS if method == "random" else SEEDS if name == "cross_fitted" and method == "student" else 1)
        figures = []
        for seed in range(seeds):
            for fold in range(folds):
                asked = [row for row in mine if (row["seed"], row["fold"]) == (seed, fold)]
                assert len({row["row_id"] for row in asked}) == len(asked) == done.summary["counts"]["judged"] / folds
                assert [row["positive"] for row in asked] == [truths[row["row_id"]] for row in asked]
                figures.append(average_precision_score([row["positive"] for row in asked], [row["score"] for row in asked]))
        assert done.figure(method, "poison_auprc")["mean"] == pytest.approx(np.mean(figures), abs=1e-6), method


def test_mislabelled_rows_are_ranked_by_what_they_do_to_themselves(finished: Finished) -> None:
    rows = [row for row in finished.table("per_row") if row["task"] == "wrong"]
    assert {row["method"] for row in rows} == OWN | {"teacher_second_seed"}
    norms = load_features(finished.runs.folder / "teacher" / "features" / "seed-0" / "rows")
    own = dict(zip(norms.manifest.ids, norms.norms**2, strict=True))
    judged = {row.id for place, row in enumerate(finished.runs.rows) if place in TEST_ROWS}
    cells = {line["id"]: line["answer"] for line in read_lines(finished.runs.folder / "wrong.jsonl") if line["id"] in judged}
    answers = {row_id: cell == "bad" for row_id, cell in cells.items() if cell not in NO_ANSWERS}
    for method in OWN:
        figures = []
        for seed in range(RANDOM_DRAWS if method == "random" else 1):
            mine = [row for row in rows if (row["method"], row["seed"]) == (method, seed)]
            assert {row["row_id"]: row["positive"] for row in mine} == answers
            truth, scores = [row["positive"] for row in mine], [row["score"] for row in mine]
            figures.append(roc_auc_score(truth, scores))
        assert finished.figure(method, "wrong_auroc")["mean"] == pytest.approx(np.mean(figures))
        if method == "teacher":
            assert scores == pytest.approx([own[row["row_id"]] for row in mine])


def test_curves_are_those_of_the_summary(finished: Finished) -> None:
    rows = finished.table("curves")
    for name, method in finished.summary["methods"].items():
        for task, recall in method["curves"].items():
            mine = [row for row in rows if (row["method"], row["task"]) == (name, task)]
            assert [row["inspected"] for row in mine] == pytest.approx(CURVE_SHARES)
            assert [row["recall"] for row in mine] == pytest.approx(recall, abs=1e-5)
            assert recall == sorted(recall) and (recall[0], recall[-1]) == (0, 1)
            at_ten = recall[int(np.argmin(np.abs(CURVE_SHARES - 0.1)))]
            assert at_ten == pytest.approx(finished.figure(name, f"{task}_recall_at_10_percent")["mean"], abs=1e-5)
    assert {(row["task"], row["method"]) for row in rows} == {
        (task, name) for name, method in finished.summary["methods"].items() for task in method["curves"]
    }


def test_a_run_compared_with_itself_says_what_its_summary_says(finished: Finished) -> None:
    folder = str(finished.output)
    found = {line[0]: line for line in compare(CompareConfig(first=folder, second=folder, second_method="bm25")).lines}
    for metric, gap in finished.summary["student_minus"]["bm25"].items():
        if gap is not None:
            assert float(found[metric][3].split()[0]) == pytest.approx(gap["value"], abs=0.005)
            assert float(found[metric][4]) == pytest.approx(gap["p"], abs=0.0005)


def test_without_tasks_groups_and_gates_fidelity_alone_is_judged(runs: Runs, capsys: pytest.CaptureFixture[str]) -> None:
    (runs.folder / "teacher" / "queries.parquet").unlink()
    summary = run(runs.config(tasks={}, groups=None, gates=NO_GATES), "")
    assert (summary["tasks"], summary["gates"], summary["counts"]["task_queries"], summary["query_set"]["task"]) == ({}, {}, 0, None)
    metrics = summary["methods"]["student"]["metrics"]
    assert set(metrics) == set(NAMES)
    assert metrics["within_group_spearman"] is None and metrics["per_query_spearman"] is not None
    printed = capsys.readouterr().out
    assert "Fidelity to influcoder" in printed and "by group" not in printed and "to be found" not in printed
    assert not (runs.folder / "eval" / "tasks.png").exists()


def test_every_row_is_judged_once_by_the_run_that_has_not_seen_it(cross_fitted: Finished) -> None:
    """The student's figures again, by way of each fold's encoder, SciPy and the teacher's features."""
    done, rows = cross_fitted, {row.id: row for row in cross_fitted.runs.rows}
    counts = done.summary["counts"]
    assert (counts["judged"], counts["folds"], counts["student_seeds"], counts["candidates"]) == (40, FOLDS, SEEDS, 16)
    assert done.summary["split"] == "2 folds"
    fold_of = {row.id: parts_of_fold(40, FOLDS, 1)[place] == "test" for place, row in enumerate(done.runs.rows)}
    detected = [row for row in done.table("per_row") if row["method"] == "student"]
    assert Counter((row["row_id"], row["seed"]) for row in detected) == Counter((name, seed) for name in rows for seed in range(SEEDS))
    assert all(row["fold"] == fold_of[row["row_id"]] for row in detected)
    features = load_features(done.runs.folder / "teacher" / "features" / "seed-0" / "rows")
    per_query = [row for row in done.table("per_query") if row["method"] == "student"]
    asking = {row["query_id"] for row in per_query}
    for folder in map(Path, done.runs.cross_fitted):
        seed, fold = int(folder.name.split("-")[1]), int(folder.name.split("-")[3])
        ids = [name for name in rows if fold_of[name] == fold]
        encoded, stored = encode(folder / "encoder", [rows[name] for name in ids]), features.vectors[features.places(ids)]
        ranked = [place for place, name in enumerate(ids) if name not in asking]
        mine = {row["query_id"]: row["spearman"] for row in per_query if (row["seed"], row["fold"]) == (seed, fold)}
        assert len(mine) == 4 and len(ranked) == 16
        for query, found in mine.items():
            place = ids.index(query)
            expected = spearmanr(encoded[ranked] @ encoded[place], stored[ranked] @ stored[place]).statistic
            assert found == pytest.approx(expected, abs=0.02), "up to the order of nearly equal scores"


def test_a_control_of_one_fold_is_judged_there_and_finds_nothing_elsewhere(runs: Runs) -> None:
    control = runs.copy("control", "seed-0-fold-0", shuffle_target=True)
    done = finish(
        runs,
        student=runs.cross_fitted,
        shuffled_target=(control,),
        gates=GateConfig(trained_share=None, randomised_share=None, shuffled_margin=1.0),
    )
    mine = [row for row in done.table("per_query") if row["method"] == "shuffled_target"]
    assert [row["fold"] for row in mine] == [0] * 4
    figure = done.figure("shuffled_target", "per_query_spearman")
    assert figure["mean"] == pytest.approx(np.mean([row["spearman"] for row in mine])) and figure["n"] == 4
    assert done.figure("shuffled_target", "poison_auprc") is None
    same = [row["spearman"] for row in done.table("per_query") if (row["method"], row["seed"], row["fold"]) == ("student", 0, 0)]
    assert [row["spearman"] for row in mine] == same, "it is that fold's encoder under another name"
    assert done.summary["gates"]["shuffled"]["value"] == figure["mean"]


def test_a_fold_with_nothing_to_find_is_refused(runs: Runs) -> None:
    rows = [{"id": row.id, "label": int(place in (1, 2))} for place, row in enumerate(runs.rows)]  # both in the first fold
    task = TaskConfig(rows=runs.write("few.jsonl", rows))
    with pytest.raises(DataError, match=r"tasks.few: 0 of 20 judged rows of fold 1 are positive; .*in every fold"):
        run(runs.config(student=runs.cross_fitted, tasks={"few": task}), "")


def test_queries_are_at_most_half_of_the_test_rows_and_never_candidates(finished_runs: Runs) -> None:
    judged = judged_of(finished_runs, num_queries=1000)
    (fold,) = judged.folds
    assert (len(fold.queries), len(fold.candidates)) == (12, 12)
    assert sorted([*fold.queries, *fold.candidates]) == list(range(24))
    assert {row.id for row in judged.rows} == {finished_runs.rows[place].id for place in TEST_ROWS}
    assert [row.id for row in judged.rows] != sorted(row.id for row in judged.rows), "the order is shuffled, so that ties favour nobody"
    other = judged_of(finished_runs, num_queries=1000, seed=1)
    assert [row.id for row in judged.rows] != [row.id for row in other.rows]


def test_queries_and_rows_of_cross_fitted_students_stand_in_their_folds(finished_runs: Runs) -> None:
    judged = judged_of(finished_runs, student=finished_runs.cross_fitted, num_queries=9)
    parts = {row.id: place for place, row in enumerate(finished_runs.rows)}
    assert [len(fold.queries) for fold in judged.folds] == [5, 5]
    for number, fold in enumerate(judged.folds):
        assert not set(fold.queries) & set(fold.candidates)
        assert {parts_of_fold(40, FOLDS, number)[parts[judged.rows[place].id]] for place in fold.rows} == {"test"}
    assert sorted(place for fold in judged.folds for place in fold.rows) == list(range(40))


def test_too_few_test_rows_fail_the_run() -> None:
    with pytest.raises(DataError, match=r"test split: 3 rows; expected at least 5"):
        draw_folds(np.zeros(3, dtype=np.int64), 2, 0)
    with pytest.raises(DataError, match=r"test split: 2 rows; expected at least 5"):
        draw_folds(np.array([0] * 8 + [1] * 2), 4, 0)


def test_tasks_that_share_queries_ask_each_once_and_find_their_own(runs: Runs) -> None:
    def task(**settings: object) -> TaskConfig:
        return TaskConfig(rows=runs.labels, positive="poisoned", **settings)  # type: ignore[arg-type]

    asked = {"first": ["query4", "query1"], "second": ["query2", "query4"]}
    tasks = {name: task(queries=runs.write(f"{name}.jsonl", [{"id": query} for query in ids])) for name, ids in asked.items()}
    judged = judged_of(runs, tasks=tasks | {"wrong": task(kind="mislabel")})
    assert [query.id for query in judged.task_queries] == ["query1", "query2", "query4"]
    for name, ids in asked.items():
        found = judged.tasks[name]
        assert [judged.task_queries[place].id for place in found.queries] == ids
        assert found.weights.tolist() == [judged.task_queries[place].weight for place in found.queries]
        assert judged.task_asking(found).tolist() == (8 + found.queries).tolist()
    assert judged.tasks["wrong"].queries.tolist() == []
    assert len(judged_of(runs, tasks={"all": task()} | tasks).task_queries) == 5


def test_rows_may_be_matched_with_queries_instead_of_linked(runs: Runs) -> None:
    facts = {"query4": ["row17", "row30"], "query0": ["row18"], "query1": []}
    told = {row: query for query, rows in facts.items() for row in rows} | {"row3": "query1"}  # it is not judged
    rows = runs.write("told.jsonl", [{"id": row.id, "fact": told.get(row.id, "none")} for row in runs.rows])
    queries = runs.write("facts.jsonl", [{"id": query, "fact": query} for query in facts])
    links = runs.write("links.jsonl", [{"id": query, "row_ids": ids} for query, ids in facts.items()])
    matched = TaskConfig(kind="retrieval", rows=rows, queries=queries, match=("fact",))
    judged = judged_of(runs, tasks={"matched": matched, "linked": replace(matched, match=(), links=links)})
    for task in judged.tasks.values():
        found = {
            judged.task_queries[place].id: sorted(row.id for row, mine in zip(judged.rows, linked, strict=True) if mine)
            for place, linked in zip(task.queries, task.linked, strict=True)
        }
        assert found == facts


@pytest.mark.parametrize("of", [0, 13])
def test_a_near_copy_of_a_distilled_row_in_the_test_split_fails_the_run(runs: Runs, of: int) -> None:
    assert PARTS[of] == ("train" if of == 0 else "validation")
    plant(runs, 20, replace(runs.rows[of], id="row20", response=runs.rows[of].response + " "))
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
    assert not (runs.folder / "eval").exists() and not list(runs.folder.glob(".eval*"))


@pytest.mark.parametrize(
    ("name", "value"),
    [("rows_fingerprint", "f" * 16), ("decoder_fingerprint", "f" * 16), ("teacher_method", "tracin"), ("teacher_seed", 7)],
)
def test_a_student_of_another_teacher_is_refused_with_both_sides(runs: Runs, name: str, value: object) -> None:
    edit_record(runs.folder / "student", **{name: value})
    with pytest.raises(RunError, match=rf"student: {name} is {value!r}, but .*teacher has '?\w+'?; expected"):
        run(runs.config(), "")


@pytest.mark.parametrize("where", ["compare", "shuffled_target"])
def test_another_student_of_another_split_is_refused(runs: Runs, where: str) -> None:
    other = runs.copy("other", shuffle_target=where == "shuffled_target")
    table = pa.table({"id": [row.id for row in runs.rows], "part": ["test", *PARTS[1:]]})
    pq.write_table(table, Path(other) / "split.parquet")
    with pytest.raises(RunError, match=r"other: 1 of 40 rows stand on another side"):
        run(runs.config(**{where: (other,) if where == "shuffled_target" else {"other": (other,)}}), "")


@pytest.mark.parametrize("where", ["student", "compare"])
def test_a_control_in_a_students_place_and_the_reverse_are_refused(runs: Runs, where: str) -> None:
    student, control = str(runs.folder / "student"), runs.copy("control", shuffle_target=True)
    with pytest.raises(RunError, match=r"control: shuffle_target is True, expected False") as caught:
        run(runs.config(**{where: (control,) if where == "student" else {"other": (control,)}}), "")
    assert "\n" not in str(caught.value)
    with pytest.raises(RunError, match=r"student: shuffle_target is False, expected True"):
        run(runs.config(shuffled_target=(student,)), "")


def test_cross_fitted_students_that_do_not_fit_are_refused_in_one_line(runs: Runs) -> None:
    folds = runs.cross_fitted
    for chosen, message in (
        (folds[:3], r"folds \[0\] of 2, seed 1; expected \[0, 1\]"),
        ((*folds, folds[0]), r"folds \[0, 0, 1\] of 2, seed 0"),
    ):
        with pytest.raises(RunError, match=message) as caught:
            run(runs.config(student=chosen), "")
        assert "\n" not in str(caught.value)
    pq.write_table(pa.table({"id": [row.id for row in runs.rows], "part": PARTS}), Path(folds[-1]) / "split.parquet")
    with pytest.raises(RunError, match=r"seed-1-fold-1: \d+ of 40 rows stand on another side") as caught:
        run(runs.config(student=folds), "")
    assert "\n" not in str(caught.value)
    assert not (runs.folder / "eval").exists()


def test_rows_features_and_text_formats_of_something_else_are_refused(runs: Runs) -> None:
    student, teacher = runs.folder / "student", runs.folder / "teacher"
    text_format = student / "encoder" / "text_format.json"
    original = text_format.read_text()
    text_format.write_text(original.replace("100", "99"))
    with pytest.raises(RunError, match=r"encoder: cuts texts to \(99, 99\) characters, but .*teacher to \(100, 100\); expected") as caught:
        run(runs.config(), "")
    assert "\n" not in str(caught.value)
    text_format.write_text(original)
    make_features(runs.folder / "others", make_rows(40, "row", seed=9), np.eye(40, DIM, dtype=np.float32) + 1, 0)
    shutil.rmtree(teacher / "features" / "seed-0" / "rows")
    shutil.copytree(runs.folder / "others", teacher / "features" / "seed-0" / "rows")
    with pytest.raises(RunError, match=r"seed-0/rows: features of rows \w+, expected \w+"):
        run(runs.config(), "")
    write_examples(teacher / "rows.parquet", runs.rows[::-1])
    with pytest.raises(RunError, match=r"rows\.parquet: rows \w+, expected \w+ as in run.json"):
        run(runs.config(), "")


def test_a_split_of_other_rows_is_refused(runs: Runs) -> None:
    pq.write_table(pa.table({"id": ["x", "y"], "part": ["test", "train"]}), runs.folder / "student" / "split.parquet")
    with pytest.raises(RunError, match=r"split.parquet: 2 ids that are not, in order, the 40"):
        run(runs.config(), "")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"poisoned": 1', '"poisoned": 2', r"tasks.poison: .*: 'row\d+': column 'poisoned' holds 2; expected 1, 0, true or false"),
        ('"poisoned": 1', '"poisoned": 0', r"0 of 24 judged rows are positive"),
        ('"poisoned"', '"attack"', r"no column 'poisoned'"),
        ('"row39"', '"row40"', r"row 'row40' is not in the teacher's pool \(1 of 40 are not\)"),
        ('"skill"', '"topic"', r"no column 'skill'"),
    ],
)
def test_labels_that_say_nothing_fail_the_run(runs: Runs, old: str, new: str, message: str) -> None:
    labels = Path(*runs.labels.paths)
    labels.write_text(labels.read_text().replace(old, new))
    with pytest.raises(DataError, match=message):
        run(runs.config(), "")


def test_a_judged_row_without_group_fails_the_run_but_is_no_candidate_of_a_task(runs: Runs) -> None:
    labels = Path(*runs.labels.paths)
    labels.write_text("".join(labels.read_text().splitlines(keepends=True)[:-2]))
    with pytest.raises(DataError, match=r"labels.jsonl: no row 'row3[89]' \(2 of 24 judged rows are not there\)"):
        run(runs.config(), "")
    judged = judged_of(runs, groups=None)
    assert {row.id for row, asked in zip(judged.rows, judged.tasks["poison"].candidates, strict=True) if not asked} == {"row38", "row39"}


def test_a_task_without_queries_to_ask_fails_the_run(runs: Runs) -> None:
    (runs.folder / "teacher" / "queries.parquet").unlink()
    with pytest.raises(DataError, match=r"the teacher run has no queries"):
        run(runs.config(), "")


def test_queries_that_the_teacher_does_not_know_fail_the_run(runs: Runs) -> None:
    queries = runs.write("asked.jsonl", [{"id": "query0"}, {"id": "query9"}])
    with pytest.raises(DataError, match=r"tasks.poison: .*asked.jsonl: query 'query9' is not among the teacher's \(1 of 2 are not\)"):
        run(runs.config(tasks={"poison": TaskConfig(rows=runs.labels, positive="poisoned", queries=queries)}), "")


def gradients(decoder: Decoder, rows: Sequence[Example], rank: int, dim: int) -> NDArray[np.float32]:
    """Return (2, N, dim): the rows' projected gradients under seeds 0 and 1, as the teacher takes them."""
    vectors = np.empty((2, len(rows), dim), np.float32)
    for positions, sketches in GradientProjector(decoder, GradientConfig(rank=rank, dim=dim, factors="random"), [0, 1]).project_all(
        tokenize(rows, decoder)
    ):
        vectors[:, positions] = sketches.numpy()
    return vectors


def test_a_teacher_that_learnt_nothing_fails_the_trained_and_the_randomised_gate(runs: Runs) -> None:
    """Gradients of a decoder that was never trained tell words in common, and any other untrained decoder of its width tells the same.

    Two random initialisations of width 128 agree to .6 to .8 (of width 16 to .2), seeds of the projection to .7 to .8.
    The same decoder beside features that come from no gradient, as everywhere else in this file, agrees with nothing and passes.
    """
    decoder = make_decoder(runs.rows, width=128)
    new_teacher(runs, gradients(decoder, [*runs.rows, *runs.queries], rank=16, dim=1024), decoder, rank=16)
    message = (
        r"eval: written, but not to be believed: trained \(.*: \d\.\d{3}, limit \d\.\d{3}\); randomised \(.*: 0\.\d{3}, limit 0\.\d{3}\)$"
    )
    with pytest.raises(GateError, match=message) as caught:
        run(runs.config(gates=GateConfig()), "")
    assert "\n" not in str(caught.value)
    open_run(runs.folder / "eval", "eval")
    summary = json.loads((runs.folder / "eval" / "summary.json").read_text())
    assert {name: gate["passed"] for name, gate in summary["gates"].items()} == {"trained": False, "randomised": False, "cardinality": True}
    gate, ceiling = summary["gates"]["randomised"], summary["methods"]["teacher_second_seed"]["metrics"]["per_query_spearman"]["mean"]
    assert gate["limit"] == pytest.approx(0.5 * ceiling) and gate["value"] > gate["limit"] + 0.1
    assert "| randomised | FAILED |" in (runs.folder / "eval" / "table.md").read_text()


def test_a_control_that_knows_the_truth_fails_the_shuffled_gate(
    runs: Runs, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The teacher here says what the student's encoder says, and the control is that encoder: as if the judge had leaked the target."""
    encoded = encode(runs.folder / "student" / "encoder", [*runs.rows, *runs.queries])
    new_teacher(runs, np.stack([encoded, encoded]))
    config = runs.config(
        shuffled_target=(runs.copy("control", shuffle_target=True),), gates=GateConfig(trained_share=None, randomised_share=None)
    )
    monkeypatch.setattr("sys.argv", ["eval"])
    with pytest.raises(SystemExit) as caught:
        run_program(lambda arguments: (run(config, ""), None)[1])
    assert caught.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert "eval: written, but not to be believed: shuffled (per-query Spearman of a student of shuffled targets" in line
    done = Finished(runs, runs.folder / "eval", json.loads((runs.folder / "eval" / "summary.json").read_text()))
    assert not done.summary["gates"]["shuffled"]["passed"] and done.summary["gates"]["cardinality"]["passed"]
    for name in ("student", "shuffled_target"):
        assert done.figure(name, "per_query_spearman")["mean"] > 0.99
    assert done.summary["gates"]["shuffled"]["limit"] < 0.9


def test_every_gate_that_fails_is_named(runs: Runs) -> None:
    gates = GateConfig(trained_share=0.1, randomised_share=-1.0, cardinality_share=2.0, shuffled_margin=-2.0)
    control = runs.copy("control", shuffle_target=True)
    with pytest.raises(GateError, match=r"trained \(.*; randomised \(.*; cardinality \(.*; shuffled \(") as caught:
        run(runs.config(shuffled_target=(control,), gates=gates, tasks={}, groups=None), "")
    assert "\n" not in str(caught.value)
    assert open_run(runs.folder / "eval", "eval")["stage"] == "eval"


@pytest.mark.parametrize(
    "changes",
    [
        {"num_queries": 0}, {"top": 0}, {"bootstrap_draws": 0}, {"cost_rows": 0}, {"student": ()}, {"compare": {"other": ()}},
        {"compare": {"bm25": ("x",)}}, {"compare": {"loss": ("x",)}}, {"teachers": {"bm25_response": "x"}},
        {"tasks": {"Poison 1": TaskConfig(rows=DataSource(paths=("x",)))}},
    ],
)  # fmt: skip
def test_settings_out_of_range_are_refused(finished_runs: Runs, changes: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(changes))):
        finished_runs.config(**changes)


def test_a_yaml_file_gives_the_config(tmp_path: Path) -> None:
    path = tmp_path / "eval.yaml"
    path.write_text(
        """
        teacher: t
        student: [s0, s1]
        output: o
        compare: {reference_recipe: [r]}
        shuffled_target: [c]
        groups: {rows: {paths: [pool.jsonl.gz]}, column: skill}
        gates: {randomised_share: null, shuffled_margin: 0.1}
        tasks:
          poison: {rows: {paths: [pool.jsonl.gz], columns: {id: name}}, positive: kind, positive_values: ["3"], exclude_values: [decoy]}
          facts: {kind: retrieval, rows: {paths: [a.csv]}, queries: {paths: [q.csv]}, match: [fact], cutoff: 10}
          wrong: {kind: mislabel, rows: {paths: [w.csv]}}
        """
    )
    config, resolved = parse_config(EvalConfig, [str(path), "--top", "3"], "eval")
    assert (config.student, config.compare, config.shuffled_target) == (("s0", "s1"), {"reference_recipe": ("r",)}, ("c",))
    assert config.gates == GateConfig(randomised_share=None, shuffled_margin=0.1)
    assert config.groups is not None and config.groups.column == "skill"
    poison, facts, wrong = config.tasks.values()
    assert (poison.kind, poison.rows.columns.id, poison.positive_values, poison.exclude_values) == ("detection", "name", ("3",), ("decoy",))
    assert (facts.kind, facts.match, facts.cutoff, wrong.kind, wrong.queries) == ("retrieval", ("fact",), 10, "mislabel", None)
    assert (config.top, config.wandb_project) == (3, None)
    path.write_text(resolved)
    assert parse_config(EvalConfig, [str(path)], "eval") == (config, resolved)


def test_another_teacher_stands_beside_with_its_own_scores(runs: Runs) -> None:
    """The teacher's own scores once more under another name: the figures of the teacher, against itself a correlation of 1."""
    other = runs.copy("other-teacher", "teacher", method="tracin", passes=3)
    done = finish(runs, teachers={"tracin": other})
    methods = done.summary["methods"]
    assert methods["tracin"]["role"] == "reference"
    seeds = [methods["teacher"]["metrics"]["poison_auprc"]["mean"], methods["teacher_second_seed"]["metrics"]["poison_auprc"]["mean"]]
    assert methods["tracin"]["metrics"]["poison_auprc"]["mean"] == pytest.approx(np.mean(seeds), abs=1e-9)
    ceiling = methods["teacher_second_seed"]["metrics"]["per_query_spearman"]["mean"]
    assert methods["tracin"]["metrics"]["per_query_spearman"]["mean"] == pytest.approx((1 + ceiling) / 2, abs=1e-3)
    assert methods["tracin"]["cost"]["seconds_per_1000"] > 0


def test_another_teacher_of_other_rows_is_refused(runs: Runs) -> None:
    other = runs.copy("other-teacher", "teacher", queries_fingerprint="f" * 16)
    with pytest.raises(RunError, match=r"teachers.less: .*other-teacher: queries_fingerprint is 'f{16}', but .* has '\w+'") as caught:
        run(runs.config(teachers={"less": other}), "")
    assert "\n" not in str(caught.value)


def test_a_teacher_without_a_decoder_is_judged_without_what_needs_one(runs: Runs, capsys: pytest.CaptureFixture[str]) -> None:
    edit_record(runs.folder / "teacher", decoder_path=None)
    done = finish(runs, gates=GateConfig())
    assert "the gates `trained` and `randomised` are not asked" in capsys.readouterr().out
    assert not {"rep_sim", "rep_sim_mean", "loss"} & set(done.summary["methods"])
    assert set(done.summary["gates"]) == {"cardinality"}
    assert done.summary["methods"]["teacher"]["cost"] is None


def test_runs_whose_rows_do_not_ask_are_refused(runs: Runs) -> None:
    student = runs.copy("asking-queries", asks="queries")
    with pytest.raises(RunError, match=r"a student of the teacher's queries \(asks: queries\)"):
        run(runs.config(student=(student,)), "")
    edit_record(runs.folder / "teacher", rows_ask=False)
    with pytest.raises(RunError, match=r"made of scores of other queries, so that no row of it can ask"):
        run(runs.config(), "")
