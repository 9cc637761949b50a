"""`python -m eval.truth CONFIG.yaml [--dotted.override value]`."""

from __future__ import annotations

from collections.abc import Sequence

from transformers.utils.logging import disable_progress_bar

from eval.truth.config import TruthConfig
from eval.truth.stage import run
from influcoder.program import parse_config, run_program


def main(arguments: Sequence[str]) -> None:
    """Parse the config and run the stage."""
    disable_progress_bar()  # transformers' own, one a loaded model, would break ours
    run(*parse_config(TruthConfig, arguments, "eval.truth"))


if __name__ == "__main__":
    run_program(main)
