"""SIGKILL at seeded random moments, then the same command again: weights and log are to the last byte as if nothing had happened.

`SOAK=20 pytest tests/student/test_kill.py` (`make soak`) takes 20 moments instead of 3.
"""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

import pytest

from influcoder.runs import open_run, partial_folder
from tests.fork_server import ForkServer, kill

POINTS = int(os.environ.get("SOAK", "3"))
pytestmark = pytest.mark.slow
CONFIG = """
output: {output}
teacher: {teacher}
encoder: {{fresh: {{hidden_size: 16, layers: 1, heads: 2, intermediate_size: 16, vocab_size: 300}}, max_tokens: 48, embedding_dim: 8}}
split: {{validation: 0.2, test: 0.2}}
recipe: {{block_rows: 16, max_batch_tokens: 150}}
optimizer: {{learning_rate: 5.0e-3, ema: 0.8}}
patience: 100
save_every_seconds: 0
trainer: {{max_epochs: 15, enable_progress_bar: false, accelerator: cpu, log_every_n_steps: 1, {more}}}
"""


def write_config(folder: Path, teacher: Path, more: str = "") -> Path:
    """Write the config of a small student, whose blocks are of several chunks and whose weights are averaged."""
    path = folder / "config.yaml"
    path.write_text(CONFIG.format(output=folder / "run", teacher=teacher, more=more))
    return path


def products(run: Path) -> dict[str, bytes]:
    """Return the bytes of all that a run is made for, and of its log."""
    names = ("encoder", "initial_encoder", "log")
    return {str(path.relative_to(run)): path.read_bytes() for name in names for path in sorted((run / name).rglob("*")) if path.is_file()}


def lines_of(run: Path) -> int:
    """Return how many lines an unfinished run has logged; each step is saved, and the log before it."""
    try:
        return (partial_folder(run) / "log" / "metrics.csv").read_bytes().count(b"\n")
    except OSError:
        return 0


@pytest.fixture(scope="module")
def whole(server: ForkServer, finished_teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What an uninterrupted run makes."""
    config = write_config(tmp_path_factory.mktemp("whole"), finished_teacher)
    server.run(config)
    return products(config.parent / "run")


@pytest.mark.parametrize("point", range(POINTS))
def test_a_killed_run_goes_on_and_ends_the_same(
    point: int, server: ForkServer, finished_teacher: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    source, lines = random.Random(point), whole["log/metrics.csv"].count(b"\n")
    config = write_config(tmp_path, finished_teacher)
    run, killed = tmp_path / "run", 0
    for _ in range(1 + point % 2):
        threshold, delay = source.randint(0, lines - 5), source.uniform(0, 0.02)
        pid = server.start(config)
        while lines_of(run) < threshold and not server.ended(pid):
            time.sleep(0.0005)
        time.sleep(delay)
        kill(pid)
        killed += server.wait(pid) < 0
        if run.exists():
            break
    assert killed, "too slow to kill it: the moment is after the end"
    if not run.exists():
        server.run(config)
    assert products(run) == whole
    assert open_run(run, "student")["rows_trained"] > 0
    assert not list(run.rglob("*state.safetensors*")) and not partial_folder(run).exists()
