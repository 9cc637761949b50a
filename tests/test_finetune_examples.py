"""The two fine-tuning examples: each records by two lines, its recording feeds the teacher, and a kill changes nothing of it."""

from __future__ import annotations

import os
import random
import shlex
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

import examples.hf_finetune
import examples.lightning_finetune
import teacher.__main__
from influcoder.influence.checkpoints import load_checkpoints
from tests.fork_server import ForkServer, fork_server, kill
from tests.influcoder.recorded_training import record_of
from tests.teacher.test_stage import write_rows

MOMENTS = int(os.environ.get("SOAK", "1"))
EXAMPLES = {"hf": examples.hf_finetune, "lightning": examples.lightning_finetune}
pytestmark = pytest.mark.filterwarnings("ignore:.*mtime may not be reliable")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_rows(folder / "pool.jsonl", 22, seed=0)
    write_rows(folder / "queries.jsonl", 3, seed=1)
    return folder


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_adds_the_callback_in_two_lines_and_feeds_the_teacher(
    name: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = Path(str(EXAMPLES[name].__file__)).read_text()
    assert sum("Recorder" in line for line in source.splitlines()) == 2, "an import and a callback"
    EXAMPLES[name].main(["--rows", str(data / "pool.jsonl"), "--queries", str(data / "queries.jsonl"), "--output", str(tmp_path / "tuned")])
    found = load_checkpoints(tmp_path / "tuned" / "record")
    assert [point.step for point in found] == [4, 9, 13, 18] and all(point.row_ids for point in found)
    command = shlex.split(capsys.readouterr().out.splitlines()[-1])
    assert command[:3] == ["python", "-m", "teacher"]
    teacher.__main__.main([*command[3:], "--decoder.device", "cpu", "--gradients.dim", "512"])
    table = pq.read_table(tmp_path / "tuned" / "teacher" / "scores" / "seed-0" / "query_set.parquet")
    assert table.num_rows == 22 and "mu_lower" in table.column_names


@pytest.fixture(scope="module", params=EXAMPLES)
def server(request: pytest.FixtureRequest) -> Iterator[tuple[str, ForkServer]]:
    """Runs of an example as processes of their own."""
    with fork_server(f"examples.{request.param}_finetune") as serving:
        yield request.param, serving


@pytest.mark.slow
def test_a_killed_example_goes_on_and_records_the_same(server: tuple[str, ForkServer], data: Path, tmp_path: Path) -> None:
    name, serving = server
    source = random.Random(name)

    def run(folder: Path) -> list[str]:
        return ["--rows", str(data / "pool.jsonl"), "--output", str(folder)]

    serving.run(tmp_path / "whole", run(tmp_path / "whole"))
    expected = record_of(tmp_path / "whole" / "record")
    for moment in range(MOMENTS):
        folder, killed = tmp_path / str(moment), 0
        for steps in (source.randint(2, 8), source.randint(9, 16)):
            pid = serving.start(folder, arguments=run(folder))
            while lines_of(folder) < steps and not serving.ended(pid):
                time.sleep(0.0005)
            time.sleep(source.uniform(0, 0.02))
            kill(pid)
            killed += serving.wait(pid) < 0
        assert killed, "too slow to kill it"
        if not (folder / "record" / "recording.json").exists():
            serving.run(folder, run(folder))
        assert record_of(folder / "record") == expected


def lines_of(folder: Path) -> int:
    """Return how many lines an example's recording has."""
    try:
        return (folder / "record" / "steps.csv").read_bytes().count(b"\n")
    except OSError:
        return 0
