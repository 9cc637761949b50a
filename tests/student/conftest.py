"""What the tests of stages, of killed and of several processes share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fork_server import ForkServer, fork_server
from tests.student.fake_teacher import make_teacher


@pytest.fixture(scope="session")
def server() -> Iterator[ForkServer]:
    """Runs of the student as processes of their own."""
    with fork_server("student") as serving:
        yield serving


@pytest.fixture(scope="session")
def finished_teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher run; copy it before changing it."""
    return make_teacher(tmp_path_factory.mktemp("teacher") / "teacher")
