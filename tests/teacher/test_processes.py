"""Several processes of one job make what one makes, and what they leave behind is taken up by any number of them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from influcoder.errors import RunError
from influcoder.features import Manifest, has_shard
from influcoder.influence.batch_budget import Budget
from influcoder.influence.gradients import GradientConfig, GradientProjector
from influcoder.influence.tokens import tokenize
from influcoder.runs import open_run, partial_folder
from influcoder.scores import load_scores
from teacher.features import Side, write_gradients
from teacher.processes import Processes, join_processes
from tests.fork_server import ENVIRONMENT, ROOT, ForkServer, kill
from tests.influcoder.tiny_decoders import ROWS, fresh_decoder
from tests.teacher.test_kill import files_of, products, write_config


@pytest.fixture(scope="module")
def alone(server: ForkServer, inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = write_config(tmp_path_factory.mktemp("alone"), inputs, "less")
    server.run(config)
    return config.parent / "run"


def log_of(config: Path) -> str:
    return Path(f"{config}.log").read_text()


@pytest.mark.slow
def test_two_processes_of_torchrun_make_what_one_makes(alone: Path, inputs: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path, inputs, "less")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone", "-m", "teacher", str(config)]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("self-check") == done.stdout.count(": complete") == 1  # the first alone speaks
    run = tmp_path / "run"
    assert products(run) == products(alone)
    found, expected = (load_scores(folder / "scores" / "seed-0").values for folder in (run, alone))
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert open_run(run, "teacher")["processes"] == 2


@pytest.mark.slow
@pytest.mark.parametrize(("lost", "count"), [(1, 1), (0, 3)])
def test_a_lost_process_ends_the_others_and_any_number_goes_on(
    lost: int, count: int, server: ForkServer, alone: Path, inputs: Path, tmp_path: Path
) -> None:
    config = write_config(tmp_path, inputs, "less")
    ranks = server.start_ranks(config, 2)
    while files_of(tmp_path / "run") < 40 and not server.ended(ranks[0]):
        time.sleep(0.0005)
    kill(ranks[lost])
    codes = [server.wait(rank) for rank in ranks]
    assert codes[lost] == -9
    assert codes[1 - lost] == 2, log_of(config)
    assert "error: process" in log_of(config) and "Traceback" not in log_of(config), log_of(config)
    assert not (tmp_path / "run").exists() and partial_folder(tmp_path / "run").exists()
    if count == 1:
        server.run(config)
    else:
        assert [server.wait(rank) for rank in server.start_ranks(config, count)] == [0] * count, log_of(config)
    assert products(tmp_path / "run") == products(alone)
    assert open_run(tmp_path / "run", "teacher")["processes"] == count
    assert not list((tmp_path / "run").rglob("*.writing"))


@pytest.mark.slow
def test_what_the_first_refuses_ends_all(server: ForkServer, inputs: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path, inputs, "less")
    (tmp_path / "run").mkdir()
    codes = [server.wait(rank) for rank in server.start_ranks(config, 2)]
    assert codes == [2, 2], log_of(config)
    assert f"error: {tmp_path / 'run'}: exists already" in log_of(config)
    assert "Traceback" not in log_of(config)


class Unmet(Processes):
    """A process whose others are elsewhere."""

    def barrier(self) -> None:
        pass


def test_a_process_takes_its_own_shards_and_leaves_the_others(tmp_path: Path) -> None:
    decoder = fresh_decoder()
    side = Side("rows", ROWS, tokenize(ROWS, decoder))
    projector = GradientProjector(decoder, GradientConfig(factors="random", dim=64, shard_rows=1), [0, 1])
    manifest = Manifest(
        ids=tuple(row.id for row in ROWS), dim=64, shard_rows=1, method="m", seed=0, rows_fingerprint="r", decoder_fingerprint="d"
    )
    stores = [tmp_path / "seed-0", tmp_path / "seed-1"]
    found = []
    for rank in range(3):
        budget = Budget.of(tmp_path, rank, 4096)
        write_gradients(stores, manifest, side, projector, budget, Unmet(rank, 3))
        found.append([[shard for shard in range(4) if has_shard(store, shard)] for store in stores])
    assert found == [[[0, 3]] * 2, [[0, 1, 3]] * 2, [[0, 1, 2, 3]] * 2]


def test_alone_there_is_nothing_to_join(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WORLD_SIZE", "RANK"):
        monkeypatch.delenv(name, raising=False)
    with join_processes() as processes:
        assert processes.first and processes.takes(0) and processes.takes(1)
        processes.barrier()


def test_a_barrier_that_fails_says_so_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise RuntimeError("Connection closed by peer\n[127.0.0.1]")

    monkeypatch.setattr("torch.distributed.barrier", fail)
    with pytest.raises(RunError, match=r"process 1 of 2: another one ended \(Connection closed by peer"):
        replace(Processes(1, 2)).barrier()
