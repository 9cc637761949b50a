"""What is asked of estimators of influence: do they find flipped rows, agree between seeds, cover nothing where nothing is, match retraining?

Legend: T recorded steps, R trainings (seeds), N rows, G groups.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

from benchmarks.stacked_mlp import Training
from influcoder.influence.f_influence import (
    BLOCKS,
    Composition,
    Influence,
    Recording,
    calibrate,
    compose,
    f_influence,
    group_sums,
    step_influence,
)
from influcoder.influence.two_stage import moment_error, moment_estimate, threshold_estimate

Array = NDArray[np.float64]
Groups = dict[str, NDArray[np.int64]]
NULLS = 500
"""null rows and groups drawn"""
BLOCK_COUNTS = (3, 4, 5, 6, 10, 15)
CHECKPOINTS = 15
"""of a TracIn that saves few"""


@dataclass(frozen=True)
class Recorded:
    """Several trainings on the same rows."""

    products: Array
    """(T, R, N) of gradients with the target's"""
    adam_products: Array | None
    """(T, R, N) of Adam's steps with the target's gradient"""
    flipped: NDArray[np.bool_]
    """(N,)"""
    how: Training
    every: int
    accuracy: float
    """of the networks on the target's rows, mean"""

    def run(self, number: int, products: Array | None = None) -> Recording:
        """Return one training as the estimator reads it."""
        taken = self.products if products is None else products
        rates = np.full(len(taken), self.how.learning_rate)
        return Recording(
            products=taken[:, number], learning_rates=rates, batch_size=self.how.batch_size, population=taken.shape[2],
            recorded_share=1 / self.every,
        )  # fmt: skip

    @property
    def runs(self) -> int:
        """R."""
        return len(self.products[0])


def estimators(recorded: Recorded) -> dict[str, Array]:
    """Return every estimator's scores of all rows, each (R, N); TracIn's with the constant learning rate left out."""
    products, few = recorded.products, np.linspace(0, len(recorded.products), CHECKPOINTS + 1).round().astype(int)[1:] - 1
    found = {"tracin": products.sum(0), f"tracin, {CHECKPOINTS} checkpoints": products[few].sum(0), "last checkpoint": products[-1]}
    sources = {"": products} | ({", Adam's steps": recorded.adam_products} if recorded.adam_products is not None else {})
    for suffix, taken in sources.items():
        if suffix:
            found[f"tracin{suffix}"] = taken.sum(0)
        for name in get_args(Composition):
            found[f"{name}{suffix}"] = np.stack([f_influence(recorded.run(run, taken), name).mu for run in range(recorded.runs)])
    return found


def finding(splits: list[Recorded]) -> dict[str, dict[str, float]]:
    """Return by estimator, as means over splits and seeds: AUC and recall of flipped rows from below, agreement between seeds."""
    found: dict[str, list[dict[str, float]]] = {}
    for recorded in splits:
        for name, scores in estimators(recorded).items():
            count = int(recorded.flipped.sum())
            lowest = np.argsort(scores, axis=1, kind="stable")[:, :count]
            pairs = list(combinations(range(recorded.runs), 2))
            found.setdefault(name, []).append({
                "auc": float(np.mean([roc_auc_score(recorded.flipped, -row) for row in scores])),
                "recall": float(recorded.flipped[lowest].mean()),
                "seed_spearman": float(np.mean([spearmanr(scores[one], scores[other])[0] for one, other in pairs])),
                "seed_overlap": float(np.mean([len(np.intersect1d(lowest[one], lowest[other])) / count for one, other in pairs])),
            })  # fmt: skip
    return {name: {key: float(np.mean([entry[key] for entry in entries])) for key in entries[0]} for name, entries in found.items()}


def coverage(recorded: Recorded, epoch: int, group: int = 20) -> dict[str, Any]:
    """Return how often 95 % intervals hold what they should, by composition and number of blocks.

    A null row is one that is like any other: in every epoch another row of the pool, drawn at random, stands in its place, so that its mu
    is 0 by construction while its steps hang together as a row's do. A null group is as many of them as there are draws in `group`.

    Args:
        recorded: of one split.
        epoch: recorded steps in it.
        group: rows of a null group.
    """
    found: dict[str, Any] = {"blocks": BLOCKS}
    for name in get_args(Composition):
        steps = [step_influence(recorded.run(run), name) for run in range(recorded.runs)]
        found[name] = {blocks: _covered(steps, epoch, group, blocks) for blocks in BLOCK_COUNTS}
    return found


