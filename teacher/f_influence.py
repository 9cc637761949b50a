"""f-influence from projected gradients at T recorded points: features whose products are mu, and tables with its intervals.

With g_t of a row, v_t of a query and sd_t the deviation of <g_t, v_t> over rows (`influcoder/influence/f_influence.py`, standardised):

    row    [g_t - mean g_t]_t          query    [v_t sqrt(B T_all / T) / (n sqrt(T) sd_t)]_t

    RUN/scores/seed-S/f_influence.parquet     query_id, row_id, mu, mu_lower, mu_upper, p_value, distinguishable
    RUN/scores/seed-S/query_set.parquet       row_id, the same, of all queries by their weights as one target
    RUN/scores/seed-S/over_training.parquet   row_id, step, mu: what each recorded step adds to the row's mu on the query set
    RUN/scores/seed-S/f_influence.png         rows of the largest |mu| on the query set, and when they mattered
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from tqdm import tqdm

from influcoder.errors import RunError
from influcoder.features import create_store, has_shard, load_features, write_shard
from influcoder.influence.f_influence import Influence, compose
from influcoder.influence.f_influence_plot import save_run_plot
from teacher.finish import stream
from teacher.job import Job

NOISE_ROWS = 1000
"""rows over which the noise of a query is measured; all where there are fewer"""
Matrix = NDArray[np.float32]


@dataclass(frozen=True)
class Point:
    """What one recorded point needs to become features."""

    mean: NDArray[np.float64]
    """(D,) of the rows' gradients"""
    weights: dict[str, NDArray[np.float64]]
    """by side that asks: the factor of each of its vectors, (rows of the side,)"""


def write_features(job: Job, seed: int, dim: int) -> None:
    """Write the features of one seed: rows, queries, and rows as queries.

    Raises:
        RunError: when the points do not say how many rows a batch had.
    """
    scale = mu_scale(job)
    askers = {"rows_as_queries": "rows"} | ({"queries": "queries"} if "queries" in job.sides else {})
    points = [
        _prepare(job, number, seed, askers, scale)
        for number in tqdm(range(len(job.points)), desc="noise scales", disable=None, leave=False)
    ]
    for target, side in {"rows": "rows", **askers}.items():
        place = job.folder / "features" / f"seed-{seed}" / target
        create_store(place, replace(job.manifest(job.sides[side], dim * len(points)), seed=seed, normalise="none"))
        streams = [_gradients(job, number, seed, side) for number in range(len(points))]
        first = 0
        for shards in zip(*streams, strict=True):
            taken = slice(first, first + len(shards[0][1]))
            if not has_shard(place, shards[0][0]):
                changed = [_change(part, point, target, taken) for point, (_, part) in zip(points, shards, strict=True)]
                write_shard(place, shards[0][0], np.concatenate(changed, axis=1))
            first = taken.stop


def write_tables(job: Job, seed: int) -> None:
    """Write the tables and the plot of one seed, from its features."""
    place, folder = job.folder / "features" / f"seed-{seed}", job.folder / "scores" / f"seed-{seed}"
    queries, rows = load_features(place / "queries"), load_features(place / "rows")
    row_ids, count = list(rows.manifest.ids), len(job.points)
    asking, asked = (np.split(vectors, count, axis=1) for vectors in (queries.as_queries, rows.as_rows))
    with pq.ParquetWriter(folder / "f_influence.parquet", _schema("query_id", "row_id")) as writer:
        for place_of_query, query_id in enumerate(queries.manifest.ids):
            steps = np.stack([part @ vectors[place_of_query] for part, vectors in zip(asked, asking, strict=True)]).astype(np.float64)
            columns = {"query_id": [query_id] * len(row_ids), "row_id": row_ids} | _columns(compose(steps))
            writer.write_table(pa.table(columns, schema=writer.schema))
    steps = _query_set(job, seed)
    influence = compose(steps)
    pq.write_table(pa.table({"row_id": row_ids} | _columns(influence), schema=_schema("row_id")), folder / "query_set.parquet")
    when = [point.step for point in job.checkpoints]
    over = {"row_id": row_ids * count, "step": np.repeat(when, len(row_ids)), "mu": steps.ravel()}
    pq.write_table(pa.table(over), folder / "over_training.parquet")
    save_run_plot(folder / "f_influence.png", row_ids, influence, steps, when)


