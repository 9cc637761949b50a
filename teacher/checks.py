"""Checks of a teacher before and after the long part: rows together against rows alone, projected against whole gradients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from influcoder.errors import ConfigError, RunError
from influcoder.influence.batch_budget import Budget, project_rows, within_memory
from influcoder.influence.capture import Layer
from influcoder.influence.exact import ExactProducts, exact_products
from influcoder.influence.gradients import GradientProjector, Transform
from influcoder.influence.self_check import check_gradients
from influcoder.influence.tokens import TokenizedRow
from influcoder.metrics import per_query_spearman
from teacher.config import ChecksConfig

CHECKED_BYTES = 1 << 30
"""of weights whose gradients the self-check holds: all of a small decoder, some layers of a large one"""


def check_rows_alone(projector: GradientProjector, rows: Sequence[TokenizedRow]) -> float:
    """Compare the shortest, middle and longest row taken together with each alone; print and return the relative difference.

    The longest one is the longest of which three fit a batch, and memory.

    Raises:
        RunError: when they differ.
    """
    ordered = sorted(rows, key=lambda row: len(row.input_ids))
    layers = _some(projector.layers)
    part = GradientProjector(
        projector.decoder,
        projector.config,
        projector.seeds[:1],
        layers=layers,
        bases=projector.bases[:1],
        unit_layers=projector.unit_layers,
    )

    def check(max_batch_tokens: int) -> float:
        fitting = [row for row in ordered if 3 * len(row.input_ids) <= max_batch_tokens] or ordered[:1]
        return check_gradients(part, [fitting[0], fitting[len(fitting) // 2], fitting[-1]])

    difference = within_memory(Budget(None, projector.config.max_batch_tokens), ordered[:1], check)
    print(f"self-check: 3 rows together and alone differ by {difference:.1e} of their gradients' length ({len(layers)} layers)")
    return difference


def check_projection(
    projector: GradientProjector, transforms: tuple[Transform | None, Transform | None], rows: Sequence[TokenizedRow], config: ChecksConfig
) -> dict[str, Any] | None:
    """Return how well projected cosines follow exact ones on a seeded sample of rows; None when it is left out.

    Args:
        projector: of the last checkpoint.
        transforms: of queries and of rows.
        rows: the pool.
        config: sizes.
    """
    order = np.random.default_rng(1).permutation(len(rows))
    num_queries = min(config.queries, len(rows) // 3)
    if num_queries < 1 or len(rows) - num_queries < 3:
        return None
    chosen = [rows[place] for place in order[: num_queries + config.rows]]
    queries, candidates = chosen[:num_queries], chosen[num_queries:]
    budget = Budget(None, projector.config.max_batch_tokens)
    whole = (projector.whitenings[0],) * 2 if projector.whitenings else transforms  # of the first seed, the target

    def multiply(max_batch_tokens: int) -> ExactProducts:
        return exact_products(
            projector.decoder, projector.layers, queries, candidates, max_batch_tokens=max_batch_tokens, max_bytes=config.max_bytes,
            query_transform=whole[0], row_transform=whole[1], unit_layers=projector.unit_layers,
        )  # fmt: skip

    try:
        exact = within_memory(budget, chosen, multiply)
        asking, asked = (
            _unit(projector.transformed(transform), part, budget) for transform, part in zip(transforms, (queries, candidates), strict=True)
        )
    except (ConfigError, RunError) as error:  # the features are there; a check that does not fit costs none of them
        print(f"exact cosines left out: {error}")
        return None
    projected = asking @ asked.T  # (Q, N)
    rank = float(per_query_spearman(projected, exact.cosines).mean())
    deviation = float(np.sqrt(np.mean((projected - exact.cosines) ** 2)))
    spread = float(exact.cosines.std(axis=1).mean())
    print(
        f"projection: {rank:.3f} per-query Spearman with exact cosines; error {deviation:.4f} where a query's cosines spread {spread:.4f}"
    )
    return {"queries": num_queries, "rows": len(candidates), "per_query_spearman": rank, "rms_error": deviation, "spread": spread}


def _unit(projector: GradientProjector, rows: Sequence[TokenizedRow], budget: Budget) -> NDArray[np.float64]:
    found = project_rows(projector, rows, budget)[0].astype(np.float64)  # of the first seed, the target
    unit: NDArray[np.float64] = found / np.linalg.norm(found, axis=1, keepdims=True)
    return unit


def _some(layers: Mapping[str, Layer]) -> dict[str, Layer]:
    """Return layers spread evenly over the model whose weights fit the check's memory, one at least."""
    names = list(layers)
    each = 4 * max(layer.weight.numel() for layer in layers.values())
    count = max(1, min(len(names), CHECKED_BYTES // each))
    return {
        names[place]: layers[names[place]]
        for place in sorted({round(step * (len(names) - 1) / max(1, count - 1)) for step in range(count)})
    }