def _covered(steps: list[Array], epoch: int, group: int, blocks: int) -> dict[str, float]:
    source = np.random.default_rng(0)
    whole = [compose(taken, blocks=blocks) for taken in steps]
    mu = np.stack([one.mu for one in whole])
    held: dict[str, list[float]] = {"null_rows": [], "null_groups": [], "other_seeds": [], "distinguishable_rows": []}
    for run, taken in enumerate(steps):
        for key, size in (("null_rows", 1), ("null_groups", group)):
            drawn = source.integers(0, taken.shape[1], (-(-len(taken) // epoch), NULLS, size)).repeat(epoch, axis=0)[: len(taken)]
            nothing = np.take_along_axis(taken, drawn.reshape(len(taken), -1), axis=1).reshape(drawn.shape).sum(2)
            held[key].append(float(1 - compose(nothing, blocks=blocks).distinguishable.mean()))
        others = np.delete(mu, run, axis=0)
        reach = np.hypot(whole[run].upper - mu[run], _reach(others, blocks))  # the others' mean is known no better than that
        held["other_seeds"].append(float((np.abs(mu[run] - others.mean(0)) <= reach).mean()))
        held["distinguishable_rows"].append(float(whole[run].distinguishable.mean()))
    return {key: float(np.mean(values)) for key, values in held.items()}


def _reach(others: Array, blocks: int) -> Array:
    reach: Array = 1.96 * others.std(0, ddof=1) / np.sqrt(len(others))
    return reach


def make_groups(labels: NDArray[np.int64], flipped: NDArray[np.bool_], size: int) -> Groups:
    """Return 24 groups: by the share of flipped rows, of one class each, and drawn from all."""
    source, bad, good = np.random.default_rng(5), np.flatnonzero(flipped), np.flatnonzero(~flipped)
    groups = {}
    for share in (1.0, 0.75, 0.5, 0.25):
        count = round(share * size)
        groups[f"{share:.0%} flipped"] = np.concatenate(
            [source.choice(bad, count, replace=False), source.choice(good, size - count, replace=False)]
        )
    for label in range(10):
        groups[f"class {label}"] = source.choice(good[labels[good] == label], size, replace=False)
    return groups | {f"random {number}": source.choice(len(labels), size, replace=False) for number in range(10)}


def against_retraining(recorded: Recorded, groups: Groups, whole: Array, without: Array) -> dict[str, Any]:
    """Return each group's mu of the second stage, and by estimator the rank correlation of its group sums with it, mean over seeds."""
    moments = [moment_estimate(whole, losses) for losses in without]
    thresholds = [threshold_estimate(whole, losses).mu for losses in without]
    truth, members = np.array([estimate.mu for estimate in moments]), list(groups.values())
    flipped = f_influence(recorded.run(0), groups=members[:1])
    found: dict[str, Any] = {
        "moment": dict(zip(groups, truth.round(3).tolist(), strict=True)),
        "threshold": dict(zip(groups, np.round(thresholds, 3).tolist(), strict=True)),
        "moment_threshold_spearman": float(spearmanr(truth, thresholds)[0]),
        "all_flipped": {"mu": float(flipped.mu[0]), "lower": float(flipped.lower[0]), "upper": float(flipped.upper[0])},
        "spearman": {},
        "pearson": {},
    }
    for name, scores in estimators(recorded).items():
        sums = group_sums(scores, members)
        found["spearman"][name] = float(np.mean([spearmanr(row, truth)[0] for row in sums]))
        found["pearson"][name] = float(np.mean([np.corrcoef(row, truth)[0, 1] for row in sums]))
    return found


def calibration(recorded: Recorded, groups: Groups, whole: Array, without: Array) -> dict[str, dict[str, float]]:
    """Return by composition the factor that all groups ask for, mean over seeds, and how far one of half of them is out for the rest.

    `held_out` is the factor, 1 at best, that the other half still asks for: geometric mean and worst of the seeds. `signs`: of the groups
    whose sign both stages claim to know, the share where they agree; `meet`: of all groups, the share whose two intervals overlap.
    """
    truth = np.array([moment_estimate(whole, losses).mu for losses in without])
    errors = np.array([moment_error(mu, len(whole), without.shape[1]) for mu in truth])
    held_out, found = np.arange(len(truth)) % 2 == 1, {}
    for name in get_args(Composition):
        runs = [f_influence(recorded.run(run), name, groups=list(groups.values())) for run in range(recorded.runs)]
        factors = [calibrate(one.mu, truth, errors) for one in runs]
        halves = [calibrate(one.mu[~held_out], truth[~held_out], errors[~held_out]) for one in runs]
        left = [calibrate(one.scaled(half).mu[held_out], truth[held_out], errors[held_out]) for one, half in zip(runs, halves, strict=True)]
        out = np.abs(np.log(left))
        found[name] = {"factor": float(np.mean(factors)), "held_out": float(np.exp(out.mean())), "held_out_worst": float(np.exp(out.max()))}
        found[name] |= _agreement([one.scaled(factor) for one, factor in zip(runs, factors, strict=True)], whole, without)
    return found


def _agreement(runs: list[Influence], whole: Array, without: Array) -> dict[str, float]:
    second = [moment_estimate(whole, losses) for losses in without]
    mu, lower, upper = (np.array([getattr(estimate, name) for estimate in second]) for name in ("mu", "lower", "upper"))
    known = [one.distinguishable & ((lower > 0) | (upper < 0)) for one in runs]
    signs = [float((np.sign(one.mu) == np.sign(mu))[both].mean()) for one, both in zip(runs, known, strict=True) if both.any()]
    meet = [float(((one.lower <= upper) & (lower <= one.upper)).mean()) for one in runs]
    return {"signs": float(np.mean(signs)) if signs else 1.0, "meet": float(np.mean(meet))}
