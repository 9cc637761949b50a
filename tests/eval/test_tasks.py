from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from eval.config import GroupConfig, TaskConfig
from eval.tasks import Task, load_groups, load_tasks
from influcoder.errors import ConfigError, DataError
from influcoder.readers import Columns, DataSource
from tests.eval.fake_runs import make_rows, write_table

POOL = make_rows(12, "row", seed=0)
JUDGED = POOL[:1:-1]  # row11 to row2: some rows are not judged, and the order is not the pool's
QUERIES = make_rows(5, "query", seed=1, weights=(1.0, 1.0, -1.0))
ANSWERS = ("1", "0", 1, 0, True, False, "true", "False", 1.0, "0.0", "1", "0")


def source(folder: Path, name: str, cells: dict[str, Sequence[object]], prefix: str = "row") -> DataSource:
    """Write a table of ids and columns: the cells of row0, row1, ..."""
    count = len(next(iter(cells.values())))
    lines: list[dict[str, object]] = [
        {"id": f"{prefix}{place}"} | {column: values[place] for column, values in cells.items()} for place in range(count)
    ]
    return write_table(folder / f"{name}.jsonl", lines)


def load(config: TaskConfig, queries: Sequence[object] = QUERIES) -> Task:
    return load_tasks({"poison": config}, [row.id for row in POOL], JUDGED, queries)["poison"]  # type: ignore[arg-type]


def ids(mask: np.ndarray) -> set[str]:
    return {row.id for row, chosen in zip(JUDGED, mask, strict=True) if chosen}


def refusal(config: TaskConfig, queries: Sequence[object] = QUERIES) -> str:
    with pytest.raises(DataError) as caught:
        load(config, queries)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_answers_are_joined_by_id_and_may_be_words_numbers_or_booleans(tmp_path: Path) -> None:
    task = load(TaskConfig(rows=source(tmp_path, "labels", {"label": ANSWERS})))
    assert task.candidates.all()
    assert ids(task.positive) == {f"row{place}" for place in range(2, 12, 2)}
    assert task.queries.tolist() == [0, 1, 2, 3, 4] and task.weights.tolist() == [1, 1, -1, 1, 1]
    assert task.linked.shape == (0, 10)


def test_labels_of_several_files_and_of_any_id_column(tmp_path: Path) -> None:
    first, second = tmp_path / "first.csv", tmp_path / "second.csv"
    first.write_text("name,label\nrow2,1\nrow3,0\n")
    second.write_text("name,label\nrow4,0\nrow5,1\n")
    config = TaskConfig(rows=DataSource(paths=(str(first), str(second)), columns=Columns(id="name")))
    task = load(config)
    assert (ids(task.candidates), ids(task.positive)) == ({"row2", "row3", "row4", "row5"}, {"row2", "row5"})


def test_rows_that_the_file_does_not_hold_are_no_candidates(tmp_path: Path) -> None:
    task = load(TaskConfig(rows=source(tmp_path, "labels", {"label": ANSWERS[:6]})))
    assert ids(task.candidates) == {f"row{place}" for place in range(2, 6)}
    assert ids(task.positive) == {"row2", "row4"}


@pytest.mark.parametrize("empty", [None, "", "  "])
def test_empty_and_excluded_cells_are_no_candidates(tmp_path: Path, empty: object) -> None:
    rows = source(tmp_path, "labels", {"label": ("toxic", "safe", "toxic", "decoy", empty, "safe", *["safe"] * 6)})
    task = load(TaskConfig(rows=rows, positive_values=("toxic",), exclude_values=("decoy",)))
    assert ids(task.candidates) == {f"row{place}" for place in range(5, 12)} | {"row2"}
    assert ids(task.positive) == {"row2"}


def test_without_exclusions_distractors_are_candidates_that_are_not_to_be_found(tmp_path: Path) -> None:
    rows = source(tmp_path, "labels", {"label": ("toxic", "safe", "toxic", "decoy", *["safe"] * 8)})
    task = load(TaskConfig(rows=rows, positive_values=("toxic",)))
    assert task.candidates.all() and ids(task.positive) == {"row2"}


