"""SIGKILL at seeded random moments, then the same command again: every file of features and scores is as if nothing had happened.

`SOAK=20 pytest tests/teacher/test_kill.py` (`make soak`) takes 20 moments instead of 5.
"""

from __future__ import annotations

import json
import os
import random
import time
from pathlib import Path

import pytest

from influcoder.runs import open_run, partial_folder
from tests.fork_server import ForkServer, kill

POINTS = int(os.environ.get("SOAK", "5"))
METHODS = ("less", "influcoder", "ekfac", "trackstar", "f_influence")[: 3 if POINTS <= 5 else 5]
"""combining checkpoints, finished at once, factors of its own, preconditioning, noise scales and tables"""
pytestmark = pytest.mark.slow
CONFIG = """
output: {output}
rows: {{paths: [{inputs}/pool.jsonl]}}
queries: {{paths: [{inputs}/queries.jsonl], columns: {{weight: weight}}}}
decoder: {{fresh: {{hidden_size: 16, layers: 1, heads: 2, intermediate_size: 16, vocab_size: 280, max_tokens: 96}}, device: cpu}}
text: {{max_prompt_chars: 20, max_response_chars: 40}}
finetune: {{epochs: 2, checkpoints: 2, max_batch_tokens: 128}}
method: {method}
gradients: {gradients}
trainer: {{enable_progress_bar: false}}
"""


def write_config(folder: Path, inputs: Path, method: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "config.yaml"
    gradients = "{rank: null, dim: 256, shard_rows: 6}" if method == "ekfac" else "{rank: 4, output_rank: 4, sketch: none, shard_rows: 6}"
    path.write_text(CONFIG.format(output=folder / "run", inputs=inputs, method=method, gradients=gradients))
    return path


def products(run: Path) -> dict[str, bytes]:
    """Return the bytes of all that a run is made for: features, scores, and what they came from."""
    names = ("features", "scores", "basis", "decoder", "checkpoints", "fisher", "ekfac")
    return {str(path.relative_to(run)): path.read_bytes() for name in names for path in sorted((run / name).rglob("*")) if path.is_file()}


def files_of(run: Path) -> int:
    """Return how many files an unfinished run holds."""
    return sum(len(names) for _, _, names in os.walk(partial_folder(run)))


@pytest.fixture(scope="module")
def whole(server: ForkServer, inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[dict[str, bytes], int]]:
    """What an uninterrupted run of each method makes, and how many files it held at most."""
    made = {}
    for method in METHODS:
        config, most = write_config(tmp_path_factory.mktemp(method), inputs, method), 0
        pid = server.start(config)
        while not server.ended(pid):
            most = max(most, files_of(config.parent / "run"))
        assert server.wait(pid) == 0, Path(f"{config}.log").read_text()
        made[method] = products(config.parent / "run"), most
    return made


@pytest.mark.parametrize("point", range(POINTS))
def test_a_killed_run_goes_on_and_ends_the_same(
    point: int, server: ForkServer, inputs: Path, whole: dict[str, tuple[dict[str, bytes], int]], tmp_path: Path
) -> None:
    source, method = random.Random(point), METHODS[point % len(METHODS)]
    expected, files = whole[method]
    config = write_config(tmp_path, inputs, method)
    run, killed = tmp_path / "run", 0
    for _ in range(1 + point % 2):
        threshold, delay = source.randint(1, files), source.uniform(0, 0.02)
        pid = server.start(config)
        while files_of(run) < threshold and not server.ended(pid):
            time.sleep(0.0005)
        time.sleep(delay)
        kill(pid)
        killed += server.wait(pid) < 0
        if run.exists():
            break
    assert killed, "too slow to kill it: the moment is after the end"
    if not run.exists():
        server.run(config)
    assert products(run) == expected
    assert open_run(run, "teacher")["seeds"] == [0, 1]
    assert not [path for path in run.rglob("*") if path.name.endswith(".writing")]
    assert not (run / "gradients").exists() and not partial_folder(run).exists()


def test_a_kill_between_a_shard_and_its_record_costs_that_shard_alone(
    server: ForkServer, inputs: Path, whole: dict[str, tuple[dict[str, bytes], int]], tmp_path: Path
) -> None:
    config = write_config(tmp_path, inputs, "influcoder")
    server.run(config)
    run = tmp_path / "run"
    (run / "run.json").unlink()
    run.rename(partial_folder(run))
    rows = partial_folder(run) / "features" / "seed-0" / "rows"
    (rows / "shard-00001.json").unlink()
    (rows / "shard-00001.safetensors").write_bytes(b"of a disk that lost what it had")
    (rows / ".shard-00001.safetensors.writing").write_bytes(b"half")
    stamps = {path: path.stat().st_mtime_ns for path in partial_folder(run).rglob("shard-*.safetensors")}
    server.run(config)
    assert products(run) == whole["influcoder"][0]
    again = {path for path, stamp in stamps.items() if (run / path.relative_to(partial_folder(run))).stat().st_mtime_ns != stamp}
    assert {path.name for path in again} == {"shard-00001.safetensors"}
    assert len(again) == 2  # of both seeds, which one pass makes
    assert json.loads((run / "features" / "seed-0" / "rows" / "shard-00001.json").read_text())["shard"] == 1
    assert not list(rows.glob(".*"))
