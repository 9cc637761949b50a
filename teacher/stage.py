"""Load rows and decoder, fine-tune, take gradients, finish features, score; everything lands in one run directory.

    RUN/text_format.json  rows.parquet  queries.parquet  decoder/ or adapter/
    RUN/features/seed-S/{rows,queries,rows_as_queries}/   RUN/scores/seed-S/   RUN/fisher/   RUN/checkpoints/   RUN/finetune/log/

A killed run goes on where it stopped: the fine-tuned decoder and every committed shard are kept.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from influcoder.errors import require
from influcoder.examples import Example, fingerprint
from influcoder.features import Manifest, remove_store
from influcoder.influence.adam import Moments, estimate_moments
from influcoder.influence.basis import Basis, fit_basis
from influcoder.influence.capture import Layer, coverage
from influcoder.influence.checkpoints import Checkpoint, load_checkpoints
from influcoder.influence.decoder import Decoder, fingerprint_model, load_decoder
from influcoder.influence.gradients import GradientProjector, Transform
from influcoder.influence.methods import METHODS, Direction, Method, Normalise
from influcoder.influence.self_check import usable_layers
from influcoder.influence.tokens import TokenizedRow, tokenize
from influcoder.runs import Run, create_run, partial_folder
from influcoder.text_format import save_text_format
from teacher.checks import check_projection, check_rows_alone
from teacher.config import TeacherConfig
from teacher.estimate import Estimate, compare, estimate, full_disk_as_error, peak_memory, used_bytes
from teacher.features import Budget, Side, within_memory, write_gradients
from teacher.finish import finish_store, fit_fisher, seed_agreement, write_scores
from teacher.prepare import load_sides, locate_decoder, prepare_decoder, read_sides
from teacher.processes import Processes, join_processes
from teacher.wandb_log import log_to_wandb

GOOD_AGREEMENT = 0.85
MOMENT_ROWS = 256
"""rows over which the second moment is estimated where no optimiser's is known"""
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
        gradients = 0 if self.method.finished_at_once else len(self.points) * (4 * dim + 4)
        return len(self.config.seeds) * (features + gradients)

    def store(self, point: int, seed: int, side: str) -> Path:
        """Where the projected gradients go: to the features when they are these already."""
        if self.method.finished_at_once:
            return self.folder / "features" / f"seed-{seed}" / side
        return self.folder / "gradients" / f"checkpoint-{point}" / f"seed-{seed}" / side


def run(config: TeacherConfig, resolved_yaml: str) -> None:
    """Make the teacher run `config.output`.

    Raises:
        DataError: on malformed rows.
        RunError: when the output exists, or unfinished work there is of another config or other rows.
    """
    output = Path(config.output)
    if config.wandb_project is not None:
        require("wandb", "wandb")  # say now that it is missing, not after the work
    with full_disk_as_error(output), join_processes() as processes:
        make = create_run(output, "teacher", resolved_yaml, resume=True) if processes.first else nullcontext(Run(partial_folder(output)))
        with make as made:
            if processes.first:
                sides = read_sides(config, made.folder)
                save_text_format(made.folder, config.text)
                prepare_decoder(config, sides, made.folder)
                made.worth_resuming |= config.finetune is not None
            processes.barrier()
            made.facts = _take_gradients(config, made, processes)
    if processes.first:
        print(f"{config.output}: complete")
        if config.wandb_project is not None:
            log_to_wandb(output, config)


