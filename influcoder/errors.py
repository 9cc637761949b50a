"""Every error a user can cause, in one short tree.

Each message is one line that says what is wrong, where (file and row), what was expected, and what to do.
The command line prints it and exits with code 2 (`influcoder.program`); our own bugs keep their traceback.

    InflucoderError (ValueError)
    ├── ConfigError         a setting is unknown, missing, of the wrong type, or out of range
    ├── DataError           a row, file, label or text is malformed
    ├── RunError            a run directory or artifact is missing, unfinished, corrupt, or belongs to something else
    ├── GateError           a check on finished results failed: they are written, and not to be believed
    └── MissingExtraError   a package of an optional extra is not installed
"""

from __future__ import annotations

import importlib
from types import ModuleType


class InflucoderError(ValueError):
    """Base of all errors that a user can mend. Its message is one line, whatever library's words it quotes."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(line.strip() for line in message.splitlines()))


class ConfigError(InflucoderError):
    """A setting is unknown, missing, of the wrong type, or out of range."""


class DataError(InflucoderError):
    """A row, file, label or text is malformed."""


class RunError(InflucoderError):
    """A run directory or artifact is missing, unfinished, corrupt, or belongs to something else."""


class GateError(InflucoderError):
    """A check on finished results failed: they are written, and not to be believed."""


class MissingExtraError(InflucoderError, ImportError):
    """A package of an optional extra is not installed."""


def require(module: str, extra: str) -> ModuleType:
    """Import `module`, or say which pip command brings it.

    Raises:
        MissingExtraError: when the module is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not module.startswith(error.name):
            raise
        raise MissingExtraError(f"`{module}` is not installed; do: pip install 'influcoder[{extra}]'") from error
