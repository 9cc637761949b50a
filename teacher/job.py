"""What the gradients of a teacher run depend on: decoder, layers, rows by side, checkpoints, projection; nothing is computed twice."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from influcoder.examples import Example, fingerprint
from influcoder.features import Manifest
from influcoder.influence import directions
from influcoder.influence.basis import Basis, fit_basis
from influcoder.influence.batch_budget import Budget, within_memory
from influcoder.influence.capture import Layer
from influcoder.influence.checkpoints import Checkpoint, load_checkpoints
from influcoder.influence.decoder import Decoder
from influcoder.influence.gradients import Transform
from influcoder.influence.methods import METHODS, Method, Normalise
from influcoder.influence.tokens import TokenizedRow
from teacher.config import TeacherConfig
from teacher.features import Side
from teacher.processes import Processes

BASIS_ROWS = 128
"""rows on which a projection's leading directions are found"""


@dataclass(frozen=True)
class Job:
    """All that the gradients of a run depend on."""

    config: TeacherConfig
    folder: Path
    decoder: Decoder
    layers: Mapping[str, Layer]
    sides: dict[str, Side]
    checkpoints: list[Checkpoint]
    """of the fine-tuning that are asked; empty: the decoder as it is"""
    manifest: Callable[[Side, int], Manifest]

    @property
    def method(self) -> Method:
        """What the method does."""
        return METHODS[self.config.method]

    @property
    def normalise(self) -> Normalise:
        """How features are normalised."""
        return self.config.normalise or self.method.normalise

    @property
    def points(self) -> Sequence[Checkpoint | None]:
        """Checkpoints that gradients are taken at; None is the decoder as it stands."""
        return self.checkpoints if self.method.every_checkpoint else [self.checkpoints[-1] if self.checkpoints else None]

    def bytes_a_row(self, dim: int) -> int:
        """Disk that a row takes, of `dim` coordinates a checkpoint: features, and the gradients that they are made of."""
        features = 2 * dim * (len(self.points) if self.method.every_checkpoint else 1) + 4
        features *= 2 if self.method.noise_scaled else 1  # rows have other features as queries
        gradients = 0 if self.method.finished_at_once else len(self.points) * (4 * dim + 4)
        return len(self.config.seeds) * (features + gradients)

    def store(self, point: int, seed: int, side: str) -> Path:
        """Where the projected gradients go: to the features when they are these already."""
        if self.method.finished_at_once:
            return self.folder / "features" / f"seed-{seed}" / side
        return self.folder / "gradients" / f"checkpoint-{point}" / f"seed-{seed}" / side


def make_job(
    config: TeacherConfig, folder: Path, decoder: Decoder, layers: Mapping[str, Layer], examples: Mapping[str, list[Example]],
    tokenized: Mapping[str, list[TokenizedRow]], decoder_fingerprint: str,
) -> Job:  # fmt: skip
    """Return the job of a run whose rows are read and whose decoder is trained.

    Raises:
        RunError: when the method asks for checkpoints and there are none.
    """
    method = METHODS[config.method]
    sides = {name: Side(name, rows, tokenized[name]) for name, rows in examples.items()}
    if method.asymmetric:
        sides["rows_as_queries"] = Side("rows_as_queries", examples["rows"], tokenized["rows"])

    def manifest(side: Side, dim: int) -> Manifest:
        return Manifest(
            ids=tuple(example.id for example in side.examples),
            dim=dim,
            shard_rows=config.gradients.shard_rows,
            method=config.method,
            seed=config.seeds[0],
            rows_fingerprint=fingerprint(side.examples),
            decoder_fingerprint=decoder_fingerprint,
            normalise=config.normalise or method.normalise,
        )

    place = Path(config.checkpoints) if config.checkpoints else folder / "checkpoints" if config.finetune else None
    checkpoints = load_checkpoints(place) if place is not None and method.asks_checkpoints else []
    return Job(config, folder, decoder, layers, sides, checkpoints, manifest)


def find_bases(
    config: TeacherConfig, folder: Path, decoder: Decoder, layers: Mapping[str, Layer], rows: Sequence[TokenizedRow], processes: Processes
) -> list[Basis]:
    """Return the leading directions by seed, each of its own sample of rows, kept in the run; none when the projection is all random."""
    inputs, outputs = config.gradients.rank or 0, config.gradients.output_rank or 0
    if config.gradients.factors == "random" or not inputs + outputs or any(".lora_A." in name for name in layers):
        return []
    paths = [folder / "basis" / f"seed-{seed}.safetensors" for seed in config.seeds]
    fit = partial(fit_basis, decoder, layers, inputs=inputs, outputs=outputs)
    for seed, path in zip(config.seeds, paths, strict=True):
        if processes.first and not path.exists():
            sample = random.Random(seed).sample(list(rows), min(BASIS_ROWS, len(rows)))
            path.parent.mkdir(exist_ok=True)
            writing = path.with_name(f".{path.name}.writing")
            _fit_within_memory(fit, sample, config.gradients.max_batch_tokens).save(writing)
            os.replace(writing, path)
    processes.barrier()
    return [Basis.load(path) for path in paths]


def _fit_within_memory(fit: Callable[..., Basis], sample: Sequence[TokenizedRow], max_batch_tokens: int) -> Basis:
    return within_memory(Budget(None, max_batch_tokens), sample, lambda tokens: fit(sample, max_batch_tokens=tokens))


def transforms(job: Job, point: Checkpoint | None) -> tuple[Transform | None, Transform | None]:
    """Return what replaces the gradients of queries and of rows at a checkpoint."""
    rows, tokens = job.sides["rows"].rows, job.config.gradients.max_batch_tokens
    return directions.transforms(job.method, job.decoder, job.layers, point, rows, tokens)
