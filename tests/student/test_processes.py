"""Several processes share every block and train what one process trains."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from influcoder.runs import partial_folder
from student.state import state_file
from tests.fork_server import ENVIRONMENT, ROOT, ForkServer, kill
from tests.student.test_kill import products, write_config

DDP = "devices: 2, strategy: ddp"
pytestmark = pytest.mark.slow


def curve(run: Path, name: str) -> list[float]:
    with (run / "log" / "metrics.csv").open() as stream:
        return [float(row[name]) for row in csv.DictReader(stream) if row[name]]


@pytest.fixture(scope="module")
def shared(finished_teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two processes, of which Lightning started the second: not from the fork server, whose own command it would repeat."""
    config = write_config(tmp_path_factory.mktemp("shared"), finished_teacher, DDP)
    command = [sys.executable, "-m", "student", str(config)]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(" rows; ") == done.stdout.count(": complete") == 1, done.stdout  # the first alone speaks
    return config.parent / "run"


def test_two_processes_learn_what_one_learns(shared: Path, server: ForkServer, finished_teacher: Path, tmp_path: Path) -> None:
    server.run(write_config(tmp_path, finished_teacher))
    for name in ("loss", "validation_per_query_spearman"):
        one, two = curve(tmp_path / "run", name), curve(shared, name)
        assert len(one) >= 15
        np.testing.assert_allclose(two, one, atol=1e-4 if name == "loss" else 0.02)  # a rank may flip between near ties
    first, second = (run / "initial_encoder" / "model.safetensors" for run in (tmp_path / "run", shared))
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize("lost", [0, 1])
def test_a_lost_process_ends_the_other_and_two_go_on(
    lost: int, shared: Path, server: ForkServer, finished_teacher: Path, tmp_path: Path
) -> None:
    config, run = write_config(tmp_path, finished_teacher, DDP), tmp_path / "run"
    ranks = server.start_ranks(config, 2)
    while not state_file(partial_folder(run)).exists() and not server.ended(ranks[0]):
        time.sleep(0.0005)
    kill(ranks[lost])
    assert server.wait(ranks[lost]) == -9
    assert server.wait(ranks[1 - lost]) != 0
    assert not run.exists()
    assert [server.wait(rank) for rank in server.start_ranks(config, 2)] == [0, 0], Path(f"{config}.log").read_text()
    assert products(run) == products(shared)
