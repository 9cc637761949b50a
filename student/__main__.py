"""Command line of the student stage: `python -m student CONFIG.yaml [--dotted.override value]`."""

from __future__ import annotations

from collections.abc import Sequence

from influcoder.program import parse_config, run_program
from student.config import StudentConfig


def main(arguments: Sequence[str]) -> None:
    """Parse the command line and run the stage."""
    config, resolved = parse_config(StudentConfig, arguments, "python -m student")
    from influcoder.training import silence_hints
    from student.stage import run  # torch and sentence-transformers: seconds that --help need not wait for

    silence_hints()
    run(config, resolved)


if __name__ == "__main__":
    run_program(main)
