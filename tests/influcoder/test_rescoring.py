"""Two stages: the student's short-list in the order of the teacher's own scores, which another run of the teacher gives of every row."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from influcoder.attribution import AttributionConfig, attribute
from influcoder.cli import dispatch
from influcoder.errors import ConfigError, MissingExtraError, RunError
from influcoder.examples import Example
from influcoder.influence.teacher_features import TeacherFeatures
from influcoder.onnx_encoder import OnnxEncoder
from influcoder.readers import Columns, DataSource
from influcoder.rescoring_teacher import Rescore
from influcoder.runs import open_run, partial_folder
from influcoder.scores import load_scores
from influcoder.text_format import render
from tests.influcoder.rescoring_runs import make_teachers, pool_rows, query_rows, readable
from tests.influcoder.test_attribution import as_examples, read_top, write_jsonl

NUM_KEPT, SHORT = 6, 20


@pytest.fixture(scope="module")
def teachers(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_teachers(tmp_path_factory.mktemp("teachers"))


@pytest.fixture
def config(exported_folder: Path, teachers: tuple[Path, Path], tmp_path: Path) -> AttributionConfig:
    pool, queries = (write_jsonl(tmp_path / f"{name}.jsonl", rows) for name, rows in (("pool", pool_rows()), ("queries", query_rows())))
    return AttributionConfig(
        encoder=str(exported_folder),
        pool=DataSource(paths=(pool,), columns=Columns(contributor="who")),
        queries=DataSource(paths=(queries,)),
        output=str(tmp_path / "run"),
        top_k=NUM_KEPT,
        shard_rows=64,
        rescore=Rescore(teacher=str(teachers[0]), rows=SHORT, device="cpu"),
    )


def student_scores(config: AttributionConfig) -> NDArray[np.float32]:
    encoder = OnnxEncoder(config.encoder)
    queries, rows = (
        encoder.encode([render(each, encoder.text_format) for each in as_examples(given)]) for given in (query_rows(), pool_rows())
    )
    scores: NDArray[np.float32] = queries @ rows.T
    return scores


def teacher_scores(whole: Path) -> NDArray[np.float64]:
    """Return the teacher's scores of every row of the pool, NaN of those that it cannot read."""
    found = load_scores(whole / "scores" / "seed-0")
    ids = [row["id"] for row in pool_rows()]
    scores = np.full((len(found.query_ids), len(ids)), np.nan)
    scores[:, [ids.index(row_id) for row_id in found.row_ids]] = found.values
    return scores


def test_the_tables_follow_the_teacher_on_the_students_short_list(config: AttributionConfig, teachers: tuple[Path, Path]) -> None:
    facts = attribute(config)
    student, teacher = student_scores(config), teacher_scores(teachers[1])
    order = np.argsort(-student, axis=1, kind="stable")
    listed = np.unique(np.concatenate([order[:, :SHORT], order[:, -SHORT:]], axis=1))
    scored = [row for row in listed if np.isfinite(teacher[0, row])]
    assert NUM_KEPT < len(scored) < len(listed) < 200
    pool, part = pool_rows(), [(row["prompt"], row["response"]) for row in readable(pool_rows())[::3]]
    seen = sum((pool[row]["prompt"], pool[row]["response"]) in part for row in listed)  # copies of what the run has seen, too
    assert 0 < seen < len(scored)
    for side, sign in (("top", -1), ("bottom", 1)):
        table = read_top(Path(config.output), side)
        pairs = [sorted((sign * scores[row], row) for row in scored)[:NUM_KEPT] for scores in teacher]
        expected = np.array([[row for _, row in of_query] for of_query in pairs])
        assert table["id"] == [f"r{row}" for row in expected.ravel()]
        queries = np.repeat(np.arange(len(teacher)), NUM_KEPT)
        np.testing.assert_allclose(table["score"], teacher[queries, expected.ravel()], atol=2e-3)
        np.testing.assert_allclose(table["student_score"], student[queries, expected.ravel()], atol=1e-5)
        assert table["rank"] == [*range(1, NUM_KEPT + 1)] * len(teacher)
        assert table["contributor"] == [f"c{row % 3}" for row in expected.ravel()]
    record = open_run(teachers[0], "teacher")
    counts = {"short_listed": len(listed), "seen": seen, "computed": len(listed) - seen, "unscored": len(listed) - len(scored)}
    kept = {name: record[name] for name in ("method", "normalise", "decoder_fingerprint")}
    assert facts["rescore"] == {"teacher": str(teachers[0]), **kept, "seed": 0, "rows": SHORT, **counts}


def test_nothing_else_of_a_run_changes(config: AttributionConfig) -> None:
    attribute(config)
    attribute(replace(config, rescore=None, output=f"{config.output}-plain"))
    first, plain = Path(config.output), Path(f"{config.output}-plain")
    names = [path.relative_to(plain) for path in plain.rglob("*") if path.is_file()]
    changed = {str(name) for name in names if (first / name).read_bytes() != (plain / name).read_bytes()}
    assert changed == {"topk.parquet", "config.yaml", "run.json", "summary.json", "job.json"}
    columns = pq.read_schema(plain / "topk.parquet").names
    assert columns == ["query_id", "side", "rank", "id", "score", "contributor"]
    assert pq.read_schema(first / "topk.parquet").names == [*columns, "student_score"]


