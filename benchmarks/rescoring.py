"""What `--rescore` costs and brings: share of a pool that the teacher has to touch against recall of the teacher's own top 10.

    python -m benchmarks.rescoring     after make bench-student and make bench-planted; some minutes, nothing is trained

The student's N first rows of a query are scored again by its teacher, so of the teacher's ten best rows those are found that lie among these N
(*alone*); with several queries each ranks whatever the teacher has touched for any of them (*together*). Rows and queries are those of the
runs' eval: test rows that ask for other test rows, and the planted bench's task queries. Short-lists are shares of the rows (of a fold, where
the student is cross-fitted). Writes benchmarks/results/rescoring.json; `python -m benchmarks.rescoring_table` quotes and draws it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import bench_student
from benchmarks.bench_eval import find_data
from eval.bootstrap import Resampler
from eval.config import EvalConfig
from eval.data import load_teacher
from eval.encoders import Embedder, encoder_scores, student_scores
from eval.floors import bm25_scores, random_scores
from eval.judged import Judged
from eval.stage import make_judged
from eval.students import load_students
from eval.teachers import ceiling_scores, teacher_scores
from influcoder.metrics import Array, top_ranks
from influcoder.program import parse_config
from influcoder.runs import git_commit, write_text_atomic

RESULT = Path("benchmarks/results/rescoring.json")
K, WANTED = 10, 0.95
SHARES = np.arange(1, 1001) / 1000
"""of the rows in a query's short-list, at which curves are taken"""
WRITTEN = (10, 20, 30, 50, 70, 100, 150, 200, 300, 400, 500, 600, 700, 800, 900, 1000)
"""which of them are written, from 1"""
Curves = NDArray[np.float64]


@dataclass(frozen=True)
class Panel:
    """One kind of query on one bench: by fold, the scores of S seeds, (S, Q, N), of every method, and the teacher's, (Q, N)."""

    target: Sequence[Array]
    methods: Mapping[str, Sequence[Array]]
    folds_ask_alike: bool
    """the same queries ask in every fold; otherwise each has its own"""


def main() -> int:
    """Measure every panel, write."""
    if find_data() is None:
        return 2
    resampler, panels = Resampler(draws=2000, seed=0), {}
    for name, panel in every_panel():
        panels[name] = measure(panel, resampler)
        print(name, json.dumps({method: found["needed"] for method, found in panels[name]["methods"].items()}), flush=True)
    write_text_atomic(RESULT, json.dumps({"git_commit": git_commit(), "k": K, "wanted": WANTED, "panels": panels}, indent=1) + "\n")
    return 0


def every_panel() -> Iterator[tuple[str, Panel]]:
    """Yield the panels of the students that follow their teacher best, and of the planted bench."""
    for bench in ("mixed", "plain"):
        root = bench_student.ROOT / bench
        runs = tuple(str(root / bench_student.run_name("ours", seed)) for seed in bench_student.SEEDS)
        yield from panels_of(bench, EvalConfig(teacher=str(root / "teacher"), student=runs, output="unused"), ())
    planted, _ = parse_config(EvalConfig, ["configs/bench_teachers/eval_planted.yaml"], "rescoring")
    yield from panels_of("planted", planted, ("poison", "toxicity"))


def panels_of(bench: str, config: EvalConfig, tasks: Sequence[str]) -> Iterator[tuple[str, Panel]]:
    """Yield the panels of one bench: its rows as queries, then its tasks' queries."""
    teacher = load_teacher(Path(config.teacher))
    student, embedder = load_students(config.student, teacher), Embedder("cpu")
    judged = make_judged(config, teacher, student)
    target = teacher_scores(teacher, judged, teacher.record["seeds"][0]).asked[0]
    asked = {
        "student": student_scores(embedder, student, judged, 0.0).asked,
        "bm25": bm25_scores(judged).asked,
        "untrained": encoder_scores(embedder, student.first[0].folder / "initial_encoder", judged).asked,
        "random": random_scores(judged, config.seed).asked,
        "second_seed": ceiling_scores(teacher, judged).asked,
    }
    yield f"{bench}, rows ask", _panel(target, asked, judged, judged.block, alike=False)
    for name in tasks:
        asking = judged.task_asking(judged.tasks[name])

        def block(scores: Array, fold: int, asking: NDArray[np.int64] = asking) -> Array:
            return scores[asking][:, judged.folds[fold].rows]

        yield f"{bench}, {name} queries", _panel(target, asked, judged, block, alike=True)


def _panel(target: Array, asked: Mapping[str, Array], judged: Judged, block: Callable[[Array, int], Array], *, alike: bool) -> Panel:
    folds = range(len(judged.folds))
    methods = {name: [np.stack([block(seed, fold) for seed in scores]) for fold in folds] for name, scores in asked.items()}
    return Panel([block(target, fold) for fold in folds], methods, alike)


