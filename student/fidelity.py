"""What an encoder says of itself: `fidelity.json` and a model card, both in its folder.

The figures are of the validation side, on which the weights were chosen: a little high. `python -m eval` judges on the test side.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer

from influcoder.calibration import FIDELITY_FILE, NORMAL_95, MuScale, fit_mu_scale
from influcoder.influence.f_influence import compose
from influcoder.metrics import aggregated_spearman, per_query_spearman, residual_spearman, top_overlap
from influcoder.model_card import CARD_FILE, model_card
from influcoder.runs import write_text_atomic
from influcoder.sentence_encoder import load_sentence_encoder
from student.module import KeepBest, encode

Scores = NDArray[np.floating]
OVERLAP = 10


def figures(scores: Scores, target: Scores) -> dict[str, float]:
    """Return how well scores follow the target, both (queries, candidates): Spearman by query, of the double-centred, of the means; overlap."""
    return {
        "per_query_spearman": float(per_query_spearman(scores, target).mean()),
        "residual_spearman": float(residual_spearman(scores, target).mean()),
        "aggregated_spearman": aggregated_spearman(scores, target),
        f"top{OVERLAP}_overlap": float(top_overlap(scores, target, min(OVERLAP, target.shape[1])).mean()),
    }


def validation_scores(best: KeepBest, encoder: SentenceTransformer, initial: Path, second: KeepBest | None) -> dict[str, Scores]:
    """Return the scores (queries, candidates) of the student, of the encoder it began as, and of the teacher's second seed if any.

    Args:
        best: validation texts and the teacher's scores.
        encoder: the student.
        initial: folder of the encoder before any training.
        second: the same texts with the scores of the second seed.
    """
    encoders = {"student": encoder, "untrained encoder": load_sentence_encoder(initial)}
    scores: dict[str, Scores] = {name: encode(each, best.queries) @ encode(each, best.candidates).T for name, each in encoders.items()}
    return scores if second is None else scores | {"teacher, second seed": second.target}


def measure(best: KeepBest, scores: Mapping[str, Scores]) -> dict[str, Any]:
    """Return the figures of each method's scores (queries, candidates), as `validation_scores` gives them."""
    found = {name: figures(each, best.target) for name, each in scores.items()}
    return {"queries": len(best.queries), "candidates": len(best.candidates), "epoch": best.best_epoch, "methods": found}


def mu_scale(scores: Scores, vectors: tuple[Scores, Scores], points: int) -> MuScale | None:
    """Return what the student's scores (queries, candidates) say of an f-influence teacher's mu; None where one point gave no intervals.

    Args:
        scores: of the student.
        vectors: of the teacher, (queries, D) and (candidates, D): the recorded points' parts side by side.
        points: how many there were.
    """
    asking, ranked = (np.split(side, points, axis=1) for side in vectors)
    found = compose(np.stack([mine @ theirs.T for mine, theirs in zip(asking, ranked, strict=True)]).astype(np.float64))
    doubt = (found.upper - found.lower) / (2 * NORMAL_95)
    return fit_mu_scale(scores, found.mu, doubt) if np.isfinite(doubt).all() else None


def write(folder: Path, facts: dict[str, Any], validation: dict[str, Any]) -> None:
    """Write `fidelity.json` and `README.md` into an encoder folder, which holds everything else."""
    write_text_atomic(folder / FIDELITY_FILE, json.dumps(facts | {"validation": validation}, indent=2) + "\n")
    write_text_atomic(folder / CARD_FILE, model_card(folder))