def mu_scale(job: Job) -> float:
    """Return `sqrt(B T_all / T) / (n sqrt(T))`, what a step's standardised product is multiplied with.

    Raises:
        RunError: when the points do not say how many rows a batch had.
    """
    sizes = [point.batch_size for point in job.checkpoints]
    if any(size is None for size in sizes):
        lacking = next(point.folder for point in job.checkpoints if point.batch_size is None)
        raise RunError(
            f"{lacking}/checkpoint.json: no batch_size; expected points of a recorder, which note it; fine-tune anew, or take tracin"
        )
    steps = np.diff([0, *(point.step for point in job.checkpoints)])
    batch_size = float(np.average([size for size in sizes if size is not None], weights=steps))
    population = len(job.sides["rows"].rows) * (job.config.finetune.share if job.config.finetune else 1.0)
    return float(np.sqrt(batch_size * job.checkpoints[-1].step) / (population * len(sizes)))


def _prepare(job: Job, number: int, seed: int, askers: dict[str, str], scale: float) -> Point:
    """Measure one point: the rows' mean, and each asker's noise over a sample of rows."""
    count, first = len(job.sides["rows"].rows), 0
    chosen = np.zeros(count, bool)
    chosen[np.random.default_rng(0).permutation(count)[:NOISE_ROWS]] = True
    mean, sample = np.zeros(1), []
    for _, part in _gradients(job, number, seed, "rows"):
        mean = mean + part.sum(axis=0, dtype=np.float64) / count
        sample.append(part[chosen[first : first + len(part)]])
        first += len(part)
    others = np.concatenate(sample) - mean.astype(np.float32)
    weights = {}
    for target, side in askers.items():
        noise = [np.sqrt(np.mean((part @ others.T) ** 2, axis=1)) for _, part in _gradients(job, number, seed, side)]
        weights[target] = _factor(np.concatenate(noise), scale)
    return Point(mean, weights)


def _query_set(job: Job, seed: int) -> NDArray[np.float64]:
    """Return what each point adds to every row's mu on the query set, (T, N)."""
    found = []
    weights = np.array([example.weight for example in job.sides["queries"].examples])
    for number in range(len(job.points)):
        queries = np.concatenate([part for _, part in _gradients(job, number, seed, "queries")])
        target = weights @ queries / len(weights)
        products = np.concatenate([part @ target for _, part in _gradients(job, number, seed, "rows")])
        centred = products - products.mean()
        found.append(centred * _factor(np.sqrt(np.mean(centred**2, keepdims=True)), mu_scale(job)))
    return np.stack(found)


def _gradients(job: Job, number: int, seed: int, side: str) -> Iterator[tuple[int, Matrix]]:
    """Yield a point's shards: gradients at their lengths, or at length 1 where each layer's has it."""
    for shard, part in stream(job.store(number, seed, side)):
        yield shard, part / np.linalg.norm(part, axis=1, keepdims=True) if job.normalise == "layers" else part


def _factor(noise: NDArray[np.floating], scale: float) -> NDArray[np.float64]:
    """Return scale / noise; 0 where there is none, since then all rows are alike to the query."""
    result: NDArray[np.float64] = np.divide(scale, noise, out=np.zeros(noise.shape), where=noise > 0)
    return result


def _change(part: Matrix, point: Point, target: str, taken: slice) -> Matrix:
    if target == "rows":
        return (part - point.mean).astype(np.float32)
    return (part * point.weights[target][taken, None]).astype(np.float32)


def _columns(influence: Influence) -> dict[str, object]:
    return {
        "mu": influence.mu, "mu_lower": influence.lower, "mu_upper": influence.upper, "p_value": influence.p_value,
        "distinguishable": influence.distinguishable,
    }  # fmt: skip


def _schema(*ids: str) -> pa.Schema:
    numbers = [(name, pa.float64()) for name in ("mu", "mu_lower", "mu_upper", "p_value")]
    return pa.schema([*((name, pa.string()) for name in ids), *numbers, ("distinguishable", pa.bool_())])
