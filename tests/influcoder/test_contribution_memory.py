"""A report takes about the memory that it says beforehand: what its largest part allocates, row by row, is what is said of it."""

from __future__ import annotations

import random
import tracemalloc
from pathlib import Path

import pytest

from influcoder.contributions.copies import canonical_text, near_pairs
from influcoder.contributions.inputs import read_pool
from influcoder.contributions.report import estimated_bytes
from influcoder.readers import Columns, DataSource
from tests.influcoder.contribution_reports import write_jsonl

SYLLABLES = [first + second for first in "bdgklmnprst" for second in ("an", "er", "il", "os", "um")]


def allocated_and_said(folder: Path, count: int, length: int) -> tuple[int, int]:
    """Return the bytes that texts and near-copies of `count` rows allocate at their peak, and what is said of them beforehand."""
    draw = random.Random(count)

    def words(number: int) -> str:
        return " ".join(draw.choice(SYLLABLES) + draw.choice(SYLLABLES) for _ in range(number))

    rows = [{"id": f"r{row}", "prompt": words(10), "response": words(length), "who": f"c{row % 9}"} for row in range(count)]
    pool = DataSource(paths=(write_jsonl(folder / "pool.jsonl", rows),), columns=Columns(contributor="who"))
    tracemalloc.start()
    try:
        examples = read_pool(pool)
        assert near_pairs([canonical_text(row) for row in examples], 0.5) == []
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    return peak, estimated_bytes(examples, 0, 0)


@pytest.mark.parametrize("length", [20, 80])
def test_a_report_takes_what_it_says(tmp_path: Path, length: int) -> None:
    pytest.importorskip("datasketch")
    few, more = (allocated_and_said(tmp_path, count, length) for count in (200, 600))
    taken, said = more[0] - few[0], more[1] - few[1]  # what does not depend on the rows cancels
    assert 0.7 < taken / said < 1.3, (taken / 400, said / 400)