def test_a_short_list_of_the_whole_pool_is_the_teachers_own_ranking(config: AttributionConfig, teachers: tuple[Path, Path]) -> None:
    assert config.rescore is not None
    attribute(replace(config, rescore=replace(config.rescore, rows=500)))
    teacher = teacher_scores(teachers[1])
    best = np.argsort(np.nan_to_num(-teacher, nan=9), axis=1, kind="stable")[:, :NUM_KEPT]
    assert read_top(Path(config.output))["id"] == [f"r{row}" for row in best.ravel()]


def test_a_killed_second_stage_computes_no_piece_twice(config: AttributionConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    of_rows, sizes = TeacherFeatures.of_rows, []

    def watched(features: TeacherFeatures, rows: list[Example]) -> NDArray[np.float32]:
        sizes.append(len(rows))
        if len(sizes) == 4 + 2:  # two for the check, and then pieces
            raise KeyboardInterrupt
        return of_rows(features, rows)

    monkeypatch.setattr(TeacherFeatures, "of_rows", watched)
    with pytest.raises(KeyboardInterrupt):
        attribute(config)
    assert not Path(config.output).exists()
    computed = attribute(config)["rescore"]["computed"]
    assert sizes[:2] == [1, 8] and sum(sizes[2:]) - 8 == computed and computed > 40


def test_a_teacher_that_was_made_anew_meanwhile_is_refused(
    config: AttributionConfig, teachers: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = Path(shutil.copytree(teachers[0], tmp_path / "teacher"))
    changed = replace(config, rescore=Rescore(teacher=str(copy), rows=SHORT, device="cpu"))
    monkeypatch.setattr("influcoder.rescoring.plan_pieces", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        attribute(changed)
    (copy / "run.json").write_text((copy / "run.json").read_text() + " ")
    with pytest.raises(RunError, match=r"job\.json: unfinished work of another teacher \(teacher_fingerprint"):
        attribute(changed)


def test_another_decoder_than_the_runs_stops_before_the_pool_is_read(
    config: AttributionConfig, teachers: tuple[Path, Path], tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(teachers[0], tmp_path / "teacher"))
    shutil.rmtree(copy / "basis", ignore_errors=True)
    record = json.loads((copy / "run.json").read_text())
    (copy / "run.json").write_text(json.dumps(record | {"seeds": [1]}))
    (copy / "features" / "seed-0").rename(copy / "features" / "seed-1")  # as if another projection had made them
    with pytest.raises(RunError, match=r"features of its first rows, computed again, differ from those it holds by \d"):
        attribute(replace(config, rescore=Rescore(teacher=str(copy), rows=SHORT, device="cpu")))
    assert not Path(config.output).exists() and not partial_folder(Path(config.output)).exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "f_influence"}, "its method, f_influence, measures its rows' gradients against each other .* or leave rescore out"),
        ({"method": "foreign:bergson", "gradients": None}, "its method, foreign:bergson, has features made elsewhere"),
        ({"stage": "student"}, "stage 'student'"),
    ],
)
def test_a_run_that_cannot_score_new_rows_is_refused(
    changes: dict[str, Any], message: str, config: AttributionConfig, teachers: tuple[Path, Path], tmp_path: Path
) -> None:
    (tmp_path / "other").mkdir()
    shutil.copy(teachers[0] / "text_format.json", tmp_path / "other")
    record = json.loads((teachers[0] / "run.json").read_text()) | changes
    (tmp_path / "other" / "run.json").write_text(json.dumps({name: value for name, value in record.items() if value is not None}))
    with pytest.raises(RunError, match=message):
        attribute(replace(config, rescore=Rescore(teacher=str(tmp_path / "other"), rows=SHORT)))
    assert not partial_folder(Path(config.output)).exists()


def test_other_text_budgets_are_refused(config: AttributionConfig, teachers: tuple[Path, Path], tmp_path: Path) -> None:
    encoder = Path(shutil.copytree(config.encoder, tmp_path / "encoder"))
    (encoder / "text_format.json").write_text((encoder / "text_format.json").read_text().replace("400", "300"))
    with pytest.raises(RunError, match=r"cuts texts to \(120, 400\) characters, the encoder to \(120, 300\)"):
        attribute(replace(config, encoder=str(encoder)))


def test_without_torch_it_says_what_to_install(config: AttributionConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingExtraError, match=r"`torch` is not installed; do: pip install 'influcoder\[train\]'"):
        attribute(config)


def test_the_command_says_what_the_teacher_scored(
    config: AttributionConfig, teachers: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    paths = ["--pool.paths", json.dumps(config.pool.paths), "--queries.paths", json.dumps(config.queries.paths)]
    second = ["--rescore.teacher", str(teachers[0]), "--rescore.rows", str(SHORT), "--top_k", str(NUM_KEPT)]
    dispatch(["attribute", "--encoder", config.encoder, *paths, "--output", config.output, *second])
    found, captured = open_run(Path(config.output), "attribution")["rescore"], capsys.readouterr()
    line = captured.out.splitlines()[-1]
    assert line == (
        f"topk.parquet by {teachers[0]}: {found['short_listed']} rows scored again ({found['computed']} computed, {found['seen']} in its run, "
        f"{found['unscored']} that it cannot read)"
    )
    assert "rescore: at most about 200 rows, " in captured.err and f"rescore: {found['short_listed']} rows; " in captured.err
    assert f"warning: {config.encoder}: does not say whose ranking it imitates" in captured.err


def test_a_short_list_holds_at_least_what_is_kept(config: AttributionConfig) -> None:
    with pytest.raises(ConfigError, match=r"rescore\.rows: 20; expected at least top_k, 21"):
        replace(config, top_k=21)
    with pytest.raises(ConfigError, match=r"rescore\.rows: 0; expected at least 1"):
        Rescore(teacher="x", rows=0)
