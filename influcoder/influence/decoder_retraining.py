"""Training a decoder again on a subset of its rows, and asking it: the truth that attribution of a language model is held against.

Every retraining starts from the same weights and repeats the same recipe; what differs is the rows and the seed of their order.
Each takes one thread, so that a loss is the same number however many run side by side.

Legend: N rows, Q rows that are asked.
"""

from __future__ import annotations

import gc
import multiprocessing
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Trainer
from numpy.typing import NDArray

from influcoder.examples import Example
from influcoder.influence.decoder import Decoder, DecoderConfig, load_decoder
from influcoder.influence.finetune import FinetuneConfig, add_adapter, drawn_share, finetune
from influcoder.influence.representations import losses
from influcoder.influence.tokens import TokenizedRow, tokenize
from influcoder.training import silence_hints

Mask = NDArray[np.bool_]
Losses = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Retrainer:
    """What all retrainings share."""

    decoder: DecoderConfig
    """where each starts"""
    finetune: FinetuneConfig
    """how each is trained; its seed is replaced by the retraining's"""
    rows: Sequence[Example]
    """N, truncated"""
    asked: Sequence[Example]
    """Q, truncated"""
    trainer: Mapping[str, Any] = field(default_factory=dict)
    """arguments of lightning.pytorch.Trainer, as the teacher had them"""

    def train(self, mask: Mask, seed: int) -> Decoder:
        """Return the decoder trained on the rows of a mask, (N,)."""
        decoder = load_decoder(self.decoder, self.rows, seed=self.finetune.seed)
        kept = [row for row, taken in zip(tokenize(self.rows, decoder), mask, strict=True) if taken]
        return self._train(decoder, kept, seed)

    def losses(self, mask: Mask, seed: int) -> Losses:
        """Return what the decoder trained on a mask's rows loses on each asked row, mean nats a response token, (Q,)."""
        decoder = self.train(mask, seed)
        found: Losses = losses(decoder, tokenize(self.asked, decoder), self.finetune.max_batch_tokens).numpy()
        del decoder
        gc.collect()  # model, optimiser and trainer hold each other: without this a worker keeps several
        return found

    def _train(self, decoder: Decoder, rows: Sequence[TokenizedRow], seed: int) -> Decoder:
        config = replace(self.finetune, seed=seed)
        if config.adapter is not None:
            decoder = add_adapter(decoder, config.adapter, seed)
        quiet = {name: False for name in ("logger", "enable_checkpointing", "enable_model_summary", "enable_progress_bar")}
        accelerator = "cpu" if decoder.device.type == "cpu" else "auto"
        settings = {
            "accelerator": accelerator,
            "gradient_clip_val": 1.0,
            **self.trainer,
            **quiet,
            "max_epochs": config.epochs,
            "callbacks": None,
        }
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)  # dropout's
            finetune(decoder, drawn_share(rows, config), config, Trainer(**settings))
        return decoder


def retrain_many(retrainer: Retrainer, jobs: Sequence[tuple[Mask, int]], workers: int) -> Iterator[tuple[int, Losses]]:
    """Yield each job's number and losses as they are ready; a job is a mask of the rows and a seed.

    Args:
        retrainer: what they share.
        jobs: in no order that matters.
        workers: processes side by side, one thread each.
    """
    if not jobs:
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(workers, len(jobs)), context, _start, (retrainer,))
    try:
        running = {pool.submit(_losses, mask, seed): number for number, (mask, seed) in enumerate(jobs)}
        for future in as_completed(running):
            yield running.pop(future), future.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


_shared: list[Retrainer] = []
"""of a worker: sent once, not with every job"""


def _start(retrainer: Retrainer) -> None:
    torch.set_num_threads(1)
    silence_hints()
    _shared[:] = [retrainer]


def _losses(mask: Mask, seed: int) -> Losses:
    return _shared[0].losses(mask, seed)
