"""Two runs side by side: `python -m eval.compare --first RUN --second RUN [--method NAME] [--second_method NAME]`.

Figures of the same questions, each with its interval, and their paired difference. Runs are compared only when they judged the
same rows and queries with the same resamples; two methods of one run can be compared too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from eval.bootstrap import Estimate, difference
from eval.table import Section, short, to_text
from influcoder.errors import ConfigError, RunError
from influcoder.program import parse_config, run_program
from influcoder.runs import open_run


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """Compare one method's figures in two eval runs, paired (python -m eval.compare)."""

    first: str
    """folder of an eval run"""
    second: str
    """folder of another that judged the same rows and queries, or the same folder"""
    method: str = "student"
    """row of the first run's table"""
    second_method: str | None = None
    """row of the second run's table; null takes the same as of the first"""


def compare(config: CompareConfig) -> Section:
    """Return the table of differences.

    Raises:
        RunError: when a run is unfinished, or the two did not ask the same.
        ConfigError: when a run has no such method.
    """
    folders = Path(config.first), Path(config.second)
    records = [open_run(folder, "eval") for folder in folders]
    names = config.method, config.second_method or config.method
    for what in ("query_set", "seed"):
        if records[0][what] != records[1][what]:
            raise RunError(
                f"{folders[1]}: {what} {records[1][what]}, but {folders[0]} has {records[0][what]}; "
                "expected runs that judged the same rows and queries with the same seed; run eval on both with the same settings"
            )
    first, second = (_load(folder, name) for folder, name in zip(folders, names, strict=True))
    lines = [_line(metric, first[metric], second[metric]) for metric in first if metric in second]
    header = ("metric", f"{folders[0]}: {names[0]}", f"{folders[1]}: {names[1]}", "first - second", "p")
    return Section(f"{names[0]} and {names[1]}, paired over {len(next(iter(first.values())).draws)} resamples", header, tuple(lines))


def _load(folder: Path, method: str) -> dict[str, Estimate]:
    path = folder / "estimates.parquet"
    try:
        rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise RunError(f"{path}: cannot be read ({error}); expected what the eval stage wrote; run eval again") from error
    found = {
        row["metric"]: Estimate(row["value"], np.array(row["draws"]), row["n"], tuple(row["seeds"]))
        for row in rows
        if row["method"] == method
    }
    if not found:
        raise ConfigError(f"{path}: no method {method!r}; it has {', '.join(dict.fromkeys(row['method'] for row in rows))}")
    return found


def _line(metric: str, first: Estimate, second: Estimate) -> tuple[str, ...]:
    if len(first.draws) != len(second.draws):
        raise RunError(f"{metric}: {len(first.draws)} and {len(second.draws)} resamples; expected as many; use one bootstrap_draws")
    gap = difference(first, second)
    cells = (f"{short(found.value)} [{short(found.interval[0])}, {short(found.interval[1])}]" for found in (first, second))
    return metric, *cells, f"{short(gap.value)} [{short(gap.low)}, {short(gap.high)}]", f"{gap.p:.3f}"


def main(arguments: Sequence[str]) -> None:
    """Print the comparison."""
    config, _ = parse_config(CompareConfig, arguments, "python -m eval.compare")
    print(to_text([compare(config)]))


if __name__ == "__main__":
    run_program(main)
