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
from influcoder.runs import write_text_atomic
from influcoder.sentence_encoder import load_sentence_encoder
from student.module import KeepBest, encode

Scores = NDArray[np.floating]
OVERLAP = 10
NAMES = {
    "per_query_spearman": "per query",
    "residual_spearman": "residual",
    "aggregated_spearman": "aggregated",
    f"top{OVERLAP}_overlap": f"top {OVERLAP} overlap",
}


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
    """Write `fidelity.json` and `README.md` into an encoder folder."""
    write_text_atomic(folder / FIDELITY_FILE, json.dumps(facts | {"validation": validation}, indent=2) + "\n")
    write_text_atomic(folder / "README.md", card(facts, validation))


def card(facts: dict[str, Any], validation: dict[str, Any]) -> str:
    """Return the model card."""
    methods: dict[str, dict[str, float]] = validation["methods"]
    rows = [" | ".join(["", name, *(f"{values[key]:.2f}" for key in NAMES), ""]).strip() for name, values in methods.items()]
    table = "\n".join([f"| method | {' | '.join(NAMES.values())} |", f"| --- {'| --- ' * len(NAMES)}|", *rows])
    asked = "rows" if facts["asks"] == "rows" else "queries"
    control = "\n**A control: its target was shuffled. Not for use.**\n" if facts["shuffle_target"] else ""
    return f"""---
library_name: sentence-transformers
tags: [influcoder, training-data-attribution]
---
# Influcoder student
{control}
A text encoder whose dot products rank training rows as gradient influence does: larger = training on the row lowered the loss on the
query more. Distilled from the teacher `{facts["teacher_method"]}` (seed {facts["teacher_seed"]}) of the decoder with fingerprint
`{facts["decoder_fingerprint"]}` on {facts["rows_trained"]} rows of the pool `{facts["rows_fingerprint"]}`. It speaks of that decoder, and of
rows like those.

{table}

Validation side, on which the weights were chosen: {validation["queries"]} {asked} ask for {validation["candidates"]} rows. Spearman with the
teacher's scores; residual: of the double-centred scores, where a query-blind method has 0; aggregated: of the query-averaged scores, which a
query-blind method can have. Texts must be rendered as `text_format.json` says (`influcoder.render`).
"""
