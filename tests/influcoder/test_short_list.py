from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from influcoder.errors import RunError
from influcoder.examples import Example
from influcoder.pool import PoolRow, in_shards, shard_fingerprint
from influcoder.readers import Rejected
from influcoder.short_list import Ranked, best_of, pick_rows, plan_pieces


def make_pool(count: int) -> list[PoolRow]:
    """Return a pool in which every fourth row is malformed."""
    rows: list[Example | Rejected] = [
        Rejected(where=f"row {place}", reason="no") if place % 4 == 1 else Example(id=f"r{place}", context=(), response=f"text {place}")
        for place in range(count)
    ]
    return [PoolRow(row, None) for row in rows]


def records_of(shards: list[list[PoolRow]]) -> list[dict[str, Any]]:
    return [{"rows": sum(isinstance(row.example, Example) for row in shard), "fingerprint": shard_fingerprint(shard)} for shard in shards]


@given(st.integers(1, 30), st.integers(1, 9), st.data())
def test_rows_are_picked_by_their_place_among_usable_ones(count: int, size: int, data: st.DataObject) -> None:
    pool = make_pool(count)
    usable = [row.example for row in pool if isinstance(row.example, Example)]
    wanted = np.array(sorted(data.draw(st.sets(st.integers(0, len(usable) - 1), min_size=1))))
    shards = list(in_shards(pool, size))
    assert pick_rows(shards, records_of(shards), wanted) == [usable[place] for place in wanted]


def test_the_pool_is_read_no_further_than_the_last_row() -> None:
    shards, drawn = list(in_shards(make_pool(40), 8)), []

    def watched() -> Iterator[list[PoolRow]]:
        for number, shard in enumerate(shards):
            drawn.append(number)
            yield shard

    pick_rows(watched(), records_of(shards), np.array([0, 7]))  # 6 usable rows a shard
    assert drawn == [0, 1]


def test_a_pool_that_changed_or_ends_early_is_refused() -> None:
    shards = list(in_shards(make_pool(40), 8))
    records = records_of(shards)
    with pytest.raises(RunError, match=r"pool: other rows than when it was ranked \(1 of 2 rows of the short-list found again\)"):
        pick_rows(shards[:1], records, np.array([0, 7]))
    shards[1][0] = PoolRow(Example(id="r8", context=(), response="another text"), None)
    with pytest.raises(RunError, match=r"\(1 of 2 rows"):
        pick_rows(shards, records, np.array([0, 7]))
    assert len(pick_rows(shards, records, np.array([0, 13]))) == 2  # nobody asks for a row of the changed shard


@given(st.lists(st.one_of(st.none(), st.integers(0, 3)), max_size=40), st.integers(1, 9))
def test_every_row_is_in_one_piece_with_rows_of_its_shard(shards: list[int | None], new_rows: int) -> None:
    pieces = plan_pieces(shards, new_rows)
    assert sorted(int(place) for _, places in pieces for place in places) == list(range(len(shards)))
    for shard, places in pieces:
        assert {shards[place] for place in places} == {shard} and (np.diff(places) > 0).all()
        assert shard is not None or len(places) <= new_rows
    of_shards = [shard for shard, _ in pieces if shard is not None]
    assert of_shards == sorted(set(of_shards)) and len(pieces) - len(of_shards) == -(-shards.count(None) // new_rows)


@given(st.integers(1, 3), st.integers(1, 20), st.integers(1, 8), st.integers(1, 4), st.integers(0, 99))
def test_the_best_of_parts_is_a_stable_sort_of_the_whole(queries: int, count: int, k: int, parts: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    scores = random.integers(-2, 3, (queries, count)).astype(np.float32)  # many ties
    of_student = random.normal(size=(queries, count)).astype(np.float32)
    part_of = random.integers(parts, size=count)
    places = [np.flatnonzero(part_of == part) for part in random.permutation(parts)]
    for side, signed in (("top", -scores), ("bottom", scores)):
        expected = np.argsort(signed, axis=1, kind="stable")[:, :k]
        each = [
            best_of([Ranked(np.broadcast_to(rows, (queries, len(rows))), scores[:, rows], of_student[:, rows])], k, side)  # type: ignore[arg-type]
            for rows in places
        ]
        found = best_of(each, k, side)  # type: ignore[arg-type]
        np.testing.assert_array_equal(found.rows, expected)
        np.testing.assert_array_equal(found.scores, np.take_along_axis(scores, expected, axis=1))
        assert found.student_scores is not None
        np.testing.assert_array_equal(found.student_scores, np.take_along_axis(of_student, expected, axis=1))
