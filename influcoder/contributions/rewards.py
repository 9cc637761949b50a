"""A budget of whole units, split in proportion to whole weights: largest remainders, exact."""

from __future__ import annotations

from collections.abc import Sequence


def largest_remainder(weights: Sequence[int], budget: int) -> list[int]:
    """Return whole parts that add up to `budget`, each less than one unit from `budget * weight / sum(weights)`.

    Every part is rounded down, and what is left goes one unit each to the largest remainders (Hamilton's method); among equal
    ones to the first. A larger weight never gets less. Without any positive weight nothing is paid: all parts are 0.

    Raises:
        ValueError: on a negative weight or budget.
    """
    if budget < 0 or any(weight < 0 for weight in weights):
        raise ValueError(f"budget {budget}, least weight {min(weights, default=0)}: expected none below 0")
    total = sum(weights)
    if total == 0:
        return [0] * len(weights)
    parts, remainders = zip(*(divmod(budget * weight, total) for weight in weights), strict=True)
    rewards = list(parts)
    for place in sorted(range(len(weights)), key=lambda place: -remainders[place])[: budget - sum(parts)]:
        rewards[place] += 1
    return rewards
