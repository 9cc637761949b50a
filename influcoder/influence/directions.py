"""What a method puts in the place of a row's gradient before it is projected, at one checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TypeVar

from influcoder.influence.adam import Moments, estimate_moments
from influcoder.influence.batch_budget import Budget, within_memory
from influcoder.influence.capture import Layer
from influcoder.influence.checkpoints import Checkpoint
from influcoder.influence.decoder import Decoder
from influcoder.influence.gradients import Transform
from influcoder.influence.methods import Direction, Method
from influcoder.influence.tokens import TokenizedRow

Row = TypeVar("Row")
MOMENT_ROWS = 256
"""rows over which the second moment is estimated where no optimiser's is known"""


def transforms(
    method: Method,
    decoder: Decoder,
    layers: Mapping[str, Layer],
    point: Checkpoint | None,
    rows: Sequence[TokenizedRow],
    max_batch_tokens: int,
) -> tuple[Transform | None, Transform | None]:
    """Return what replaces the gradients of queries and of rows.

    Args:
        method: says what is wanted.
        decoder: at the checkpoint.
        layers: whose gradients are taken.
        point: the checkpoint; None is the decoder as it stands, whose moments are estimated.
        rows: of the teacher run, from which these are estimated.
        max_batch_tokens: as configured: not what shards have come down to, since a resumed run has to find the same moments to the last bit.

    Raises:
        RunError: when the checkpoint has no moments of these layers.
    """
    wanted: tuple[Direction, Direction] = (method.query_direction, method.direction)
    if set(wanted) == {"gradient"}:
        return None, None
    if point is not None:
        moments = point.moments(decoder.model, layers)
    else:
        sample = spread(rows, MOMENT_ROWS)
        moments = within_memory(Budget(None, max_batch_tokens), sample, partial(estimate_moments, decoder, layers, sample))
    first, second = (_transform(direction, moments) for direction in wanted)
    return first, second


def spread(rows: Sequence[Row], count: int) -> list[Row]:
    """Return `count` rows at equal distances, or all: of those that it returned, all again."""
    count = min(count, len(rows))
    return [rows[place * len(rows) // count] for place in range(count)]


def _transform(direction: Direction, moments: Moments) -> Transform | None:
    return {"gradient": None, "adam_step": moments.step_direction, "second_moment": moments.scaled}[direction]
