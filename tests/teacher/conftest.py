"""What the tests of killed and of several processes share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fork_server import ForkServer, fork_server
from tests.teacher.test_stage import write_rows


@pytest.fixture(scope="session")
def server() -> Iterator[ForkServer]:
    """Runs of the teacher as processes of their own."""
    with fork_server("teacher") as serving:
        yield serving


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 20 rows and 4 queries."""
    folder = tmp_path_factory.mktemp("inputs")
    write_rows(folder / "pool.jsonl", 20, seed=0)
    write_rows(folder / "queries.jsonl", 4, seed=1)
    return folder
