"""Command line of the teacher stage: `python -m teacher CONFIG.yaml [--dotted.override value]`."""

from __future__ import annotations

from collections.abc import Sequence

from influcoder.program import parse_config, run_program
from teacher.config import TeacherConfig


def main(arguments: Sequence[str]) -> None:
    """Parse the command line and run the stage."""
    config, resolved = parse_config(TeacherConfig, arguments, "python -m teacher")
    from influcoder.training import silence_hints
    from teacher.stage import run  # torch and transformers: seconds that --help need not wait for

    silence_hints()
    run(config, resolved)


if __name__ == "__main__":
    run_program(main)
