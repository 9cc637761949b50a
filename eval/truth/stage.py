"""Runs what the config asks for and writes `truth.json`; retrained models are kept one by one, so that a killed run goes on.

RUN/truth.json          figures with intervals; `table.md` and `truth.png` say the same
RUN/models/*.npy        losses of each retrained model (eval/truth/retrainings.py)
RUN/lds/masks.npy       (M, N) rows of the teacher that each was trained on
RUN/lds/outputs.npy     (M, S, Q) minus its losses on the teacher's queries
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t

from eval.bootstrap import Estimate, Resampler, difference
from eval.data import TeacherRun, load_teacher
from eval.table import to_markdown, to_text
from eval.truth.config import LdsConfig, RemovalConfig, TruthConfig
from eval.truth.lds import ceiling, lds_estimates
from eval.truth.methods import Method, ask_methods
from eval.truth.plot import write_plot
from eval.truth.recipe import Recipe, read_recipe
from eval.truth.removal import flag_rows
from eval.truth.retrainings import retrained_losses
from eval.truth.table import make_sections
from eval.truth.tail_patch import tail_patch
from influcoder.lds import half_masks
from influcoder.readers import read_examples
from influcoder.runs import Run, create_run, git_commit, write_json_atomic, write_text_atomic
from influcoder.text_format import truncate_all
from influcoder.training import silence_hints

SCHEMA_VERSION = 1


def run(config: TruthConfig, resolved_yaml: str) -> dict[str, Any]:
    """Make the run, print its tables, return the content of `truth.json`.

    Raises:
        RunError: when runs are unfinished or do not belong together, or the teacher fine-tuned nothing.
        ConfigError: when an eval run has no such task or method.
        DataError: when rows are malformed.
    """
    silence_hints()
    output = Path(config.output)
    teacher = load_teacher(Path(config.teacher))
    recipe = read_recipe(teacher)
    with create_run(output, "truth", resolved_yaml, resume=True) as made:
        truth = _measure(config, teacher, recipe, made)
        made.facts = {"teacher": config.teacher, "seed": config.seed, "rows_fingerprint": teacher.record["rows_fingerprint"]}
        write_json_atomic(made.folder / "truth.json", truth | {"git_commit": git_commit()})
        sections = make_sections(truth)
        write_text_atomic(made.folder / "table.md", to_markdown(sections))
        write_plot(made.folder / "truth.png", truth)
    print(f"\n{to_text(sections)}\n\n{output}: truth.json, table.md, truth.png")
    return truth


def _measure(config: TruthConfig, teacher: TeacherRun, recipe: Recipe, made: Run) -> dict[str, Any]:
    resampler = Resampler(config.bootstrap_draws, config.seed)
    truth: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "decoder": recipe.decoder.path or "fresh",
        "decoder_fingerprint": teacher.record["decoder_fingerprint"],
        "counts": {"rows": len(teacher.rows), "queries": len(teacher.queries)},
    }
    methods = ask_methods(config, teacher) if config.lds or config.tail_patch else {}
    if config.tail_patch is not None:
        found = tail_patch(config.tail_patch, teacher, methods, config.device, config.seed, resampler)
        figures = {
            name: {"role": methods[name].role, "top": figure(patch.top), "bottom": figure(patch.bottom)} for name, patch in found.items()
        }
        truth["tail_patch"] = {"k": config.tail_patch.k, "queries": config.tail_patch.queries, "methods": figures}
    if config.lds is not None:
        truth["lds"] = _lds(config, config.lds, teacher, recipe, methods, made, resampler)
    if config.removal:
        truth["removal"] = {name: _removal(config, name, removal, teacher, recipe, made) for name, removal in config.removal.items()}
    return truth


def _lds(
    config: TruthConfig, lds: LdsConfig, teacher: TeacherRun, recipe: Recipe, methods: dict[str, Method], made: Run, resampler: Resampler
) -> dict[str, Any]:
    masks = half_masks(lds.subsets, len(teacher.rows), config.seed)
    made.worth_resuming = True
    retrainer = recipe.retrainer(teacher.rows, teacher.queries)
    outputs = -retrained_losses(made.folder, retrainer, masks, lds.seeds, config.workers, "halves").astype(np.float64)
    (made.folder / "lds").mkdir(exist_ok=True)
    for name, array in (("masks", masks), ("outputs", outputs.astype(np.float32))):
        np.save(made.folder / "lds" / f"{name}.npy", array, allow_pickle=False)
    estimates = lds_estimates(methods, masks, outputs.mean(axis=1), resampler)
    student = next((estimates[name] for name, method in methods.items() if method.role == "student"), None)
    limit = ceiling(outputs, resampler)
    return {
        "subsets": lds.subsets,
        "seeds": lds.seeds,
        "ceiling": None if limit is None else figure(limit),
        "methods": {
            name: {"role": methods[name].role, "lds": figure(estimate), "student_minus": _lead(student, estimate)}
            for name, estimate in estimates.items()
        },
    }


def _lead(student: Estimate | None, other: Estimate) -> dict[str, float] | None:
    if student is None or other is student:
        return None
    gap = difference(student, other)
    return {"value": gap.value, "low": gap.low, "high": gap.high}


def _removal(config: TruthConfig, name: str, removal: RemovalConfig, teacher: TeacherRun, recipe: Recipe, made: Run) -> dict[str, Any]:
    flagged = flag_rows(name, removal, teacher)
    shown, benign = (truncate_all(read_examples(source), teacher.text_format) for source in (removal.queries, removal.benign))
    made.worth_resuming = True
    masks = flagged.masks()
    retrainer = recipe.retrainer(teacher.rows, [*shown, *benign])
    losses = retrained_losses(made.folder, retrainer, np.stack(list(masks.values())), removal.seeds, config.workers, f"without {name}")
    weights = np.array([row.weight for row in shown])
    margins = _margin(losses[..., : len(shown)].astype(np.float64), weights)  # (sets, seeds)
    prices = losses[..., len(shown) :].mean(axis=-1).astype(np.float64)
    behaviour, price = (dict(zip(masks, over_seeds(found), strict=True)) for found in (margins, prices))
    methods = {
        method: {
            "role": flagged.roles[method],
            "behaviour": [behaviour[method, budget] for budget in removal.budgets],
            "benign_loss": [price[method, budget] for budget in removal.budgets],
            "found": [int((flagged.removed[method, budget] & flagged.positive).sum()) for budget in removal.budgets],
        }
        for method in removal.methods
    }
    return {
        "budgets": list(removal.budgets),
        "positives": int(flagged.positive.sum()),
        "seeds": removal.seeds,
        "measure": "margin of held-out answers with the behaviour over answers without it, nats a token",
        "full": behaviour["full", 0] | {"benign_loss": price["full", 0]},
        "clean": behaviour["clean", 0] | {"benign_loss": price["clean", 0]},
        "methods": methods,
    }


def _margin(losses: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return mean log-probability of rows of weight above 0 less that of rows below, (sets, seeds), from losses (sets, seeds, rows)."""
    shows = losses[..., weights > 0].mean(axis=-1)
    contrast = losses[..., weights < 0].mean(axis=-1) if (weights < 0).any() else np.zeros_like(shows)
    margin: NDArray[np.float64] = contrast - shows
    return margin


def over_seeds(values: NDArray[np.float64]) -> list[dict[str, float]]:
    """Return each set's mean over trainings with its 95 % interval, from (sets, seeds).

    A set has two or three trainings, too few for a deviation of its own: one deviation is pooled over all sets, by Student's t of
    sets x (seeds - 1) degrees. One training a set leaves nothing to pool: the interval is its value.
    """
    sets, seeds = values.shape
    half = 0.0
    if seeds > 1:
        pooled = np.sqrt(values.var(axis=1, ddof=1).mean())
        half = float(t.ppf(0.975, sets * (seeds - 1)) * pooled / np.sqrt(seeds))
    return [{"mean": float(mean), "low": float(mean) - half, "high": float(mean) + half, "n": seeds} for mean in values.mean(axis=1)]


def figure(estimate: Estimate) -> dict[str, Any]:
    """Return an estimate as the JSON has it."""
    low, high = estimate.interval
    return {"mean": estimate.value, "low": low, "high": high, "n": estimate.n}