def measure(panel: Panel, resampler: Resampler) -> dict[str, Any]:
    """Return the figures of one panel."""
    rows = float(np.mean([block.shape[1] for block in panel.target]))
    kept, methods, asking = np.array(WRITTEN) - 1, {}, 0
    for name, blocks in panel.methods.items():
        alone, together, touched = curves(blocks, panel.target, alike=panel.folds_ask_alike)
        asking = len(alone)
        draws = {which: _drawn(recall, resampler) for which, recall in (("alone", alone), ("together", together))}
        methods[name] = {
            "alone": _points(alone, draws["alone"], kept),
            "together": _points(together, draws["together"], kept),
            "touched_by_all": [round(float(value), 4) for value in touched[kept]],
            "needed": needed(alone.mean(axis=0), draws["alone"], rows),
            "needed_together": needed(together.mean(axis=0), draws["together"], rows, touched),
        }
    return {"rows": rows, "queries": asking, "shares": [float(share) for share in SHARES[kept]], "methods": methods}


def curves(blocks: Sequence[Array], target: Sequence[Array], *, alike: bool) -> tuple[Curves, Curves, Curves]:
    """Return `recall_curves` at `SHARES` of the rows, means over seeds; queries of all folds, or means over folds where these ask alike.

    Args:
        blocks: by fold, (S, Q, N) scores that choose the short-lists.
        target: by fold, (Q, N) the teacher's.
        alike: the same queries ask in every fold.
    """
    by_fold = []
    for scores, wanted in zip(blocks, target, strict=True):
        of_seeds = [recall_curves(seed, wanted, K, np.ceil(SHARES * wanted.shape[1])) for seed in scores]
        by_fold.append([np.mean(each, axis=0) for each in zip(*of_seeds, strict=True)])
    alone, together, touched = zip(*by_fold, strict=True)
    join: Callable[..., Curves] = np.mean if alike else np.concatenate
    return join(alone, axis=0), join(together, axis=0), np.mean(touched, axis=0)


def recall_curves(predicted: Array, target: Array, k: int, sizes: NDArray[np.floating]) -> tuple[Curves, Curves, Curves]:
    """Return what short-lists of `sizes` (L,) predicted rows hold of the target's top k of each query; ties keep the row order.

    Args:
        predicted: (Q, N) scores that choose the short-lists.
        target: (Q, N) scores that choose what is wanted.
        k: rows that are wanted.
        sizes: of the short-lists.

    Returns:
        (Q, L) share of the wanted rows in the query's own short-list, (Q, L) in those of all queries together, and (L,) share of the rows in these.
    """
    highest = np.argsort(np.argsort(-predicted, axis=1, kind="stable"), axis=1).min(axis=0)  # (N,) rank of a row where it stands highest
    wanted = np.argsort(-target, axis=1, kind="stable")[:, :k]
    ranks = top_ranks(predicted, target, k), highest[wanted]
    alone, together = ((found[:, :, None] < sizes).mean(axis=1) for found in ranks)
    return alone, together, (highest[:, None] < sizes).mean(axis=0)


def needed(recall: Curves, draws: Curves, rows: float, touched: Curves | None = None) -> dict[str, Any]:
    """Return the least share of rows in a short-list whose mean recall is `WANTED`, its interval over queries, and what it comes to.

    Args:
        recall: (SHARES,) mean.
        draws: (D, SHARES) of resampled queries.
        rows: of the pool.
        touched: (SHARES,) share of the rows that the teacher touches for all queries; None for a query alone.
    """
    place, places = int(np.argmax(recall >= WANTED - 1e-9)), np.argmax(draws >= WANTED - 1e-9, axis=1)
    found = {"share": SHARES[place], "interval": np.quantile(SHARES[places], [0.025, 0.975])}
    if touched is not None:
        found |= {"touched": touched[place], "touched_interval": np.quantile(touched[places], [0.025, 0.975])}
    rounded = {name: np.round(value, 4).tolist() for name, value in found.items()}
    return rounded | {"rows": int(np.ceil(SHARES[place] * rows))}


def _drawn(recall: Curves, resampler: Resampler) -> Curves:
    return resampler.counts("queries", len(recall)).astype(np.float64) @ recall / len(recall)


def _points(recall: Curves, draws: Curves, kept: NDArray[np.int64]) -> list[dict[str, Any]]:
    ends = np.quantile(draws[:, kept], [0.025, 0.975], axis=0).T
    return [
        {"value": round(float(value), 4), "interval": np.round(end, 4).tolist()}
        for value, end in zip(recall.mean(axis=0)[kept], ends, strict=True)
    ]


if __name__ == "__main__":
    raise SystemExit(main())
