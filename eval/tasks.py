"""Tasks with their answers, joined to the judged rows by id: the only reader of labels in the project."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from eval.config import GroupConfig, Kind, TaskConfig
from influcoder.errors import DataError
from influcoder.examples import Example
from influcoder.readers import DataSource, read_columns

Mask = NDArray[np.bool_]
YES, NO = {"1", "1.0", "true"}, {"0", "0.0", "false"}
"""how files of any kind write a truth value, lower-cased"""


@dataclass(frozen=True, kw_only=True)
class Task:
    """A question about N judged rows."""

    kind: Kind
    queries: NDArray[np.int64]
    """(M,) positions of its queries among the task queries; empty for mislabel"""
    weights: NDArray[np.float64]
    """(M,) +1 for wanted behaviour, -1 for contrast"""
    candidates: Mask
    """(N,) rows that are asked about"""
    positive: Mask
    """(N,) detection, mislabel: candidates that are to be found"""
    linked: Mask
    """(M, N) retrieval: candidates that belong to a query; (0, N) otherwise"""
    cutoff: int = 50
    """retrieval: k of recall@k"""

    def renumbered(self, asked: Sequence[int]) -> Task:
        """Return the task with its queries' positions in `asked`, which lists the queries that are asked at all, ascending."""
        return replace(self, queries=np.searchsorted(asked, self.queries))


def load_tasks(
    configs: Mapping[str, TaskConfig], pool_ids: Sequence[str], rows: Sequence[Example], queries: Sequence[Example]
) -> dict[str, Task]:
    """Read the answers of every task.

    Args:
        configs: tasks by name.
        pool_ids: ids of all of the teacher's rows.
        rows: the N judged rows among them.
        queries: the teacher's task queries.

    Raises:
        DataError: when ids are unknown, a cell is no answer, or a task has nothing to find or nothing else.
    """
    return {name: _load(f"tasks.{name}", config, set(pool_ids), rows, queries) for name, config in configs.items()}


def load_groups(config: GroupConfig | None, rows: Sequence[Example]) -> NDArray[np.str_] | None:
    """Read the kind of each of `rows`.

    Raises:
        DataError: when a row has none.
    """
    if config is None:
        return None
    found = read_columns(config.rows, (config.column,))
    missing = [row.id for row in rows if row.id not in found]
    if missing:
        raise DataError(
            f"{_named(config.rows)}: no row {missing[0]!r} ({len(missing)} of {len(rows)} judged rows are not there); "
            "expected every row of the teacher's pool; name all its files, and the same id column"
        )
    return np.array([str(found[row.id][config.column]) for row in rows], dtype=np.str_)


def _load(name: str, config: TaskConfig, pool_ids: set[str], rows: Sequence[Example], queries: Sequence[Example]) -> Task:
    where = f"{name}: {_named(config.rows)}"
    labelled = config.kind != "retrieval"
    answers = read_columns(config.rows, (config.positive,) if labelled else config.match)
    unknown = [row_id for row_id in answers if row_id not in pool_ids]
    if unknown:
        raise DataError(
            f"{where}: row {unknown[0]!r} is not in the teacher's pool ({len(unknown)} of {len(answers)} are not); "
            "expected rows that the teacher was given; check the file and its id column"
        )
    _check_values(where, config, {str(cell[config.positive]).strip() for cell in answers.values()} if labelled else set())
    cells = [answers.get(row.id) for row in rows]
    candidates = np.array([cell is not None for cell in cells])
    positive, linked = np.zeros(len(rows), dtype=bool), np.zeros((0, len(rows)), dtype=bool)
    if labelled:
        found = [
            None if cell is None else _truth(cell[config.positive], config, f"{where}: {row.id!r}")
            for row, cell in zip(rows, cells, strict=True)
        ]
        candidates, positive = np.array([answer is not None for answer in found]), np.array([bool(answer) for answer in found])
        if not 0 < positive.sum() < candidates.sum():
            raise DataError(
                f"{where}: {positive.sum()} of {candidates.sum()} judged rows are positive; expected some and not all; "
                "check the column, or raise split.test of the student"
            )
    chosen = _choose_queries(name, config, queries)
    if not labelled:
        linked = _links(where, config, rows, [queries[place].id for place in chosen], cells) & candidates
        if not linked.any():
            raise DataError(f"{where}: no query has a linked row among the judged ones; check the answers' ids, or raise split.test")
    weights = np.array([queries[place].weight for place in chosen], dtype=np.float64)
    return Task(
        kind=config.kind, queries=chosen, weights=weights, candidates=candidates, positive=positive, linked=linked, cutoff=config.cutoff
    )


