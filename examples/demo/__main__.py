"""`make demo`: the main job end to end, each step the command that a user would type.

A finished step is not done again, so an interrupted demo goes on where it stopped.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from examples.demo.world import WorldConfig, write_world

ROOT = Path("runs/demo")
STEPS: list[tuple[str, Path, list[str]]] = [
    ("train a decoder on the pool, rank its rows by gradient influence", ROOT / "teacher", ["teacher", "configs/demo/teacher.yaml"]),
    ("distil that ranking into a text encoder", ROOT / "student", ["student", "configs/demo/student.yaml"]),
    (
        "export the encoder to ONNX, accept it only if it ranks alike",
        ROOT / "student/encoder/onnx",
        ["influcoder", "export", "--encoder", "runs/demo/student/encoder", "--sample.paths", "[runs/demo/data/pool.jsonl]"],
    ),
    ("attribute the pool with the ONNX encoder alone", ROOT / "attribution", ["influcoder", "attribute", "configs/demo/attribution.yaml"]),
    ("measure student, teacher and floors on unseen rows and queries", ROOT / "eval", ["eval", "configs/demo/eval.yaml"]),
]


def main() -> int:
    """Run what is missing; return the exit code of the first step that fails."""
    if all(product.exists() for _, product, _ in STEPS):
        print((ROOT / "eval" / "table.md").read_text())
        print("The demo is done: see runs/demo/. To do it again: rm -r runs/demo && make demo")
        return 0
    started = time.monotonic()
    if not (ROOT / "data" / "queries.jsonl").exists():
        write_world(ROOT / "data", WorldConfig())
    for number, (purpose, product, module) in enumerate(STEPS, 1):
        command = [sys.executable, "-m", *module]
        print(f"\n[{number}/{len(STEPS)}] {purpose}\n$ {' '.join(['python', *command[1:]])}", flush=True)
        if product.exists():
            print(f"{product} is there already")
            continue
        code = subprocess.run(command, check=False).returncode
        if code:
            return code
    minutes, seconds = divmod(round(time.monotonic() - started), 60)
    print(f"\nDone in {minutes} min {seconds} s. Look at runs/demo/eval/report.html and runs/demo/attribution/topk.parquet")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
