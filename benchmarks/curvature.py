"""Influence functions of a small network against what they claim to say: proximal responses, leaving rows out, training on halves.

    python -m benchmarks.curvature [--output benchmarks/results/curvature.json]     a minute and a half on one core, no data needed

scikit-learn's digits, 1 000 rows of which 100 have a wrong label, a tanh network of 1 210 parameters, three seeds of it. A query's
measurement is minus its margin. All methods answer the same 100 queries; the rows asked about, the masks and the seeds of retraining
are the same for every seed of the network.
"""

from __future__ import annotations

import argparse
import itertools
import os
import platform
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from torch import Tensor, nn

from influcoder.influence.agreement import Judgement, describe, judge
from influcoder.influence.brittleness import margins_without_best
from influcoder.influence.curvature import gauss_newton
from influcoder.influence.influence_function import CurvatureConfig, InfluenceFunction, influence_function
from influcoder.influence.pbrf import responses
from influcoder.influence.retraining import TrainConfig, leave_one_out, measure, train
from influcoder.influence.row_model import RowModel, Rows
from influcoder.influence.small_ekfac import ekfac_solve, fit_small_ekfac
from influcoder.lds import half_masks, lds
from influcoder.metrics import per_query_spearman
from influcoder.runs import git_commit, write_json_atomic

Array = NDArray[np.float64]
RESULT = Path("benchmarks/results/curvature.json")
DRAWS = 2000


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Sizes."""

    rows: int = 1000
    flipped: float = 0.1
    queries: int = 100
    models: int = 3
    """seeds of the network that is attributed"""
    subsets: int = 80
    subset_seeds: int = 3
    """trainings a subset, averaged"""
    suspicious: int = 18
    """rows asked about from the top 300 by self-influence"""
    random: int = 8
    """rows asked about from the others"""
    loo_seeds: int = 4
    brittle_queries: int = 25
    """queries whose best rows are left out, of those that the network gets right"""
    budgets: tuple[int, ...] = (10, 20, 40, 80)
    damping: float = 0.1
    """in mean eigenvalues: of each layer with block, diagonal, EK-FAC"""
    training: TrainConfig = field(default_factory=TrainConfig)


def main() -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.curvature", description=main.__doc__)
    parser.add_argument("--output", type=Path, default=RESULT)
    figures = run(Plan())
    write_json_atomic(parser.parse_args().output, figures)
    return 0


def run(plan: Plan) -> dict[str, Any]:
    """Return every figure."""
    started = time.perf_counter()
    rows, queries, flipped = make_data(plan)
    starts = torch.stack([fresh(seed).theta for seed in range(max(plan.models, plan.subset_seeds, plan.loo_seeds))])
    everything, ask = np.ones((1, len(rows)), dtype=bool), partial(measure, fresh(0), queries=queries, measurement=negative_margin)
    models = [fresh(0).at(train(fresh(0), starts[seed], rows, everything, plan.training, seed)[0]) for seed in range(plan.models)]
    functions = [influence_functions(model, rows, plan.damping) for model in models]
    scores = [{name: one.scores(queries, rows, negative_margin) for name, one in by_name.items()} for by_name in functions]
    self_influence = [{name: one.self_influence(rows) for name, one in by_name.items()} for by_name in functions]
    judgements = judge_all(plan, rows, models, scores, choose_rows(plan, self_influence[0]["full"]), starts, ask)
    print(describe(judgements[0]), flush=True)
    masks = half_masks(plan.subsets, len(rows), 0)
    retrained = [-ask(train(fresh(0), starts[seed], rows, masks, plan.training, seed)) for seed in range(plan.subset_seeds)]
    return {
        "git_commit": git_commit(),
        "hardware": {"machine": platform.machine(), "cpus": os.cpu_count(), "threads": torch.get_num_threads()},
        "seconds": round(time.perf_counter() - started, 1),
        "plan": asdict(plan) | {"budgets": list(plan.budgets)},
        "network": describe_models(models, rows, queries, flipped),
        "agreement": summarise(judgements),
        "lds": linear_datamodelling(scores, masks, np.mean(retrained, axis=0)),
        "lds_seed_to_seed": _mean(per_query_spearman(one.T, other.T).mean() for one, other in itertools.combinations(retrained, 2)),
        "spearman_with_block": {name: _mean(per_query_spearman(one[name], one["block"]).mean() for one in scores) for name in scores[0]},
        "brittleness": brittleness(plan, rows, queries, models[0], scores[0], starts[:2], ask),
        "flips_in_top_10_percent": flips_found(models, rows, flipped, self_influence),
    }


def make_data(plan: Plan) -> tuple[Rows, Rows, NDArray[np.bool_]]:
    """Return rows with some labels flipped, clean queries, and which rows' labels are wrong, (N,)."""
    digits, random = load_digits(), np.random.default_rng(0)
    order = random.permutation(len(digits.target))
    inputs, targets = torch.from_numpy(digits.data[order] / 16), torch.from_numpy(digits.target[order].astype(np.int64))
    flipped = np.zeros(plan.rows, dtype=bool)
    flipped[random.permutation(plan.rows)[: round(plan.flipped * plan.rows)]] = True
    shifts = torch.from_numpy(random.integers(1, 10, plan.rows) * flipped)
    rows = Rows(inputs[: plan.rows], (targets[: plan.rows] + shifts) % 10)
    asked = slice(plan.rows, plan.rows + plan.queries)
    return rows, Rows(inputs[asked], targets[asked]), flipped


