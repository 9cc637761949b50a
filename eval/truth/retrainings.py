"""The retrained models of a run: each one's losses are kept in a file of its own, so that a killed run loses only those under way.

RUN/models/DIGEST.npy     losses of the asked rows, (Q,) float32; DIGEST is of the trained rows, the asked rows and the seed, so that
                          sets of rows that several methods agree on are trained once
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from influcoder.errors import RunError
from influcoder.influence.decoder_retraining import Losses, Mask, Retrainer, retrain_many

FOLDER = "models"


def retrained_losses(folder: Path, retrainer: Retrainer, masks: NDArray[np.bool_], seeds: int, workers: int, title: str) -> Losses:
    """Train on each mask with each seed what is not there yet; return the losses of the asked rows, (M, S, Q).

    Args:
        folder: the run's.
        retrainer: what all share; its asked rows are the Q.
        masks: (M, N) of the training rows.
        seeds: S trainings a mask, seeds 0 to S - 1.
        workers: side by side.
        title: for the progress bar.

    Raises:
        RunError: when a kept file is not readable or of other rows.
    """
    jobs = [(mask, seed) for mask in masks for seed in range(seeds)]
    asked = "\n".join(row.id for row in retrainer.asked)
    places = [_place(folder, mask, seed, asked) for mask, seed in jobs]
    lacking = {place: job for place, job in zip(places, jobs, strict=True) if not place.exists()}
    (folder / FOLDER).mkdir(exist_ok=True)
    print(
        f"{title}: {len(lacking)} of {len(set(places))} models to train on up to {int(masks.sum(axis=1).max())} rows, {workers} side by side"
    )
    with tqdm(total=len(set(places)), initial=len(set(places)) - len(lacking), desc=title, unit="model", disable=None) as progress:
        names = list(lacking)
        for number, losses in retrain_many(retrainer, list(lacking.values()), workers):
            _write(names[number], losses)
            progress.update()
    found = np.stack([_read(place, len(retrainer.asked)) for place in places])
    return found.reshape(len(masks), seeds, -1)


def _place(folder: Path, mask: Mask, seed: int, asked: str) -> Path:
    digest = hashlib.sha256(np.packbits(mask).tobytes() + f"\0{len(mask)}\0{seed}\0{asked}".encode()).hexdigest()[:24]
    return folder / FOLDER / f"{digest}.npy"


def _write(place: Path, losses: Losses) -> None:
    writing = place.with_name(f".{place.name}.writing")
    with writing.open("wb") as stream:
        np.save(stream, losses, allow_pickle=False)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(writing, place)


def _read(place: Path, expected: int) -> Losses:
    try:
        losses: Losses = np.load(place, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise RunError(
            f"{place}: not readable ({error}); expected {expected} losses of a retrained model; remove it to train anew"
        ) from error
    if losses.shape != (expected,) or not np.isfinite(losses).all():
        raise RunError(f"{place}: shape {losses.shape} or not finite; expected {expected} losses; remove it to train anew")
    return losses
