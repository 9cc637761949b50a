"""Load the teacher's features, split, distil, save the encoder.

RUN/encoder/  initial_encoder/  split.parquet  log/metrics.csv
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from lightning.pytorch import seed_everything
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer

from influcoder.errors import DataError, RunError
from influcoder.examples import fingerprint, load_examples
from influcoder.features import load_features
from influcoder.runs import create_run, open_run, write_text_atomic
from influcoder.splits import Part, assign_split
from influcoder.text_format import TextFormat, load_text_format, render, save_text_format
from influcoder.training import make_trainer
from student.config import StudentConfig
from student.data import DistillationData
from student.encoder import load_encoder, save_encoder, tokenize, truncated_share
from student.module import Distillation, KeepBest

MINIMUM_ROWS = 6


@dataclass(frozen=True)
class Target:
    """What is imitated, and on which side every row stands."""

    record: dict[str, Any]
    """the teacher's run.json"""
    text_format: TextFormat
    ids: tuple[str, ...]
    texts: list[str]
    features: NDArray[np.float32]
    """(rows, dim) unit vectors of the teacher's first seed"""
    parts: list[Part]

    def of(self, part: Part) -> tuple[list[str], NDArray[np.float32]]:
        """Return texts and features of one side."""
        rows = [row for row, side in enumerate(self.parts) if side == part]
        return [self.texts[row] for row in rows], self.features[rows]


def run(config: StudentConfig, resolved_yaml: str) -> None:
    """Make the student run `config.output`.

    Raises:
        RunError: when the teacher run is unfinished, or its features belong to other rows.
        DataError: when a side of the split has too few rows.
    """
    with create_run(Path(config.output), "student", resolved_yaml) as made:
        target = load_target(config)
        _write_split(made.folder, target)
        encoder, best = distil(config, target, made.folder)
        folder = made.folder / "encoder"
        save_encoder(encoder, folder)
        save_text_format(folder, target.text_format)
        made.facts = {
            "teacher_method": target.record["method"],
            "teacher_seed": target.record["seeds"][0],
            "decoder_fingerprint": target.record["decoder_fingerprint"],
            "rows_fingerprint": target.record["rows_fingerprint"],
            "near_duplicate_jaccard": config.split.near_duplicate_jaccard,
            "folds": config.split.folds,
            "fold": config.split.fold,
            "shuffle_target": config.shuffle_target,
            "rows_trained": target.parts.count("train"),
            "seed": config.seed,
            "objective": config.recipe.objective,
        }
        fidelity = {"validation": {"per_query_spearman": best.best, "epoch": best.best_epoch, "queries": len(best.queries)}}
        write_text_atomic(folder / "fidelity.json", json.dumps(made.facts | fidelity, indent=2) + "\n")
        made.facts |= fidelity
    print(f"{config.output}: complete; validation per-query Spearman {best.best:.3f} (epoch {best.best_epoch})")


def load_target(config: StudentConfig) -> Target:
    """Read a teacher run and split its rows.

    Raises:
        RunError: when it is unfinished or its parts do not belong together.
    """
    folder = Path(config.teacher)
    record = open_run(folder, "teacher")
    examples = load_examples(folder / "rows.parquet")
    place = folder / "features" / f"seed-{record['seeds'][0]}" / "rows"
    features = load_features(place)
    for name, found in (("rows.parquet", fingerprint(examples)), ("features", features.manifest.rows_fingerprint)):
        if found != record["rows_fingerprint"]:
            raise RunError(
                f"{folder}: {name} is of rows {found}, run.json of {record['rows_fingerprint']}; expected the same; run the teacher again"
            )
    text_format = load_text_format(folder)
    texts = [render(example, text_format) for example in examples]
    target = Target(record, text_format, features.manifest.ids, texts, features.vectors, assign_split(texts, config.split))
    for part in ("train", "validation", "test"):
        if target.parts.count(part) < MINIMUM_ROWS:
            raise DataError(
                f"{folder}: {target.parts.count(part)} of {len(texts)} rows fall to {part}, expected at least {MINIMUM_ROWS}; give more rows"
            )
    return target


def shuffle_targets(target: Target, seed: int) -> Target:
    """Give every training and validation row the features of another row of its side; test rows keep theirs.

    Validation rows too: the best epoch is chosen on them, and a choice by the true ranking would let the truth back in.
    """
    features = target.features.copy()
    for stream, part in enumerate(("train", "validation"), start=1):
        rows = np.flatnonzero(np.array(target.parts) == part)
        order = np.random.default_rng([seed, 0, stream]).permutation(rows)  # three numbers: epochs draw from [seed, epoch]
        features[order] = target.features[np.roll(order, 1)]  # one cycle through the side, so that no row keeps its own
    return replace(target, features=features)


def distil(config: StudentConfig, target: Target, folder: Path) -> tuple[SentenceTransformer, KeepBest]:
    """Train an encoder on the training side; return it with its best weights on the validation side."""
    seed_everything(config.seed, verbose=False)
    if config.shuffle_target:
        target = shuffle_targets(target, config.seed)
    texts, features = target.of("train")
    encoder = load_encoder(config.encoder, texts, config.seed)
    save_encoder(encoder, folder / "initial_encoder")
    save_text_format(folder / "initial_encoder", target.text_format)
    sides = ", ".join(f"{target.parts.count(part)} {part}" for part in ("train", "validation", "test"))
    print(
        f"student: {sides} rows; {truncated_share(encoder, target.texts):.1%} of the texts are longer than {encoder.max_seq_length} tokens"
    )
    best = KeepBest(*target.of("validation"), config.patience)
    data = DistillationData(texts, features, partial(tokenize, encoder), config.recipe, config.seed)
    trainer = make_trainer(
        config.trainer,
        folder,
        [best],
        max_epochs=20,
        gradient_clip_val=1.0,
        log_every_n_steps=10,
        reload_dataloaders_every_n_epochs=1,
    )
    encoder.train()
    trainer.fit(Distillation(encoder, config.recipe, config.optimizer), datamodule=data)
    encoder.to("cpu")
    best.restore(encoder)
    return encoder, best


def _write_split(folder: Path, target: Target) -> None:
    pq.write_table(pa.table({"id": list(target.ids), "part": list(target.parts)}), folder / "split.parquet")
