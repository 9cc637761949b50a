"""Refuses to judge what the distillation has seen, be it the same text or a near-copy of it."""

from __future__ import annotations

from collections.abc import Sequence

from influcoder.errors import DataError
from influcoder.examples import Example, content_hash
from influcoder.splits import check_no_leakage
from influcoder.text_format import TextFormat, render


def check_leakage(
    train: Sequence[Example], rows: Sequence[Example], task_queries: Sequence[Example], text_format: TextFormat, threshold: float
) -> None:
    """Compare test rows and task queries with the rows that the distillation trained on.

    Args:
        train: the distillation's training rows.
        rows: the test rows.
        task_queries: the task's queries; may be empty.
        text_format: how the split saw the rows.
        threshold: Jaccard overlap of word 3-shingles from which two texts count as copies; the split's own.

    Raises:
        DataError: naming how many leaked and the first of them.
    """
    seen = {content_hash(row.context, row.response): row.id for row in train}
    for query in task_queries:
        row_id = seen.get(content_hash(query.context, query.response))
        if row_id is not None:
            raise DataError(
                f"task query {query.id!r} is the training row {row_id!r} of the distillation; expected queries that it has not seen; "
                "take the query or the row out"
            )
    texts = [render(row, text_format) for row in train]
    check_no_leakage(texts, [render(row, text_format) for row in rows], threshold, "test rows")
    if task_queries:
        check_no_leakage(texts, [render(query, text_format) for query in task_queries], threshold, "task queries")