def _check_values(where: str, config: TaskConfig, written: set[str]) -> None:
    absent = [value for value in (*(config.positive_values or ()), *config.exclude_values) if value not in written]
    if absent and config.kind != "retrieval":
        raise DataError(
            f"{where}: no cell of column {config.positive!r} holds {absent[0]!r}; it holds {', '.join(sorted(written)[:8])}; "
            "name values that are there in positive_values and exclude_values"
        )


def _choose_queries(name: str, config: TaskConfig, queries: Sequence[Example]) -> NDArray[np.int64]:
    if config.kind == "mislabel":
        return np.zeros(0, dtype=np.int64)
    if not queries:
        raise DataError(f"{name}: the teacher run has no queries; run the teacher with queries, or take the task out")
    if config.queries is None:
        return np.arange(len(queries))
    place = {query.id: number for number, query in enumerate(queries)}
    named = list(read_columns(config.queries, ()))
    if not named:
        raise DataError(f"{name}: {_named(config.queries)}: no queries; expected at least one; null takes all of the teacher's")
    unknown = [query_id for query_id in named if query_id not in place]
    if unknown:
        raise DataError(
            f"{name}: {_named(config.queries)}: query {unknown[0]!r} is not among the teacher's ({len(unknown)} of {len(named)} are not); "
            "name that file among the teacher's queries too"
        )
    return np.array([place[query_id] for query_id in named], dtype=np.int64)


def _links(
    where: str, config: TaskConfig, rows: Sequence[Example], queries: Sequence[str], cells: Sequence[Mapping[str, object] | None]
) -> Mask:
    if config.match:
        assert config.queries is not None  # TaskConfig.__post_init__
        wanted = read_columns(config.queries, config.match)
        keys = [None if cell is None else tuple(str(cell[column]) for column in config.match) for cell in cells]
        return np.array([[tuple(str(wanted[query][column]) for column in config.match) == key for key in keys] for query in queries])
    assert config.links is not None  # TaskConfig.__post_init__
    table = read_columns(config.links, (config.linked,))
    linked = np.zeros((len(queries), len(rows)), dtype=bool)
    place = {row.id: number for number, row in enumerate(rows)}
    for number, query in enumerate(queries):
        ids = table.get(query, {}).get(config.linked, [])
        if not isinstance(ids, list):
            raise DataError(f"{where}: column {config.linked!r} of query {query!r} holds {ids!r:.40}; expected a list of row ids")
        linked[number, [place[str(row_id)] for row_id in ids if str(row_id) in place]] = True
    return linked


def _truth(cell: object, config: TaskConfig, where: str) -> bool | None:
    """Return whether the row is to be found; None when it is no candidate."""
    written = "" if cell is None else str(cell).strip()
    if not written or written in config.exclude_values:
        return None
    if config.positive_values is not None:
        return written in config.positive_values
    if written.lower() not in YES | NO:
        raise DataError(f"{where}: column {config.positive!r} holds {cell!r}; expected 1, 0, true or false, or set positive_values")
    return written.lower() in YES


def _named(source: DataSource) -> str:
    return ", ".join(source.paths)