def _take_gradients(config: TeacherConfig, made: Run, processes: Processes) -> dict[str, Any]:
    """Do what every process does; return the facts of the run."""
    located, (path, adapter) = locate_decoder(config, made.folder)
    decoder = load_decoder(located, [], seed=0)
    examples = load_sides(made.folder)
    tokenized = {side: tokenize(rows, decoder) for side, rows in examples.items()}
    made.worth_resuming = True
    layers, unfit = usable_layers(decoder, tokenized["rows"][:2])
    decoder_fingerprint = fingerprint_model(decoder.model)
    job = _make_job(config, made.folder, decoder, layers, examples, tokenized, decoder_fingerprint)
    bases = _find_bases(config, made.folder, decoder, layers, tokenized["rows"], processes)
    unit_layers = job.normalise == "layers" and job.method.fisher is None
    projector = GradientProjector(decoder, config.gradients, config.seeds, layers=layers, bases=bases, unit_layers=unit_layers)
    facts: dict[str, Any] = {
        "method": config.method,
        "normalise": job.normalise,
        "seeds": list(config.seeds),
        "gradients": asdict(config.gradients),
        "decoder_path": path,
        "decoder_adapter": adapter,
        "decoder_dtype": config.decoder.dtype,
        "decoder_chat_template": config.decoder.chat_template,
        "decoder_fingerprint": decoder_fingerprint,
        "passes": len(job.points),
        "processes": processes.count,
    }
    facts |= {f"{side}_fingerprint": fingerprint(rows) for side, rows in examples.items()}
    covered = coverage(decoder.model, layers)
    facts["coverage"] = {"captured": covered.captured, "total": covered.total, "unfit_layers": unfit}
    if processes.first:
        print(f"coverage: {covered}" + (f"; not attributable to rows: {', '.join(unfit)}" if unfit else ""))
        facts["self_check"] = check_rows_alone(projector, tokenized["rows"])
    budget = Budget.of(made.folder, processes.rank, config.gradients.max_batch_tokens)
    timed = projector.transformed(_transforms(job, job.points[0])[1])
    every_row = [row for side in job.sides.values() for row in side.rows]
    before = estimate(timed, every_row, len(job.points) / processes.count, job.bytes_a_row(projector.dim), made.folder, budget)
    if processes.first:
        print(f"gradients: {len(every_row)} rows, {len(config.seeds)} seeds, {projector.dim} coordinates; {before}")
    started = time.monotonic()
    _write_all(job, projector, budget, processes)
    processes.barrier()
    if processes.first:
        seconds, memory = time.monotonic() - started, peak_memory()
        facts |= _finish(job, projector)
        facts["cost"] = compare(before, Estimate(seconds, memory, used_bytes(made.folder)))
        facts["projection"] = check_projection(projector, _transforms(job, job.points[-1]), tokenized["rows"], config.checks)
        remove_store(made.folder / "gradients")  # last: a run killed before goes on without taking them again
    processes.barrier()
    return facts


def _find_bases(
    config: TeacherConfig, folder: Path, decoder: Decoder, layers: Mapping[str, Layer], rows: Sequence[TokenizedRow], processes: Processes
) -> list[Basis]:
    """Return the leading directions by seed, each of its own sample of rows, kept in the run; none when the projection is all random."""
    inputs, outputs = config.gradients.rank or 0, config.gradients.output_rank or 0
    if config.gradients.factors == "random" or not inputs + outputs or any(".lora_A." in name for name in layers):
        return []
    paths = [folder / "basis" / f"seed-{seed}.safetensors" for seed in config.seeds]
    for seed, path in zip(config.seeds, paths, strict=True):
        if processes.first and not path.exists():
            sample = random.Random(seed).sample(list(rows), min(BASIS_ROWS, len(rows)))
            budget = Budget(None, config.gradients.max_batch_tokens)
            fit = partial(fit_basis, decoder, layers, sample, inputs=inputs, outputs=outputs)
            path.parent.mkdir(exist_ok=True)
            writing = path.with_name(f".{path.name}.writing")
            within_memory(budget, sample, lambda tokens: fit(max_batch_tokens=tokens)).save(writing)  # noqa: B023
            os.replace(writing, path)
    processes.barrier()
    return [Basis.load(path) for path in paths]


