"""Load rows and decoder, fine-tune, take gradients, finish features, score; everything lands in one run directory.

    RUN/text_format.json  rows.parquet  queries.parquet  decoder/ or adapter/
    RUN/features/seed-S/{rows,queries,rows_as_queries}/   RUN/scores/seed-S/   RUN/{basis,fisher,ekfac}/   RUN/checkpoints/   RUN/finetune/log/

A killed run goes on where it stopped: the fine-tuned decoder and every committed shard are kept.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from influcoder.errors import require
from influcoder.examples import fingerprint
from influcoder.features import remove_store
from influcoder.influence.batch_budget import Budget
from influcoder.influence.capture import coverage
from influcoder.influence.decoder import fingerprint_model, load_decoder
from influcoder.influence.gradients import GradientProjector
from influcoder.influence.self_check import usable_layers
from influcoder.influence.tokens import TokenizedRow, tokenize
from influcoder.runs import Run, create_run, partial_folder
from influcoder.text_format import save_text_format
from teacher import f_influence
from teacher.checks import check_projection, check_rows_alone
from teacher.config import TeacherConfig
from teacher.ekfac import find_whitenings
from teacher.estimate import Estimate, compare, estimate, full_disk_as_error, peak_memory, used_bytes
from teacher.features import write_gradients
from teacher.finish import finish_store, fit_fisher, seed_agreement, write_scores
from teacher.job import Job, find_bases, make_job, transforms
from teacher.prepare import load_sides, locate_decoder, prepare_decoder, read_sides
from teacher.processes import Processes, join_processes
from teacher.wandb_log import log_to_wandb

GOOD_AGREEMENT = 0.85
"""seed-to-seed agreement below which a student would imitate noise"""


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
    """Do what every process does; return the facts of the run, complete in the first process alone."""
    located, place = locate_decoder(config, made.folder)
    decoder = load_decoder(located, [], seed=0)
    examples = load_sides(made.folder)
    tokenized = {side: tokenize(rows, decoder) for side, rows in examples.items()}
    made.worth_resuming = True
    layers, unfit = usable_layers(decoder, tokenized["rows"][:2])
    decoder_fingerprint = fingerprint_model(decoder.model)
    job = make_job(config, made.folder, decoder, layers, examples, tokenized, decoder_fingerprint)
    bases = find_bases(config, made.folder, decoder, layers, tokenized["rows"], processes)
    unit_layers = job.normalise == "layers" and job.method.fisher is None
    whitenings = find_whitenings(job, processes)
    projector = GradientProjector(
        decoder, config.gradients, config.seeds, layers=layers, bases=bases, unit_layers=unit_layers, whitenings=whitenings
    )
    facts = _describe(job, place) | {"decoder_fingerprint": decoder_fingerprint, "processes": processes.count}
    facts |= {f"{side}_fingerprint": fingerprint(rows) for side, rows in examples.items()}
    if processes.first:
        facts |= _check_before(projector, unfit, tokenized["rows"])
    before, seconds, memory = _estimate_and_write(job, projector, processes)
    if processes.first:
        facts |= _finish(job, projector)
        facts["cost"] = compare(before, Estimate(seconds, memory, used_bytes(made.folder)))
        facts["projection"] = check_projection(projector, transforms(job, job.points[-1]), tokenized["rows"], config.checks)
        remove_store(made.folder / "gradients")  # last: a run killed before goes on without taking them again
    processes.barrier()
    return facts


def _describe(job: Job, place: tuple[str, str | None]) -> dict[str, Any]:
    config = job.config
    return {
        "method": config.method,
        "normalise": job.normalise,
        "seeds": list(config.seeds),
        "gradients": asdict(config.gradients),
        "decoder_path": place[0],
        "decoder_adapter": place[1],
        "decoder_dtype": config.decoder.dtype,
        "decoder_chat_template": config.decoder.chat_template,
        "passes": len(job.points),
    }


def _check_before(projector: GradientProjector, unfit: Sequence[str], rows: Sequence[TokenizedRow]) -> dict[str, Any]:
    """Print what the gradients cover, and compare rows together with rows alone."""
    covered = coverage(projector.decoder.model, projector.layers)
    print(f"coverage: {covered}" + (f"; not attributable to rows: {', '.join(unfit)}" if unfit else ""))
    found = {"captured": covered.captured, "total": covered.total, "skipped": covered.skipped, "unfit_layers": list(unfit)}
    return {"coverage": found, "self_check": check_rows_alone(projector, rows)}


def _estimate_and_write(job: Job, projector: GradientProjector, processes: Processes) -> tuple[Estimate, float, int]:
    """Say what the gradients will take, take them; return the estimate, the seconds and the peak of memory."""
    budget = Budget.of(job.folder, processes.rank, job.config.gradients.max_batch_tokens)
    timed = projector.transformed(transforms(job, job.points[0])[1])
    every_row = [row for side in job.sides.values() for row in side.rows]
    before = estimate(timed, every_row, len(job.points) / processes.count, job.bytes_a_row(projector.dim), job.folder, budget)
    if processes.first:
        print(f"gradients: {len(every_row)} rows, {len(projector.seeds)} seeds, {projector.dim} coordinates; {before}")
    started = time.monotonic()
    _write_all(job, projector, budget, processes)
    processes.barrier()
    return before, time.monotonic() - started, peak_memory()


def _write_all(job: Job, projector: GradientProjector, budget: Budget, processes: Processes) -> None:
    for number, point in enumerate(job.points):
        if point is not None:
            point.load_weights(job.decoder.model)
        query_transform, row_transform = transforms(job, point)
        for side in job.sides.values():
            transform = row_transform if side.name == "rows" else query_transform
            stores = [job.store(number, seed, side.name) for seed in projector.seeds]
            manifest = replace(job.manifest(side, projector.dim), dtype="float16" if job.method.finished_at_once else "float32")
            write_gradients(stores, manifest, side, projector.transformed(transform), budget, processes)


def _finish(job: Job, projector: GradientProjector) -> dict[str, Any]:
    """Turn projected gradients into features and scores; return what was learnt on the way."""
    facts: dict[str, Any] = {"dim": projector.dim}
    blocks = projector.blocks if job.normalise == "layers" and job.method.fisher else None
    method, rates = job.method, [point.learning_rate if point is not None else 1.0 for point in job.points]
    if not method.finished_at_once:
        facts |= {"learning_rates": rates, "dim": projector.dim * (len(job.points) if method.every_checkpoint else 1)}
        for seed in projector.seeds:
            if method.noise_scaled:
                f_influence.write_features(job, seed, projector.dim)
                continue
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
            if method.noise_scaled:
                f_influence.write_tables(job, seed)
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
