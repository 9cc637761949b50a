"""The teacher's own scores: the target (first seed), the ceiling that projection noise sets (the other seeds), and what they cost."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from eval.data import StudentRun, TeacherRun
from eval.judged import Judged
from eval.methods import Array, Cost, MethodGroup, MethodScores
from influcoder.examples import Example
from influcoder.influence.basis import Basis
from influcoder.influence.decoder import Decoder, DecoderConfig, load_decoder, randomise_weights
from influcoder.influence.gradients import GradientConfig, GradientProjector
from influcoder.influence.representations import losses
from influcoder.influence.self_check import usable_layers
from influcoder.influence.tokens import TokenizedRow, tokenize
from influcoder.metrics import per_query_spearman


def teacher_scores(teacher: TeacherRun, judged: Judged, seed: int) -> MethodScores:
    """Return what the teacher wrote under one seed: row features, scores of the task queries, squared gradient lengths."""
    row_ids = [row.id for row in judged.rows]
    features = teacher.features(seed, "rows")
    places = features.places(row_ids)
    asking = teacher.asking(seed).as_queries[places][judged.fidelity_queries]
    asked = asking @ features.as_rows[places].T
    if judged.task_queries:
        task = teacher.scores(seed).select([query.id for query in judged.task_queries], row_ids)
        asked = np.concatenate([asked, task])
    norms = dict(zip(features.manifest.ids, features.norms.tolist(), strict=True))
    return MethodScores(asked=asked[None], own=np.array([[norms[row_id] ** 2 for row_id in row_ids]]))


def ceiling_scores(teacher: TeacherRun, judged: Judged) -> MethodScores:
    """Return what the teacher wrote under its other seeds, stacked."""
    every = [teacher_scores(teacher, judged, seed) for seed in teacher.record["seeds"][1:]]
    own = np.concatenate([scores.own for scores in every if scores.own is not None])
    return MethodScores(asked=np.concatenate([scores.asked for scores in every]), own=own)


def other_teacher_scores(run: TeacherRun, judged: Judged, config: DecoderConfig, cost_rows: int) -> MethodScores:
    """Return what a teacher of another method wrote under all its seeds, stacked, and what its gradients cost."""
    every = [teacher_scores(run, judged, seed) for seed in run.record["seeds"]]
    own = np.concatenate([scores.own for scores in every if scores.own is not None])
    asked = np.concatenate([scores.asked for scores in every])
    return MethodScores(asked=asked, own=own, cost=teacher_cost(run, judged, config, cost_rows))


def mean_training_scores(teacher: TeacherRun, run: StudentRun) -> tuple[list[Example], NDArray[np.float32]]:
    """Return a run's training rows and each one's mean score over them as queries, itself among them (a constant more)."""
    rows = [teacher.rows[place] for place in np.flatnonzero(run.parts == "train")]
    seed = teacher.record["seeds"][0]
    features = teacher.features(seed, "rows")
    places = features.places([row.id for row in rows])
    mean: NDArray[np.float32] = features.as_rows[places] @ teacher.asking(seed).as_queries[places].mean(axis=0)
    return rows, mean


def teacher_groups(teacher: TeacherRun, judged: Judged, target: MethodScores, cost: Cost | None) -> list[MethodGroup]:
    """Return the teacher, and its other seeds when there are any."""
    groups = [MethodGroup(name="teacher", role="teacher", compute=lambda: {"teacher": replace(target, cost=cost)})]
    if len(teacher.record["seeds"]) > 1:
        groups.append(
            MethodGroup(
                name="second seed",
                role="ceiling",
                compute=lambda: {"teacher_second_seed": replace(ceiling_scores(teacher, judged), cost=cost)},
            )
        )
    return groups


def teacher_cost(teacher: TeacherRun, judged: Judged, config: DecoderConfig, count: int) -> Cost:
    """Time the gradients of `count` judged rows under one seed; a row's index is one float16 vector and its length.

    Several checkpoints cost a pass each. What an optimiser's direction or a preconditioner costs beside the passes is left out.
    """
    projector = _projector(teacher, load_decoder(config, [], seed=0), judged)
    rows = tokenize([*judged.rows[:count]], projector.decoder)
    projector.project(rows[:1])
    started = time.perf_counter()
    for _, sketches in projector.project_all(rows):
        sketches.cpu()  # waits for a GPU
    seconds = (time.perf_counter() - started) * teacher.record.get("passes", 1)
    return Cost(seconds_per_1000=1000 * seconds / len(rows), bytes_per_row=2.0 * teacher.record["dim"] + 4)


@dataclass(frozen=True)
class Randomised:
    """The teacher beside itself with random weights."""

    agreement: float
    """per-query Spearman between the target and the scores with random weights"""
    loss: float
    """mean of the rows' mean losses (nats)"""
    random_loss: float
    """the same with random weights"""


def randomise(teacher: TeacherRun, judged: Judged, target: Array, config: DecoderConfig, queries: int) -> Randomised:
    """Ask the same teacher around the same decoder with random weights: its projection, without preconditioners, one checkpoint.

    Args:
        teacher: the run whose target is questioned.
        judged: its first fold's rows are taken.
        target: (A, N) the teacher's scores.
        config: the decoder.
        queries: fidelity queries; eight times as many candidates.
    """
    fold = judged.folds[0]
    asking, ranked = fold.queries[:queries], fold.candidates[: 8 * queries]
    decoder = load_decoder(config, [], seed=0)
    rows = tokenize([judged.rows[place] for place in (*asking, *ranked)], decoder)
    projector = _projector(teacher, decoder, judged)
    loss = float(losses(decoder, rows, projector.config.max_batch_tokens).mean())
    randomise_weights(decoder, seed=1)
    random_loss = float(losses(decoder, rows, projector.config.max_batch_tokens).mean())
    vectors = _features(projector, rows)
    wanted = target[judged.asking(0)][: len(asking)][:, ranked]
    agreement = np.mean(per_query_spearman(vectors[: len(asking)] @ vectors[len(asking) :].T, wanted))
    return Randomised(float(agreement), loss, random_loss)


def _features(projector: GradientProjector, rows: Sequence[TokenizedRow]) -> NDArray[np.float32]:
    vectors = np.empty((len(rows), projector.dim), np.float32)
    for positions, sketches in projector.project_all(rows):
        vectors[positions] = sketches[0].cpu().numpy()
    unit: NDArray[np.float32] = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit


def _projector(teacher: TeacherRun, decoder: Decoder, judged: Judged) -> GradientProjector:
    layers, _ = usable_layers(decoder, tokenize([*judged.rows[:2]], decoder))
    kept = teacher.folder / "basis" / f"seed-{teacher.record['seeds'][0]}.safetensors"
    return GradientProjector(
        decoder,
        GradientConfig(**teacher.record["gradients"]),
        teacher.record["seeds"][:1],
        layers=layers,
        bases=[Basis.load(kept)] if kept.exists() else [],
        unit_layers=teacher.record["normalise"] == "layers",
    )
