"""`make bench-teachers`: every gradient method on planted opinions and unsafe pairs, beside each other and the floors.

    python -m benchmarks.bench_teachers     about 30 minutes on 2 cores; goes on where it stopped

The pool of `make bench-eval` without passages and with 2 000 plain rows; one decoder, fine-tuned on all of it, for every teacher.
Writes benchmarks/results/bench_teachers.json and .md.
"""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.bench_eval import find_data, run_steps, shortened
from benchmarks.bench_pool import write_pool
from benchmarks.bench_questions import write_questions
from influcoder.runs import git_commit

ROOT = Path("runs/bench_teachers")
RESULTS = Path("benchmarks/results")
BENIGN = 1000
METHODS = ("paper", "tracin", "less", "logra", "trackstar")
FOLDS = (0, 1)


def main() -> int:
    """Run the stages that are missing, then copy the figures."""
    return run("bench_teachers", plan())


def run(result: str, steps: list[tuple[str, list[str]]]) -> int:
    """Make the pool and the stages that are missing, then copy the figures."""
    data = find_data()
    if data is None:
        return 2
    if not (ROOT / "data" / "rows.jsonl").exists():
        write_pool(data, ROOT / "data", benign=BENIGN, passages=0)
    if not (ROOT / "data" / "benign.jsonl").exists():  # written last
        write_questions(data, ROOT / "data")
    if code := run_steps(ROOT, steps, data):
        return code
    publish(result, [name for name, _ in steps])
    return 0


def plan() -> list[tuple[str, list[str]]]:
    """Return the stages in order: folder below runs/bench_teachers, and the module with its arguments."""
    steps = [("teacher", ["teacher", "configs/bench_teachers/teacher.yaml"])]
    steps += [(f"teacher-{method}", ["teacher", f"configs/bench_teachers/teacher_{method}.yaml"]) for method in METHODS]
    for fold in FOLDS:
        name = f"student-fold-{fold}"
        settings = ["--output", str(ROOT / name), "--split.fold", str(fold)]
        steps.append((name, ["student", "configs/bench_teachers/student.yaml", *settings]))
    return [*steps, ("eval", ["eval", "configs/bench_teachers/eval.yaml"])]


def publish(result: str, folders: list[str]) -> None:
    """Copy summary and table of the evaluation, the last of the folders, with what each teacher said of its noise and its cost."""
    records = {name: json.loads((ROOT / name / "run.json").read_text()) for name in folders}
    summary = json.loads((ROOT / folders[-1] / "summary.json").read_text())
    told = ("method", "normalise", "gradients", "seeds", "dim", "passes", "seconds", "seed_agreement", "projection", "cost", "git_commit")
    figures = {
        "git_commits": sorted({record["git_commit"] for record in records.values()}),
        "published_at": git_commit(),
        "hardware": records[folders[-1]]["hardware"],
        "stage_seconds": {name: record["seconds"] for name, record in records.items()},
        "teachers": {name: {key: record.get(key) for key in told} for name, record in records.items() if name.startswith("teacher")},
        "summary": {key: shortened(value) for key, value in summary.items() if key not in ("tasks", "query_set")},
    }
    (RESULTS / f"{result}.json").write_text(json.dumps(figures, indent=1) + "\n")
    (RESULTS / f"{result}.md").write_text((ROOT / folders[-1] / "table.md").read_text())
    print(f"{RESULTS}/{result}.json")


if __name__ == "__main__":
    raise SystemExit(main())
