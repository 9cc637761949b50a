"""`make bench-truth`: do scores predict what retraining does?

    python -m benchmarks.bench_truth     about 2 hours on 2 cores; goes on where it stopped, and from what make bench-planted left

Two questions. *Removal*, on the rows and decoder of `make bench-planted`: take out what each method flags, fine-tune again, ask for the
behaviour. *LDS and tail-patch*: 400 rows, 100 random halves, each trained twice; the student is fitted on rows outside the 400.
Writes benchmarks/results/truth.json.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

from benchmarks import bench_planted, bench_teachers
from benchmarks.bench_eval import find_data, run_steps
from benchmarks.bench_pool import Row, read, write_pool
from influcoder.runs import git_commit, write_text_atomic

ROOT = Path("runs/bench_lds")
RESULT = Path("benchmarks/results/truth.json")
PLANTED, PLAIN, DISTIL = 35, 260, 1600
"""rows of each planted kind in the 400, plain rows in them, rows for the student"""
KINDS = ("poison", "poison_hard", "toxicity", "toxicity_hard")
QUERIES = {"poison": 25, "toxicity": 25, "plain": 50}
METHODS = ("logra", "influcoder", "ekfac", "tracin", "less", "f_influence", "distil")


def main() -> int:
    """Run the stages that are missing, then copy the figures."""
    if code := bench_teachers.run("bench_planted", bench_planted.plan()):
        return code
    data = find_data()
    assert data is not None  # the run before has asked
    if code := run_steps(bench_teachers.ROOT, [("removal", ["eval.truth", "configs/bench_truth/truth_removal.yaml"])], data):
        return code
    if not (ROOT / "data" / "queries.jsonl").exists():  # written last
        write_data(data, ROOT / "data")
    if code := run_steps(ROOT, plan(), data):
        return code
    publish()
    return 0


def plan() -> list[tuple[str, list[str]]]:
    """Return the stages of the second question in order: folder below runs/bench_lds, and the module with its arguments."""
    steps = [("teacher", ["teacher", "configs/bench_truth/teacher.yaml"])]
    steps += [(f"teacher-{method.replace('_', '-')}", ["teacher", f"configs/bench_truth/teacher_{method}.yaml"]) for method in METHODS]
    return [
        *steps,
        ("student", ["student", "configs/bench_truth/student.yaml"]),
        ("truth", ["eval.truth", "configs/bench_truth/truth.yaml"]),
    ]


def write_data(data: Path, folder: Path, seed: int = 0) -> None:
    """Write `rows.jsonl` (the 400), `distil.jsonl` (for the student) and `queries.jsonl`; the same data, the same bytes."""
    write_pool(data, folder, seed, benign=1500, passages=0)
    labels = [json.loads(line) for line in (folder / "labels.jsonl").read_text(encoding="utf-8").splitlines()]
    texts = {row["id"]: row for row in map(json.loads, (folder / "rows.jsonl").read_text(encoding="utf-8").splitlines())}
    source = random.Random(seed)
    by_kind: dict[str, list[Row]] = {kind: [] for kind in (*KINDS, "plain")}
    for label in labels:
        if label["mislabel"] != 1:
            by_kind[label["source"] if label["source"] in KINDS else "plain"].append(texts[label["id"]])
    for rows in by_kind.values():
        source.shuffle(rows)
    chosen = [row for kind, rows in by_kind.items() for row in rows[: PLAIN if kind == "plain" else PLANTED]]
    rest = [row for kind, rows in by_kind.items() for row in rows[PLAIN if kind == "plain" else PLANTED :]]
    source.shuffle(chosen)
    plain_queries = by_kind["plain"][-QUERIES["plain"] :]
    asking = [row for kind in ("poison", "toxicity") for row in source.sample(read(data / kind / "queries.jsonl.gz"), QUERIES[kind])]
    queried = {row["id"] for row in plain_queries}
    distil = source.sample([row for row in rest if row["id"] not in queried], DISTIL)
    for name, rows in (("rows", chosen), ("distil", distil), ("queries", [*asking, *plain_queries])):
        kept = ({key: row[key] for key in ("id", "prompt", "response")} for row in rows)
        write_text_atomic(folder / f"{name}.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept))


def publish() -> None:
    """Copy the figures of both runs."""
    places = {"removal": bench_teachers.ROOT / "removal", "truth": ROOT / "truth"}
    records = {name: json.loads((place / "run.json").read_text()) for name, place in places.items()}
    figures = {
        "git_commits": sorted({record["git_commit"] for record in records.values()}),
        "published_at": git_commit(),
        "hardware": records["truth"]["hardware"],
        "seconds": {name: record["seconds"] for name, record in records.items()},
        **{name: json.loads((place / "truth.json").read_text()) for name, place in places.items()},
    }
    write_text_atomic(RESULT, json.dumps(figures, indent=1) + "\n")
    print(RESULT)


if __name__ == "__main__":
    raise SystemExit(main())
