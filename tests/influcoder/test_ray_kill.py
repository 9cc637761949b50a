"""SIGKILL of actors and drivers on a real Ray cluster, then the same command again: every byte is as the local engine makes it.

`SOAK=50 pytest tests/influcoder/test_ray_kill.py` (`make soak`) takes 50 points instead of 4.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from influcoder.runs import partial_folder
from tests.influcoder.test_attribution import bad_pool, make_rows, write_jsonl
from tests.influcoder.test_attribution_kill import SETTINGS, products

POINTS = int(os.environ.get("SOAK", "4"))
pytestmark = pytest.mark.slow
CLUSTER = """
import sys, ray
node = ray.init("local", num_cpus=2, include_dashboard=False, _temp_dir=sys.argv[1], log_to_driver=False)
print(node.address_info["gcs_address"], flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def ray_environment(repository: Path) -> dict[str, str]:
    """For whoever starts Ray or connects to it: nothing leaves the machine, nobody else's cluster is used."""
    quiet = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_raylet_start_wait_time_s": "120", "RAY_AUTH_MODE": "token"}
    own = {"RAY_AUTH_TOKEN": secrets.token_hex(16), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(repository)}
    return os.environ | quiet | own


@pytest.fixture(scope="module")
def cluster(ray_environment: dict[str, str], repository: Path) -> Iterator[dict[str, str]]:
    """A cluster on this machine, as the environment of a driver."""
    with tempfile.TemporaryDirectory(prefix="ray-") as folder:  # pytest's own names are too long for Ray's sockets
        command = [sys.executable, "-c", CLUSTER, folder]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=repository, env=ray_environment
        ) as process:
            assert process.stdout is not None
            address = process.stdout.readline().strip()
            assert address, "Ray did not start"
            yield ray_environment | {"RAY_ADDRESS": address}
            process.communicate()


@pytest.fixture(scope="module")
def killed(
    cluster: dict[str, str], exported_folder: Path, tmp_path_factory: pytest.TempPathFactory, repository: Path
) -> tuple[Path, list[dict[str, int]]]:
    folder = tmp_path_factory.mktemp("killed")
    pool, queries = bad_pool(folder / "pool.jsonl"), write_jsonl(folder / "queries.jsonl", make_rows(5, seed=1))
    config = json.dumps({"encoder": str(exported_folder), "pool": pool, "queries": queries, **SETTINGS})
    command = [sys.executable, "-m", "tests.influcoder.killed_ray", config, str(folder), str(POINTS)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=repository, env=cluster, check=False)
    assert done.returncode == 0, done.stderr
    return folder, json.loads(done.stdout.splitlines()[-1])  # before it, Ray says that actors died


@pytest.mark.parametrize("point", range(POINTS))
def test_killed_actors_and_drivers_change_no_byte(point: int, killed: tuple[Path, list[dict[str, int]]]) -> None:
    folder, seen = killed
    assert seen[point] == {"actors": 2, "drivers": point % 2}
    made, expected = products(folder / f"point-{point}" / "run"), products(folder / "whole" / "run")
    assert made.keys() == expected.keys() and len(made) > 20
    differ = [name for name in made if made[name] != expected[name]]
    assert differ == ["config.yaml"]
    assert json.loads(made["config.yaml"]) == json.loads(expected["config.yaml"]) | {"engine": "ray"}


def test_a_shard_that_ends_every_actor_is_given_up_and_what_is_committed_stays(
    cluster: dict[str, str], exported_folder: Path, tmp_path: Path, repository: Path
) -> None:
    pool, queries = (
        write_jsonl(tmp_path / "pool.jsonl", make_rows(40, seed=0)),
        write_jsonl(tmp_path / "queries.jsonl", make_rows(2, seed=1)),
    )
    code = f"""
import sys
from functools import partial
from pathlib import Path
from influcoder import attribution
from influcoder.program import run_program
from influcoder.readers import DataSource
from tests.influcoder.killed_ray import KillingEncoder
attribution.OnnxEncoder = partial(KillingEncoder, kills=range(4, 1000), calls=Path({str(tmp_path / "calls")!r}))
config = attribution.AttributionConfig(
    encoder={str(exported_folder)!r}, pool=DataSource(paths=({pool!r},)), queries=DataSource(paths=({queries!r},)),
    output={str(tmp_path / "run")!r}, shard_rows=10, engine="ray", actors=1
)
run_program(lambda arguments: attribution.attribute(config))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=repository, env=cluster, check=False)
    assert done.returncode == 2, done.stderr
    assert "error: Ray: shard 3 ended 4 actors, the last with: " in done.stderr.splitlines()[-1] and "Traceback" not in done.stderr
    assert (tmp_path / "calls").stat().st_size == 3 + 4
    records = sorted(path.name for path in (partial_folder(tmp_path / "run") / "work").glob("*.json"))
    assert records == ["shard-00000.json", "shard-00001.json", "shard-00002.json"]


@pytest.mark.skipif("SOAK" not in os.environ, reason="a loaded machine is slower than its limits: part of `make soak`")
def test_ctrl_c_leaves_no_process_and_the_command_goes_on(
    ray_environment: dict[str, str], exported_folder: Path, tmp_path: Path, repository: Path
) -> None:
    pool, queries = bad_pool(tmp_path / "pool.jsonl"), write_jsonl(tmp_path / "queries.jsonl", make_rows(5, seed=1))
    command = [sys.executable, "-m", "influcoder", "attribute", "--encoder", str(exported_folder), "--shard_rows", "2"]
    command += ["--pool.paths", json.dumps([pool]), "--queries.paths", json.dumps([queries]), "--output"]
    local = subprocess.run([*command, "whole"], cwd=tmp_path, env=ray_environment, capture_output=True, text=True, check=False)
    assert local.returncode == 0, local.stderr
    command += ["run", "--engine", "ray"]
    with tempfile.TemporaryDirectory(prefix="ray-") as folder:
        environment = ray_environment | {"RAY_ADDRESS": "local", "RAY_TMPDIR": folder}
        with subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
            while process.poll() is None and not (tmp_path / ".run.partial" / "work" / "shard-00005.json").exists():
                time.sleep(0.01)
            running = of_session(process.pid)
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all of them
            _, errors = process.communicate(timeout=120)
        assert process.returncode == 130 and errors.splitlines()[-1] == "interrupted; run the same command again to go on", errors
        assert running > 3  # the driver, Ray's servers, actors
        assert of_session(process.pid) == 0
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    made, expected = products(tmp_path / "run"), products(tmp_path / "whole")
    assert made.keys() == expected.keys()
    assert [name for name in made if made[name] != expected[name]] == ["config.yaml"]


def of_session(leader: int) -> int:
    """Return how many processes of a session are there."""
    count = 0
    for process in Path("/proc").glob("[0-9]*"):
        try:
            count += os.getsid(int(process.name)) == leader and "\nState:\tZ" not in (process / "status").read_text()
        except (ProcessLookupError, FileNotFoundError):
            continue
    return count
