"""Rows and decoder of a teacher run: read, checked, fine-tuned; everything that is done once, before the gradients."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from influcoder.callbacks.lightning_recorder import LightningRecorder
from influcoder.errors import RunError
from influcoder.examples import Example, fingerprint, load_examples, write_examples
from influcoder.influence.decoder import Decoder, DecoderConfig, load_decoder
from influcoder.influence.finetune import FinetuneConfig, add_adapter, drawn_share, finetune
from influcoder.influence.tokens import tokenize
from influcoder.readers import read_examples
from influcoder.text_format import truncate_all
from influcoder.training import make_trainer
from teacher.config import TeacherConfig

Sides = dict[str, list[Example]]


def read_sides(config: TeacherConfig, folder: Path) -> Sides:
    """Read, truncate and keep the rows and queries of a run.

    Raises:
        DataError: on malformed rows.
        RunError: when unfinished work in `folder` is of other rows.
    """
    sources = {"rows": config.rows} | ({"queries": config.queries} if config.queries else {})
    sides = {side: truncate_all(read_examples(source), config.text) for side, source in sources.items()}
    for side, examples in sides.items():
        path, writing = folder / f"{side}.parquet", folder / f".{side}.parquet.writing"
        if not path.exists():
            write_examples(writing, examples)
            os.replace(writing, path)
        elif fingerprint(load_examples(path)) != fingerprint(examples):
            raise RunError(
                f"{path}: unfinished work on other {side} than {', '.join(sources[side].paths)} now holds; remove {folder} to begin anew"
            )
        contents = len({(example.context, example.response) for example in examples})
        print(f"{side}: {len(examples)} read, {len(examples) - contents} of them exact copies of another")
    return sides


def load_sides(folder: Path) -> Sides:
    """Return what `read_sides` kept."""
    return {side: load_examples(folder / f"{side}.parquet") for side in ("rows", "queries") if (folder / f"{side}.parquet").exists()}


def prepare_decoder(config: TeacherConfig, sides: Mapping[str, Sequence[Example]], folder: Path) -> None:
    """Fine-tune the decoder and keep it in the run, unless that is done or not asked for.

    Raises:
        DataError: when a row overflows the decoder's context; before any training.
    """
    if config.finetune is None or _trained(folder):
        return
    decoder = load_decoder(config.decoder, sides["rows"], seed=config.finetune.seed)
    tokenized = {side: tokenize(examples, decoder) for side, examples in sides.items()}
    if config.finetune.adapter is not None:
        decoder = add_adapter(decoder, config.finetune.adapter, config.finetune.seed)
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)  # a killed training begins anew
    trainer = make_trainer(
        config.trainer,
        folder / "finetune",
        [LightningRecorder(folder / "checkpoints", count=config.finetune.checkpoints)],
        max_epochs=config.finetune.epochs,
        accelerator="auto" if decoder.device.type != "cpu" else "cpu",
        gradient_clip_val=1.0,
        log_every_n_steps=1,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.finetune.seed)  # dropout's
        finetune(decoder, drawn_share(tokenized["rows"], config.finetune), config.finetune, trainer)
    _keep(decoder, config.finetune, folder)


def locate_decoder(config: TeacherConfig, folder: Path) -> tuple[DecoderConfig, tuple[str, str | None]]:
    """Return how to load the run's decoder, and where path and adapter are seen from outside: relative to the run when they are in it."""
    path, adapter = config.decoder.path, config.decoder.adapter
    inside = {name: str(folder / name) for name in ("decoder", "adapter") if (folder / name).exists()}
    shared = {"dtype": config.decoder.dtype, "device": config.decoder.device, "device_map": config.decoder.device_map}
    trust = config.decoder.trust_remote_code
    loaded = DecoderConfig(
        path=inside.get("decoder", path), adapter=inside.get("adapter", adapter), chat_template=config.decoder.chat_template,
        trust_remote_code=trust, **shared,  # type: ignore[arg-type]  # a dict of mixed values
    )  # fmt: skip
    outside = [
        name if name in inside else os.path.abspath(given) if given is not None and os.path.isdir(given) else given
        for name, given in (("decoder", path), ("adapter", adapter))
    ]
    assert outside[0] is not None  # a fresh decoder is always kept in the run
    return loaded, (outside[0], outside[1])


def _trained(folder: Path) -> bool:
    return (folder / "decoder").exists() or (folder / "adapter").exists()


def _keep(decoder: Decoder, config: FinetuneConfig, folder: Path) -> None:
    """Save what was trained, the decoder or its adapter; the rename says that it is done."""
    writing = folder / ".decoder.writing"
    name = "decoder" if config.adapter is None else "adapter"
    decoder.model.save_pretrained(writing)
    decoder.tokenizer.save_pretrained(writing)
    os.replace(writing, folder / name)