def spread(rows: Sequence[TokenizedRow], count: int) -> list[TokenizedRow]:
    """Return `count` rows at equal distances, or all."""
    count = min(count, len(rows))
    return [rows[place * len(rows) // count] for place in range(count)]


def _make_job(
    config: TeacherConfig, folder: Path, decoder: Decoder, layers: Mapping[str, Layer], examples: Mapping[str, list[Example]],
    tokenized: Mapping[str, list[TokenizedRow]], decoder_fingerprint: str,
) -> Job:  # fmt: skip
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
    needed = place is not None and (method.every_checkpoint or method.direction != "gradient")
    checkpoints = load_checkpoints(place) if place is not None and needed else []
    return Job(config, folder, decoder, layers, sides, checkpoints, manifest)


def _write_all(job: Job, projector: GradientProjector, budget: Budget, processes: Processes) -> None:
    for number, point in enumerate(job.points):
        if point is not None:
            point.load_weights(job.decoder.model)
        query_transform, row_transform = _transforms(job, point)
        for side in job.sides.values():
            transform = row_transform if side.name == "rows" else query_transform
            stores = [job.store(number, seed, side.name) for seed in projector.seeds]
            manifest = replace(job.manifest(side, projector.dim), dtype="float16" if job.method.finished_at_once else "float32")
            write_gradients(stores, manifest, side, projector.transformed(transform), budget, processes)


def _transforms(job: Job, point: Checkpoint | None) -> tuple[Transform | None, Transform | None]:
    """Return what replaces the gradients of queries and of rows at a checkpoint."""
    wanted: tuple[Direction, Direction] = (job.method.query_direction, job.method.direction)
    if set(wanted) == {"gradient"}:
        return None, None
    if point is not None:
        moments = point.moments(job.decoder.model, job.layers)
    else:
        sample = spread(job.sides["rows"].rows, MOMENT_ROWS)
        # not the budget that shards have come down to: a resumed run has to find the same moments to the last bit
        budget = Budget(None, job.config.gradients.max_batch_tokens)
        moments = within_memory(budget, sample, partial(estimate_moments, job.decoder, job.layers, sample))
    first, second = (_transform(direction, moments) for direction in wanted)
    return first, second


def _transform(direction: Direction, moments: Moments) -> Transform | None:
    return {"gradient": None, "adam_step": moments.step_direction, "second_moment": moments.scaled}[direction]


def _finish(job: Job, projector: GradientProjector) -> dict[str, Any]:
    """Turn projected gradients into features and scores; return what was learnt on the way."""
    facts: dict[str, Any] = {"dim": projector.dim}
    blocks = projector.blocks if job.normalise == "layers" and job.method.fisher else None
    method, rates = job.method, [point.learning_rate if point is not None else 1.0 for point in job.points]
    if not method.finished_at_once:
        facts |= {"learning_rates": rates, "dim": projector.dim * (len(job.points) if method.every_checkpoint else 1)}
        for seed in projector.seeds:
            roots = None
            if method.fisher is not None:
                stores = {name: job.store(0, seed, name) for name in job.sides}
                keep = job.folder / "fisher" / f"seed-{seed}.safetensors"
                roots, facts["query_weight"] = fit_fisher(stores, projector.blocks, method, job.config.damping, keep)
            for name, side in job.sides.items():
                parts = [job.store(number, seed, name) for number in range(len(job.points))]
                target = job.folder / "features" / f"seed-{seed}" / name
                finish_store(parts, target, replace(job.manifest(side, projector.dim), seed=seed), method, rates, roots, blocks)
    if "queries" in job.sides:
        for seed in projector.seeds:
            write_scores(job.folder, seed)
    agreement = seed_agreement(job.folder, projector.seeds)
    if agreement is not None:
        advice = (
            ""
            if agreement >= GOOD_AGREEMENT
            else f"; below {GOOD_AGREEMENT} a student imitates noise: raise gradients.dim or gradients.rank"
        )
        print(f"seed-to-seed agreement of the target: {agreement:.3f} per-query Spearman{advice}")
        facts["seed_agreement"] = agreement
    return facts
