"""Behaviour as a target: `python -m eval.truth.behavioural CONFIG.yaml` turns the retrained halves of a truth run into scores.

    FOLDER/scores.npy                       (Q, N) float32: what an encoder's embeddings tell of the retrained models' losses
    FOLDER/query_ids.txt, row_ids.txt       whose they are
    FOLDER/behavioural.json                 LDS on subsets that were kept out of the fit, beside that of the encoder's plain products

`python -m teacher.foreign` makes a teacher run of it (`source: {kind: scores, path: FOLDER/scores.npy, ids: FOLDER/row_ids.txt, query_ids:
FOLDER/query_ids.txt}`), and a student distils that with `asks: queries`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from eval.data import TeacherRun, load_teacher
from eval.encoders import Embedder
from influcoder.behavioural import fit_behaviour
from influcoder.errors import ConfigError, RunError
from influcoder.lds import lds
from influcoder.program import parse_config, run_program
from influcoder.runs import create_run, open_run, write_json_atomic, write_text_atomic


@dataclass(frozen=True, kw_only=True)
class BehaviouralConfig:
    """Fit an encoder's embeddings to what retrained models did (python -m eval.truth.behavioural CONFIG.yaml)."""

    truth: str
    """complete run of `python -m eval.truth` with an `lds` block"""
    teacher: str
    """the teacher run that it repeated"""
    encoder: str
    """encoder folder whose embeddings are fitted; not changed"""
    output: str
    """folder to make; must not exist"""
    held_out: float = 0.3
    """share of the subsets, the last ones, that judge the fit alone"""
    device: str = "auto"
    """where the encoder runs"""

    def __post_init__(self) -> None:
        if not 0 < self.held_out < 1:
            raise ConfigError(f"held_out: {self.held_out}; expected a share between 0 and 1")


def run(config: BehaviouralConfig, resolved_yaml: str) -> dict[str, Any]:
    """Make the folder; return what `behavioural.json` says.

    Raises:
        RunError: when the runs do not belong together, or the truth run retrained no halves.
        DataError: when too few subsets are left to fit on.
    """
    teacher = load_teacher(Path(config.teacher))
    masks, outputs = _halves(Path(config.truth), teacher)
    embedder, folder = Embedder(config.device), Path(config.encoder)
    queries, rows = (embedder.embed(folder, side).astype(np.float64) for side in (teacher.queries, teacher.rows))
    fitted = len(masks) - max(3, round(config.held_out * len(masks)))
    with create_run(Path(config.output), "behavioural", resolved_yaml) as made:
        fit = fit_behaviour(queries, rows, masks[:fitted], outputs[:fitted])
        scores = fit.scores(queries, rows)
        facts: dict[str, Any] = {
            "subsets": {"fitted": fitted, "held_out": len(masks) - fitted},
            "penalty": fit.penalty,
            "lds": float(lds(scores.astype(np.float64), masks[fitted:], outputs[fitted:]).mean()),
            "lds_of_plain_products": float(lds(queries @ rows.T, masks[fitted:], outputs[fitted:]).mean()),
        }
        np.save(made.folder / "scores.npy", scores, allow_pickle=False)
        for name, side in (("query_ids", teacher.queries), ("row_ids", teacher.rows)):
            write_text_atomic(made.folder / f"{name}.txt", "".join(f"{example.id}\n" for example in side))
        write_json_atomic(made.folder / "behavioural.json", facts)
        made.facts = facts
    print(f"{config.output}: LDS on halves kept out of the fit {facts['lds']:.3f}, of plain products {facts['lds_of_plain_products']:.3f}")
    return facts


def _halves(truth: Path, teacher: TeacherRun) -> tuple[np.ndarray[Any, np.dtype[np.bool_]], np.ndarray[Any, np.dtype[np.float64]]]:
    """Return masks (M, N) and outputs (M, Q), averaged over trainings."""
    record = open_run(truth, "truth")
    if record.get("rows_fingerprint") != teacher.record["rows_fingerprint"]:
        raise RunError(f"{truth}: repeated another teacher than {teacher.folder}; expected the one that it names, {record.get('teacher')}")
    try:
        masks, outputs = (np.load(truth / "lds" / f"{name}.npy", allow_pickle=False) for name in ("masks", "outputs"))
    except (OSError, ValueError) as error:
        raise RunError(f"{truth}/lds: not readable ({error}); expected the retrained halves; run eval.truth with an lds block") from error
    return masks, outputs.mean(axis=1).astype(np.float64)


def main(arguments: Sequence[str]) -> None:
    """Parse the config and fit."""
    run(*parse_config(BehaviouralConfig, arguments, "eval.truth.behavioural"))


if __name__ == "__main__":
    run_program(main)
