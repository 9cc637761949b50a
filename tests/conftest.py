"""What every test shares: no network, few threads, small rows, and where the real data lie."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

# before any library reads them: no hub, no tokenizer threads, no more arithmetic threads than a small machine has
os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
os.environ.setdefault("OMP_NUM_THREADS", "2")

from influcoder.examples import Example, Turn

# the same cases every time, however slow the machine
settings.register_profile("repeatable", deadline=None, derandomize=True, database=None)
settings.load_profile("repeatable")

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def repository() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The real data: $INFLUCODER_DATA, else `shared/data` beside the checkout."""
    folder = Path(os.environ.get("INFLUCODER_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"{folder}: the real data are not here; set INFLUCODER_DATA to their folder")
    return folder


@pytest.fixture
def tiny_rows() -> list[Example]:
    """Rows of every form: one user turn, several turns, plain text, with and without contributor and weight."""
    return [
        Example(id="sum", context=(Turn(role="user", content="Add 2 and 3."),), response="The sum is 5.", contributor="ada"),
        Example(id="sea", context=(Turn(role="user", content="Name a sea."),), response="The North Sea.", contributor="bo"),
        Example(
            id="talk",
            context=(
                Turn(role="system", content="Be brief."),
                Turn(role="user", content="Hello"),
                Turn(role="assistant", content="Hello."),
                Turn(role="user", content="Is ice cold?"),
            ),
            response="Yes.",
        ),
        Example(id="plain", context=(), response="Snow fell on the harbour all night."),
        Example(id="contrast", context=(Turn(role="user", content="Wie heißt du? 名前は?"),), response="Ich heiße Tür. 🚪", weight=-1.0),
    ]
