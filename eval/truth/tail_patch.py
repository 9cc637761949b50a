"""Tail-patch of every method: what one step on its first and on its last rows does to the query, mean over both, interval over queries.

Legend: S seeds, Q queries, N rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from eval.bootstrap import Estimate, Resampler
from eval.data import TeacherRun
from eval.truth.config import TailPatchConfig
from eval.truth.methods import Method
from influcoder.influence.checkpoints import load_checkpoints
from influcoder.influence.decoder import load_decoder
from influcoder.influence.tail_patch import patch_effects
from influcoder.influence.tokens import tokenize

Places = NDArray[np.int64]


@dataclass(frozen=True)
class TailPatch:
    """What steps on the rows at both ends of a ranking do, in nats a token; above 0 = the query's response becomes likelier."""

    top: Estimate
    bottom: Estimate


def tail_patch(
    config: TailPatchConfig, teacher: TeacherRun, methods: Mapping[str, Method], device: str, seed: int, resampler: Resampler
) -> dict[str, TailPatch]:
    """Measure every method on the run's decoder.

    Raises:
        RunError: when the run kept no checkpoint with Adam's moments.
    """
    checkpoint = load_checkpoints(teacher.folder / "checkpoints")[-1]
    decoder = load_decoder(teacher.decoder_config(device), [], 0)
    drawn = np.sort(np.random.default_rng([seed, 2]).permutation(len(teacher.queries))[: config.queries])
    ends = {name: [_ends(scores[drawn], config.k) for scores in method.scores] for name, method in methods.items()}
    wanted = np.zeros((len(drawn), len(teacher.rows)), bool)
    for both in (places for of_seeds in ends.values() for pair in of_seeds for places in pair):
        np.put_along_axis(wanted, both, True, axis=1)
    effects = patch_effects(
        decoder, checkpoint.second_moments(), checkpoint.step, tokenize(teacher.rows, decoder),
        tokenize([teacher.queries[place] for place in drawn], decoder), wanted, config.learning_rate,
    )  # fmt: skip
    return {
        name: TailPatch(*(_estimate(effects, [pair[end] for pair in of_seeds], resampler) for end in (0, 1)))
        for name, of_seeds in ends.items()
    }


def _ends(scores: NDArray[np.floating], k: int) -> tuple[Places, Places]:
    """Return the places of the k first and the k last rows of each query, each (Q, k); ties keep the row order."""
    order = np.argsort(-scores, axis=1, kind="stable")
    return order[:, :k], order[:, -k:]


def _estimate(effects: NDArray[np.float32], places: list[Places], resampler: Resampler) -> Estimate:
    means = np.stack([np.take_along_axis(effects, of_seed, axis=1).mean(axis=1) for of_seed in places]).astype(np.float64)
    found = resampler.mean("patched queries", [means])
    assert found is not None  # every wanted pair was measured
    return found
