"""Load rows and decoder, fine-tune, take gradients, score; everything lands in one run directory.

    RUN/text_format.json  rows.parquet  queries.parquet  decoder/
    RUN/features/seed-S/{rows,queries}/   RUN/scores/seed-S/   RUN/finetune/log/metrics.csv

A killed run goes on where it stopped: the fine-tuned decoder and every committed shard are kept.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from influcoder.errors import RunError
from influcoder.examples import Example, fingerprint, load_examples, write_examples
from influcoder.features import Features, load_features
from influcoder.influence.decoder import Decoder, DecoderConfig, fingerprint_model, load_decoder
from influcoder.influence.finetune import finetune
from influcoder.influence.gradients import GradientProjector
from influcoder.influence.tokens import tokenize
from influcoder.metrics import per_query_spearman
from influcoder.readers import read_examples
from influcoder.runs import create_run
from influcoder.scores import Scores, save_scores
from influcoder.text_format import save_text_format, truncate_all
from influcoder.training import make_trainer
from teacher.config import TeacherConfig
from teacher.features import Side, write_features

logger = logging.getLogger(__name__)
GOOD_AGREEMENT = 0.85


def run(config: TeacherConfig, resolved_yaml: str) -> None:
    """Make the teacher run `config.output`.

    Raises:
        DataError: on malformed rows.
        RunError: when the output exists, or unfinished work there is of another config or other rows.
    """
    with create_run(Path(config.output), "teacher", resolved_yaml, resume=True) as made:
        sides = _read_sides(config, made.folder)
        save_text_format(made.folder, config.text)
        decoder, path = _prepare_decoder(config, sides, made.folder)
        made.facts = {
            "method": config.method,
            "seeds": list(config.seeds),
            "rank": config.gradients.rank,
            "dim": config.gradients.dim,
            "decoder_path": path,
            "decoder_adapter": config.decoder.adapter,
            "decoder_dtype": config.decoder.dtype,
            "decoder_chat_template": config.decoder.chat_template,
            "decoder_fingerprint": fingerprint_model(decoder.model),
        }
        made.facts |= {f"{side}_fingerprint": fingerprint(examples) for side, examples in sides.items()}
        projector = GradientProjector(decoder, config.gradients, config.seeds)
        tokenized = {side: tokenize(examples, decoder) for side, examples in sides.items()}
        made.worth_resuming = True
        for side, examples in sides.items():
            store = Side(side, examples, tokenized[side], config.method, made.facts["decoder_fingerprint"])
            write_features(made.folder / "features", store, projector)
        made.facts |= _finish(config, made.folder, sides)
    print(f"{config.output}: complete")


def _read_sides(config: TeacherConfig, folder: Path) -> dict[str, list[Example]]:
    sources = {"rows": config.rows} | ({"queries": config.queries} if config.queries else {})
    sides = {side: truncate_all(read_examples(source), config.text) for side, source in sources.items()}
    for side, examples in sides.items():
        path = folder / f"{side}.parquet"
        if path.exists() and fingerprint(load_examples(path)) != fingerprint(examples):
            raise RunError(
                f"{path}: unfinished work on other {side} than {', '.join(sources[side].paths)} now holds; remove {folder} to begin anew"
            )
        write_examples(path, examples)
        contents = len({(example.context, example.response) for example in examples})
        print(f"{side}: {len(examples)} read, {len(examples) - contents} of them exact copies of another")
    return sides


def _prepare_decoder(config: TeacherConfig, sides: dict[str, list[Example]], folder: Path) -> tuple[Decoder, str]:
    """Return the decoder and where it can be loaded from: its path, or `decoder` in the run when it was trained here."""
    place = folder / "decoder"
    if place.exists():
        return load_decoder(DecoderConfig(path=str(place), dtype=config.decoder.dtype, device=config.decoder.device), [], 0), "decoder"
    decoder = load_decoder(config.decoder, sides["rows"], seed=config.finetune.seed if config.finetune else 0)
    if config.finetune is None:
        assert config.decoder.path is not None  # TeacherConfig.__post_init__
        return decoder, os.path.abspath(config.decoder.path) if os.path.isdir(config.decoder.path) else config.decoder.path
    tokenized = {side: tokenize(examples, decoder) for side, examples in sides.items()}  # an overflow, now rather than after training
    trainer = make_trainer(
        config.trainer,
        folder / "finetune",
        max_epochs=config.finetune.epochs,
        accelerator="auto" if decoder.device.type != "cpu" else "cpu",
        gradient_clip_val=1.0,
        log_every_n_steps=1,
    )
    finetune(decoder, tokenized["rows"], config.finetune, trainer)
    writing = folder / ".decoder.writing"
    decoder.model.save_pretrained(writing)
    decoder.tokenizer.save_pretrained(writing)
    os.replace(writing, place)
    return decoder, "decoder"


def _finish(config: TeacherConfig, folder: Path, sides: dict[str, list[Example]]) -> dict[str, Any]:
    """Write the task scores of each seed; return the agreement between the first two seeds."""
    kernels = []
    for seed in config.seeds:
        place = folder / "features" / f"seed-{seed}"
        rows = load_features(place / "rows")
        kernels.append(_sample_kernel(rows))
        if "queries" in sides:
            save_scores(folder / "scores" / f"seed-{seed}", _score(load_features(place / "queries"), rows))
    if len(kernels) < 2:
        return {}
    agreement = float(per_query_spearman(kernels[1], kernels[0]).mean())
    print(
        f"seed-to-seed agreement of the target: {agreement:.3f} per-query Spearman"
        + (
            ""
            if agreement >= GOOD_AGREEMENT
            else f"; below {GOOD_AGREEMENT} a student imitates noise: raise gradients.rank or gradients.dim"
        )
    )
    return {"seed_agreement": agreement}


def _score(queries: Features, rows: Features) -> Scores:
    return Scores(
        values=queries.vectors @ rows.vectors.T,
        query_ids=queries.manifest.ids,
        row_ids=rows.manifest.ids,
        method=rows.manifest.method,
        seed=rows.manifest.seed,
        decoder_fingerprint=rows.manifest.decoder_fingerprint,
    )


def _sample_kernel(rows: Features) -> NDArray[np.float32]:
    """Return the scores between two disjoint seeded samples of rows, at most 100 x 500."""
    order = np.random.default_rng(0).permutation(len(rows.vectors))
    num_queries = min(100, max(1, len(order) // 4))
    kernel: NDArray[np.float32] = rows.vectors[order[:num_queries]] @ rows.vectors[order[num_queries : num_queries + 500]].T
    return kernel
