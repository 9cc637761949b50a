"""EK-FAC factors of a teacher run, one set a seed, each of its own sample of rows and labels, so that a second seed tells their noise too.

RUN/ekfac/seed-S/   influcoder/influence/ekfac_files.py
"""

from __future__ import annotations

import random
import shutil
from pathlib import Path

from influcoder.errors import RunError
from influcoder.influence.batch_budget import Budget, within_memory
from influcoder.influence.ekfac import Whitening
from influcoder.influence.ekfac_decoder import Draws, fit_decoder_ekfac
from influcoder.influence.ekfac_files import load_ekfac
from teacher.job import Job
from teacher.processes import Processes


def find_whitenings(job: Job, processes: Processes) -> list[Whitening]:
    """Return the whitening of each seed, its factors fitted now unless they were; none when the method has none.

    Raises:
        RunError: when the disk has not enough room, or a kept file was changed.
    """
    if not job.method.ekfac:
        return []
    folders = [job.folder / "ekfac" / f"seed-{seed}" for seed in job.config.seeds]
    if processes.first:
        _announce(job)
    for seed, folder in zip(job.config.seeds, folders, strict=True):
        _fit(job, seed, folder, processes)
    processes.barrier()
    return [Whitening(load_ekfac(folder, job.layers), job.config.damping) for folder in folders]


def _fit(job: Job, seed: int, folder: Path, processes: Processes) -> None:
    rows, settings = job.sides["rows"].rows, job.config.ekfac
    sample = random.Random(seed).sample(list(rows), min(settings.rows, len(rows)))
    draws = Draws(count=settings.draws, seed=seed)
    folder.mkdir(parents=True, exist_ok=True)

    def fit(max_batch_tokens: int) -> bool:
        fit_decoder_ekfac(job.decoder, job.layers, sample, folder, draws, max_batch_tokens, processes.takes)
        return True

    # the budget is remembered: a resumed fit goes on with the same batches
    within_memory(Budget.of(folder, processes.rank, job.config.gradients.max_batch_tokens), sample, fit)


def _announce(job: Job) -> None:
    """Say what the factors will take.

    Raises:
        RunError: when the disk has not enough room for them.
    """
    floats = sum(layer.in_features**2 + layer.out_features**2 + layer.in_features * layer.out_features for layer in job.layers.values())
    disk, settings = 4 * floats * len(job.config.seeds), job.config.ekfac
    rows = min(settings.rows, len(job.sides["rows"].rows))
    print(
        f"ekfac: curvature over {rows} rows with {settings.draws} labels each, {len(job.config.seeds)} seeds; {disk / 1e9:.2f} GB of disk"
    )
    lacking = disk - sum(path.stat().st_size for path in (job.folder / "ekfac").rglob("*.safetensors"))
    free = shutil.disk_usage(job.folder).free
    if lacking > free:
        raise RunError(
            f"{job.folder}: {lacking / 1e9:.3g} GB of factors to write, {free / 1e9:.3g} GB free; expected room; free some, or use fewer seeds"
        )
