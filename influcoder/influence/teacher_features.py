"""Features of rows that a finished teacher run never saw, as the run would have made them: decoder, basis, Fisher and checkpoints are in it.

A method that measures its rows against each other (f-influence) is refused by `rescoring.py` before this is asked.

Legend: N rows, D coordinates of a feature.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from influcoder.errors import DataError, RunError
from influcoder.examples import Example, load_examples
from influcoder.features import at_length
from influcoder.influence.basis import Basis
from influcoder.influence.batch_budget import Budget, project_rows
from influcoder.influence.checkpoints import Checkpoint, load_checkpoints
from influcoder.influence.decoder import DecoderConfig, fingerprint_model, load_decoder, recorded_decoder
from influcoder.influence.directions import MOMENT_ROWS, spread, transforms
from influcoder.influence.ekfac import Whitening
from influcoder.influence.ekfac_files import load_ekfac
from influcoder.influence.fisher import Roots, load_roots
from influcoder.influence.gradients import GradientConfig, GradientProjector, Transform
from influcoder.influence.methods import METHODS, Method, finish
from influcoder.influence.self_check import usable_layers
from influcoder.influence.tokens import TokenizedRow, tokenize

Vectors = NDArray[np.float32]


@dataclass(frozen=True)
class TeacherFeatures:
    """What a run's features depend on, under its first seed, the target."""

    method: Method
    normalise: str
    projector: GradientProjector
    points: Sequence[Checkpoint | None]
    """checkpoints that gradients are taken at; None is the decoder as it stands"""
    directions: Callable[[Checkpoint | None], tuple[Transform | None, Transform | None]]
    """what replaces the gradients of queries and of rows at a point, whose weights are loaded"""
    roots: Roots | None
    """of the Fisher, if it preconditions"""
    budget: Budget
    """of a batch; halved when memory runs out"""

    def of_queries(self, queries: Sequence[Example]) -> Vectors:
        """Return what asks, (N, D), of truncated queries.

        Raises:
            DataError: when a query has no tokens to answer, no gradient, or too many tokens for the decoder.
        """
        vectors = self._vectors(tokenize(queries, self.projector.decoder), asking=True)
        if not np.isfinite(vectors).all():
            query = queries[int(np.flatnonzero(~np.isfinite(vectors).all(axis=1))[0])]
            raise DataError(f"query {query.id!r}: its gradient is not a finite number above 0; expected one to compare rows with; drop it")
        return vectors

    def of_rows(self, rows: Sequence[Example]) -> Vectors:
        """Return what is asked, (N, D), of truncated rows; NaN for a row that the decoder cannot read, or that has no gradient."""
        readable, tokens = [], []
        for place, row in enumerate(rows):
            try:
                tokens += tokenize([row], self.projector.decoder)
            except DataError:  # one row of a pool is not worth the others
                continue
            readable.append(place)
        vectors = np.full((len(rows), self.dim), np.nan, np.float32)
        if readable:
            vectors[readable] = self._vectors(tokens, asking=False)
        return vectors

    @property
    def dim(self) -> int:
        """D."""
        return self.projector.dim * (len(self.points) if self.method.every_checkpoint else 1)

    def _vectors(self, rows: Sequence[TokenizedRow], *, asking: bool) -> Vectors:
        parts = []
        for point in self.points:
            if point is not None:
                point.load_weights(self.projector.decoder.model)
            of_queries, of_rows = self.directions(point)
            parts.append(project_rows(self.projector.transformed(of_queries if asking else of_rows), rows, self.budget)[0])
        rates = [point.learning_rate if point is not None else 1.0 for point in self.points]
        blocks = self.projector.blocks if self.normalise == "layers" and self.method.fisher else None
        features = finish(self.method, parts, rates, self.roots, blocks)
        norms = np.linalg.norm(features, axis=1)
        norms[~(np.isfinite(norms) & (norms > 0))] = np.nan
        unit = (features / norms[:, None]).astype(np.float16).astype(np.float32)  # what rows of the run went through, too
        return at_length(unit, norms, self.normalise, asking=asking)


def load_teacher_features(folder: Path, record: dict[str, Any], device: str) -> TeacherFeatures:
    """Load what a run's features depend on.

    Args:
        folder: of the run.
        record: its run.json.
        device: where the decoder goes; auto takes a GPU when there is one.

    Raises:
        ConfigError: when the decoder cannot be loaded.
        RunError: when it is another one by now, or a part of the run is missing or unreadable.
    """
    method, seed, settings = METHODS[record["method"]], record["seeds"][0], _settings(folder)
    decoder = load_decoder(_decoder_config(folder, record, device, settings), [], seed=0)
    found = fingerprint_model(decoder.model)
    if found != record["decoder_fingerprint"]:
        raise RunError(
            f"{folder}: its decoder, {record['decoder_path']}, has fingerprint {found}, expected {record['decoder_fingerprint']} as when its "
            "gradients were taken; bring that checkpoint back, or run the teacher again"
        )
    rows = load_examples(folder / "rows.parquet")
    layers, _ = usable_layers(decoder, tokenize(rows[:2], decoder))
    config, basis = GradientConfig(**record["gradients"]), folder / "basis" / f"seed-{seed}.safetensors"
    factors = load_ekfac(folder / "ekfac" / f"seed-{seed}", layers) if method.ekfac else None
    projector = GradientProjector(
        decoder,
        config,
        (seed,),
        layers=layers,
        bases=[Basis.load(basis)] if basis.exists() else [],
        unit_layers=record["normalise"] == "layers" and method.fisher is None,
        whitenings=[Whitening(factors, settings["damping"])] if factors else [],
    )
    checkpoints = _checkpoints(folder, settings) if method.asks_checkpoints else []
    sample = tokenize(spread(rows, MOMENT_ROWS), decoder)

    @lru_cache(maxsize=1)  # one point's moments are twice the weights; where there is but one point, they are found once
    def directions(point: Checkpoint | None) -> tuple[Transform | None, Transform | None]:
        return transforms(method, decoder, layers, point, sample, config.max_batch_tokens)

    return TeacherFeatures(
        method=method,
        normalise=record["normalise"],
        projector=projector,
        points=checkpoints if method.every_checkpoint else [checkpoints[-1] if checkpoints else None],
        directions=directions,
        roots=load_roots(folder / "fisher" / f"seed-{seed}.safetensors") if method.fisher else None,
        budget=Budget(None, config.max_batch_tokens),
    )


def _settings(folder: Path) -> dict[str, Any]:
    """Return the run's resolved config."""
    path = folder / "config.yaml"
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
        return {name: found[name] for name in ("decoder", "damping", "finetune", "checkpoints")}
    except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
        raise RunError(
            f"{path}: not the config of a teacher run ({error}); expected what the teacher wrote; run the teacher again"
        ) from error


def _decoder_config(folder: Path, record: dict[str, Any], device: str, settings: dict[str, Any]) -> DecoderConfig:
    given = settings["decoder"]
    more = {name: given.get(name) for name in ("device_map", "trust_remote_code")}
    return replace(recorded_decoder(folder, record, device), **more)


def _checkpoints(folder: Path, settings: dict[str, Any]) -> list[Checkpoint]:
    """Return those of the run's own fine-tuning or of the one that it names; none of a decoder taken as it is."""
    if settings["checkpoints"] is None and settings["finetune"] is None:
        return []
    place = folder / "checkpoints" if settings["checkpoints"] is None else Path(settings["checkpoints"])
    if not place.is_dir():
        raise RunError(f"{place}: no such folder; expected the checkpoints that {folder} took its gradients at; bring them back")
    return load_checkpoints(place)