def test_positive_values_may_be_several_and_are_compared_as_written(tmp_path: Path) -> None:
    rows = source(tmp_path, "labels", {"label": (0, 0, 2, 3, 1, "Two", *[0] * 6)})
    assert ids(load(TaskConfig(rows=rows, positive_values=("2", "3"))).positive) == {"row2", "row3"}


@pytest.mark.parametrize("cell", [2, "yes", "maybe", 0.5, -1, "nan"])
def test_a_cell_that_is_no_answer_is_refused_with_its_row(tmp_path: Path, cell: object) -> None:
    rows = source(tmp_path, "labels", {"label": (*ANSWERS[:7], cell, *ANSWERS[8:])})
    expected = f"tasks.poison: {tmp_path}/labels.jsonl: 'row7': column 'label' holds {cell!r}; expected 1, 0, true or false"
    assert expected in refusal(TaskConfig(rows=rows))


@pytest.mark.parametrize(("cells", "found"), [((0,) * 12, "0 of 10"), ((1,) * 12, "10 of 10"), ((1, 1, *("",) * 10), "0 of 0")])
def test_a_task_with_nothing_or_all_to_find_is_refused(tmp_path: Path, cells: Sequence[object], found: str) -> None:
    assert f"{found} judged rows are positive; expected some and not all" in refusal(
        TaskConfig(rows=source(tmp_path, "labels", {"label": cells}))
    )


def test_rows_that_the_teacher_does_not_have_are_refused_with_their_number(tmp_path: Path) -> None:
    message = refusal(TaskConfig(rows=source(tmp_path, "labels", {"label": (*ANSWERS, 1, 0)})))
    assert re.search(r"labels.jsonl: row 'row12' is not in the teacher's pool \(2 of 14 are not\); .*check the file", message)


def test_a_column_that_is_not_there_is_refused_with_those_that_are(tmp_path: Path) -> None:
    message = refusal(TaskConfig(rows=source(tmp_path, "labels", {"attack": ANSWERS})))
    assert "no column 'label'; it has 'id', 'attack'" in message


def test_queries_are_those_of_the_tasks_file_in_its_order_with_the_teachers_weights(tmp_path: Path) -> None:
    asked = write_table(tmp_path / "queries.jsonl", [{"id": "query2"}, {"id": "query0"}])
    task = load(TaskConfig(rows=source(tmp_path, "labels", {"label": ANSWERS}), queries=asked))
    assert (task.queries.tolist(), task.weights.tolist()) == ([2, 0], [-1, 1])


def test_queries_that_the_teacher_was_not_given_are_refused_with_their_number(tmp_path: Path) -> None:
    asked = write_table(tmp_path / "queries.jsonl", [{"id": "query2"}, {"id": "query7"}, {"id": "query8"}])
    message = refusal(TaskConfig(rows=source(tmp_path, "labels", {"label": ANSWERS}), queries=asked))
    assert "query 'query7' is not among the teacher's (2 of 3 are not); name that file among the teacher's queries" in message


def test_a_file_of_no_queries_is_refused(tmp_path: Path) -> None:
    asked = write_table(tmp_path / "queries.jsonl", [])
    assert "queries.jsonl: no queries" in refusal(TaskConfig(rows=source(tmp_path, "labels", {"label": ANSWERS}), queries=asked))


def test_a_teacher_without_queries_can_answer_no_task_that_has_some(tmp_path: Path) -> None:
    rows = source(tmp_path, "labels", {"label": ANSWERS})
    assert "the teacher run has no queries" in refusal(TaskConfig(rows=rows), queries=())
    task = load(TaskConfig(kind="mislabel", rows=rows), queries=())
    assert (task.kind, task.queries.tolist(), task.weights.tolist()) == ("mislabel", [], [])
    assert ids(task.positive) == {f"row{place}" for place in range(2, 12, 2)}