def fresh(seed: int) -> RowModel:
    """Return the untrained network."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return RowModel(nn.Sequential(nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 10)), nn.functional.cross_entropy)


def negative_margin(outputs: Tensor, target: Tensor) -> Tensor:
    """Return `log (1 - p) / p` of the target's probability p, from the outputs (K,) of one row."""
    wanted = torch.arange(len(outputs)) == target
    return outputs.masked_fill(wanted, -torch.inf).logsumexp(0) - outputs.masked_fill(~wanted, 0).sum()


def influence_functions(model: RowModel, rows: Rows, damping: float) -> dict[str, InfluenceFunction]:
    """Return every method."""
    structures: tuple[Literal["diagonal", "block", "full"], ...] = ("diagonal", "block", "full")
    return {
        "identity": influence_function(model, rows, CurvatureConfig(matrix="identity")),
        **{name: influence_function(model, rows, CurvatureConfig(structure=name, damping=damping)) for name in structures},
        "ekfac": InfluenceFunction(model, ekfac_solve(model, fit_small_ekfac(model, rows), damping)),
    }


def choose_rows(plan: Plan, self_influence: Array) -> NDArray[np.int64]:
    """Return the places asked about: some that matter, some at random."""
    order, random = np.argsort(-self_influence, kind="stable"), np.random.default_rng(1)
    cut = round(0.3 * len(order))
    return np.concatenate([random.permutation(order[:cut])[: plan.suspicious], random.permutation(order[cut:])[: plan.random]])


def judge_all(
    plan: Plan, rows: Rows, models: list[RowModel], scores: list[dict[str, Array]], asked: NDArray[np.int64], starts: Tensor, ask: Any
) -> list[Judgement]:
    """Return each network's scores against its proximal responses, and all against the same leaving out."""
    left_out = leave_one_out(models[0], starts[: plan.loo_seeds], rows, asked, plan.training, ask)
    judgements = []
    for model, found in zip(models, scores, strict=True):
        matrix = gauss_newton(model, rows)
        damping = plan.damping * float(matrix.dense().trace()) / matrix.size
        given_up, doubled = (responses(model, rows, asked, damping, ask, sign=sign) for sign in (1, -1))
        judgements.append(judge({name: one[:, asked] for name, one in found.items()}, given_up, doubled, left_out))
    return judgements


def summarise(judgements: list[Judgement]) -> dict[str, Any]:
    """Return the means over networks, Spearman and Pearson each, and the Spearman of each network with PBRF."""

    def pair(found: list[Any]) -> dict[str, float]:
        return {measure: _mean(getattr(one, measure) for one in found) for measure in ("spearman", "pearson")}

    names, methods = [*judgements[0].pbrf], [*judgements[0].loo]
    pbrf = {
        name: pair([one.pbrf[name] for one in judgements]) | {"by_model": [one.pbrf[name].spearman for one in judgements]} for name in names
    }
    return {
        "pbrf": pbrf,
        "pbrf_linearity": pair([one.pbrf_linearity for one in judgements]),
        "loo": {name: pair([one.loo[name] for one in judgements]) for name in methods},
        "loo_one_seed": {name: pair([one.loo_one_seed[name] for one in judgements]) for name in methods},
        "loo_ceiling": pair([one.loo_ceiling for one in judgements]),
    }