def test_links_name_each_querys_rows_and_those_that_are_not_judged_are_left_out(tmp_path: Path) -> None:
    links = write_table(
        tmp_path / "links.jsonl", [{"fact": "query0", "rows": ["row3", "row1", "row9"]}, {"fact": "query3", "rows": ["row3"]}]
    )
    config = TaskConfig(
        kind="retrieval",
        rows=source(tmp_path, "pool", {} | {"x": (0,) * 12}),
        links=replace(links, columns=Columns(id="fact")),
        linked="rows",
        cutoff=7,
    )
    task = load(config)
    assert [ids(row) for row in task.linked] == [{"row3", "row9"}, set(), set(), {"row3"}, set()]
    assert task.candidates.all() and not task.positive.any() and task.cutoff == 7


def test_links_of_parquet_and_rows_outside_the_candidates(tmp_path: Path) -> None:
    path = tmp_path / "links.parquet"
    pq.write_table(pa.table({"id": ["query1"], "row_ids": [["row3", "row9"]]}), path)
    config = TaskConfig(kind="retrieval", rows=source(tmp_path, "some", {"x": (0,) * 5}), links=DataSource(paths=(str(path),)))
    task = load(config)
    assert ids(task.candidates) == {"row2", "row3", "row4"}
    assert [ids(row) for row in task.linked] == [set(), {"row3"}, set(), set(), set()]


def test_links_that_are_no_list_or_lead_nowhere_are_refused(tmp_path: Path) -> None:
    rows = source(tmp_path, "pool", {"x": (0,) * 12})
    for value, message in (
        ("row3", r"column 'row_ids' of query 'query0' holds 'row3'; expected a list"),
        (["row0"], r"no query has a linked row"),
    ):
        links = write_table(tmp_path / "links.jsonl", [{"id": "query0", "row_ids": value}])
        assert re.search(message, refusal(TaskConfig(kind="retrieval", rows=rows, links=links)))


def test_a_row_matches_a_query_when_all_columns_agree_as_text(tmp_path: Path) -> None:
    rows = source(tmp_path, "pool", {"fact": (7, 7, 7, 7, 8, 8, *[0] * 6), "place": ("a", "a", "a", "b", "a", "b", *["c"] * 6)})
    asked = source(tmp_path, "queries", {"fact": ("7", "8", "9"), "place": ("a", "b", "c")}, prefix="query")
    task = load(TaskConfig(kind="retrieval", rows=rows, queries=asked, match=("fact", "place")))
    assert [ids(row) for row in task.linked] == [{"row2"}, {"row5"}, set()]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "exactly one of the two"),
        ({"links": DataSource(paths=("l",)), "match": ("x",), "queries": DataSource(paths=("q",))}, "exactly one of the two"),
        ({"match": ("x",)}, "give queries"),
        ({"match": ("x",), "queries": DataSource(paths=("q",)), "cutoff": 0}, "cutoff 0; expected at least 1"),
    ],
)
def test_a_retrieval_task_has_its_answers_in_one_place(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TaskConfig(kind="retrieval", rows=DataSource(paths=("x",)), **settings)  # type: ignore[arg-type]


def test_renumbered_queries_stand_where_they_are_among_those_asked(tmp_path: Path) -> None:
    asked = write_table(tmp_path / "queries.jsonl", [{"id": "query4"}, {"id": "query1"}])
    task = load(TaskConfig(rows=source(tmp_path, "labels", {"label": ANSWERS}), queries=asked))
    renumbered = task.renumbered([1, 2, 4])
    assert renumbered.queries.tolist() == [2, 0]
    assert renumbered.weights is task.weights and renumbered.positive is task.positive


def test_groups_are_read_for_the_judged_rows_in_their_order(tmp_path: Path) -> None:
    rows = source(tmp_path, "pool", {"skill": [f"kind {place % 3}" for place in range(12)]})
    found = load_groups(GroupConfig(rows=rows, column="skill"), JUDGED)
    assert found is not None and found.tolist() == [f"kind {int(row.id[3:]) % 3}" for row in JUDGED]
    assert load_groups(None, JUDGED) is None


def test_judged_rows_without_a_group_are_refused_with_their_number(tmp_path: Path) -> None:
    rows = source(tmp_path, "pool", {"skill": ["x"] * 10})
    with pytest.raises(DataError, match=r"pool.jsonl: no row 'row11' \(2 of 10 judged rows are not there\)"):
        load_groups(GroupConfig(rows=rows, column="skill"), JUDGED)