def linear_datamodelling(scores: list[dict[str, Array]], masks: NDArray[np.bool_], outputs: Array) -> dict[str, Any]:
    """Return each method's score, its lead over identity and its ratio to block, with 95 % intervals over queries."""
    found = {name: np.stack([lds(one[name], masks, outputs) for one in scores]) for name in scores[0]}  # (models, queries)
    drawn = np.random.default_rng(0).integers(outputs.shape[1], size=(DRAWS, outputs.shape[1]))
    means = {name: values.mean(0)[drawn].mean(1) for name, values in found.items()}  # (draws,)
    result = {}
    for name, values in found.items():
        lead, ratio = values.mean() - found["identity"].mean(), values.mean() / found["block"].mean()
        result[name] = {
            "value": float(values.mean()),
            "interval": _interval(means[name]),
            "by_model": [float(value) for value in values.mean(1)],
            "lead_over_identity": {"value": float(lead), "interval": _interval(means[name] - means["identity"])},
            "ratio_to_block": {"value": float(ratio), "interval": _interval(means[name] / means["block"])},
        }
    return result


def brittleness(
    plan: Plan, rows: Rows, queries: Rows, model: RowModel, scores: dict[str, Array], starts: Tensor, ask: Any
) -> dict[str, list[float]]:
    """Return the share of queries that are got wrong without their best rows, by method and budget; of two trainings each.

    `same class` leaves out rows of the query's class by chance: what any method must beat.
    """
    right = np.flatnonzero(ask(model.theta[None])[0] < 0)[: plan.brittle_queries]
    chance = np.random.default_rng(3).random((len(right), len(rows)))
    same = queries.targets[right][:, None] == rows.targets[None]
    asked = {name: found[right] for name, found in scores.items()} | {"same class": chance + same.numpy()}

    def margins(thetas: Tensor) -> Array:
        found: Array = -ask(thetas)[:, right]
        return found

    return {
        name: (margins_without_best(fresh(0), starts, rows, found, plan.budgets, plan.training, margins) < 0).mean(0).tolist()
        for name, found in asked.items()
    }


def flips_found(models: list[RowModel], rows: Rows, flipped: NDArray[np.bool_], self_influence: list[dict[str, Array]]) -> dict[str, float]:
    """Return the share of wrong labels among as many of the most suspicious rows, by self-influence and by plain loss."""
    suspicions = [
        {**found, "loss": model.losses(model.theta, rows).detach().numpy()} for model, found in zip(models, self_influence, strict=True)
    ]
    top = int(flipped.sum())
    return {name: _mean(flipped[np.argsort(-found[name], kind="stable")[:top]].mean() for found in suspicions) for name in suspicions[0]}


def describe_models(models: list[RowModel], rows: Rows, queries: Rows, flipped: NDArray[np.bool_]) -> Mapping[str, float]:
    """Return how well the networks learnt: loss, queries read rightly, wrong labels learnt by heart."""
    read = [model.outputs(model.theta, rows.inputs).argmax(1) == rows.targets for model in models]
    asked = [model.outputs(model.theta, queries.inputs).argmax(1) == queries.targets for model in models]
    return {
        "parameters": len(models[0].theta),
        "training_loss": _mean(float(model.losses(model.theta, rows).mean()) for model in models),
        "query_accuracy": _mean(float(found.double().mean()) for found in asked),
        "flips_learnt": _mean(float(found.numpy()[flipped].mean()) for found in read),
    }


def _mean(values: Any) -> float:
    return float(np.mean(list(values)))


def _interval(draws: Array) -> list[float]:
    return [float(bound) for bound in np.quantile(draws, [0.025, 0.975])]


if __name__ == "__main__":
    raise SystemExit(main())
