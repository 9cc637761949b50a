"""Teacher and student runs that no training made: random words, a tiny decoder and encoders, random unit features.

The features come from no gradient, so nothing that reads the rows can know what the teacher says of them.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
from transformers import BertConfig, BertModel, BertTokenizer

from eval.config import EvalConfig, GateConfig, GroupConfig, TaskConfig
from influcoder.examples import Example, Turn, fingerprint, write_examples
from influcoder.features import Manifest, create_store, write_shard
from influcoder.influence.decoder import Decoder, FreshDecoder, make_fresh_decoder
from influcoder.influence.gradients import GradientConfig
from influcoder.readers import DataSource
from influcoder.runs import create_run
from influcoder.scores import Scores, save_scores
from influcoder.text_format import TextFormat, save_text_format

WORDS = np.array([first + last for first in ("ba", "du", "ki", "lo", "me", "ra", "su", "ti") for last in ("n", "rk", "sh", "tt", "x")])
GROUPS = ("sums", "tales", "trade")
PARTS = ("train",) * 12 + ("validation",) * 4 + ("test",) * 24
FOLDS, SEEDS = 2, 2
"""of the cross-fitted student"""
DIM = 16
TEXT = TextFormat(max_prompt_chars=100, max_response_chars=100)


@dataclass(frozen=True)
class Runs:
    """A folder with `teacher`, `student`, `seed-S-fold-F` for each seed and fold of a cross-fitted student, and `labels.jsonl`."""

    folder: Path
    rows: tuple[Example, ...]
    queries: tuple[Example, ...]

    @property
    def labels(self) -> DataSource:
        """Columns `poisoned` and `skill` of every row."""
        return DataSource(paths=(str(self.folder / "labels.jsonl"),))

    @property
    def cross_fitted(self) -> tuple[str, ...]:
        """The runs of the cross-fitted student: no two have the same encoder."""
        return tuple(str(self.folder / f"seed-{seed}-fold-{fold}") for seed in range(SEEDS) for fold in range(FOLDS))

    def config(self, **changes: object) -> EvalConfig:
        """Return a config that judges the student with the labels."""
        settings: dict[str, object] = {
            "teacher": str(self.folder / "teacher"),
            "student": (str(self.folder / "student"),),
            "output": str(self.folder / "eval"),
            "groups": GroupConfig(rows=self.labels, column="skill"),
            "tasks": {"poison": TaskConfig(rows=self.labels, positive="poisoned")},
            "num_queries": 8,
            "bootstrap_draws": 20,
            "cost_rows": 4,
            "device": "cpu",
            "gates": GateConfig(trained_share=None),  # the decoder here has never been trained
        }
        return EvalConfig(**(settings | changes))  # type: ignore[arg-type]  # a test may hand in a wrong type

    def copy(self, name: str, of: str = "student", **facts: object) -> str:
        """Copy a student run under another name, with other facts in its record; `shuffle_target=True` makes it a control."""
        folder = Path(shutil.copytree(self.folder / of, self.folder / name))
        edit_record(folder, **facts)
        return str(folder)

    def write(self, name: str, lines: Sequence[dict[str, object]]) -> DataSource:
        """Write a table beside the runs."""
        return write_table(self.folder / name, lines)


def edit_record(run_folder: Path, **facts: object) -> None:
    """Change what a run says of itself."""
    path = run_folder / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | facts))


def write_table(path: Path, lines: Sequence[dict[str, object]]) -> DataSource:
    """Write a jsonl file."""
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return DataSource(paths=(str(path),))


def make_rows(count: int, prefix: str, seed: int, weights: Sequence[float] = (1.0,)) -> tuple[Example, ...]:
    """Return rows of random words, of many lengths."""
    random = np.random.default_rng(seed)

    def words(low: int, high: int) -> str:
        return " ".join(random.choice(WORDS, random.integers(low, high)))

    return tuple(
        Example(
            id=f"{prefix}{place}",
            context=(Turn(role="user", content=words(3, 6)),),
            response=words(3, 9),
            weight=weights[place % len(weights)],
        )
        for place in range(count)
    )


def make_features(folder: Path, examples: Sequence[Example], vectors: NDArray[np.float32], seed: int) -> None:
    """Write a feature store of one shard."""
    create_store(
        folder,
        Manifest(
            ids=tuple(example.id for example in examples),
            dim=vectors.shape[1],
            shard_rows=len(examples),
            method="influcoder",
            seed=seed,
            rows_fingerprint=fingerprint(examples),
            decoder_fingerprint="d" * 16,
        ),
    )
    write_shard(folder, 0, vectors)


def make_scores(folder: Path, rows: Sequence[Example], queries: Sequence[Example], values: NDArray[np.float32], seed: int) -> None:
    """Write the scores of the task queries."""
    query_ids, row_ids = tuple(query.id for query in queries), tuple(row.id for row in rows)
    scores = Scores(values=values, query_ids=query_ids, row_ids=row_ids, method="influcoder", seed=seed, decoder_fingerprint="d" * 16)
    save_scores(folder, scores)


def make_decoder(rows: Sequence[Example], width: int = 16, seed: int = 0) -> Decoder:
    """Return a Llama of one layer that learnt nothing."""
    config = FreshDecoder(hidden_size=width, layers=1, heads=2, intermediate_size=width, vocab_size=280, max_tokens=256)
    return make_fresh_decoder(config, rows, seed)


def make_teacher(
    folder: Path,
    rows: Sequence[Example],
    queries: Sequence[Example],
    *,
    vectors: NDArray[np.float32] | None = None,
    decoder: Decoder | None = None,
    rank: int = 4,
) -> None:
    """Write a teacher run of two seeds.

    Args:
        folder: of the run.
        rows: R.
        queries: Q task queries.
        vectors: (2, R + Q, D) gradients by seed; None draws some that mostly agree.
        decoder: None makes one.
        rank: under which the vectors were taken.
    """
    decoder = make_decoder(rows) if decoder is None else decoder
    if vectors is None:
        random = np.random.default_rng(0)
        exact = random.normal(size=(len(rows) + len(queries), DIM)).astype(np.float32)
        vectors = np.stack([exact + 0.1 * random.normal(size=exact.shape).astype(np.float32) for _ in range(2)])
    with create_run(folder, "teacher", "") as run:
        save_text_format(run.folder, TEXT)
        write_examples(run.folder / "rows.parquet", rows)
        write_examples(run.folder / "queries.parquet", queries)
        decoder.model.save_pretrained(run.folder / "decoder")
        decoder.tokenizer.save_pretrained(run.folder / "decoder")
        for seed, found in enumerate(vectors):
            make_features(run.folder / "features" / f"seed-{seed}" / "rows", rows, found[: len(rows)], seed)
            make_features(run.folder / "features" / f"seed-{seed}" / "queries", queries, found[len(rows) :], seed)
            unit = found / np.linalg.norm(found, axis=1, keepdims=True)
            make_scores(run.folder / "scores" / f"seed-{seed}", rows, queries, unit[len(rows) :] @ unit[: len(rows)].T, seed)
        run.facts = {
            "method": "influcoder",
            "seeds": [0, 1],
            "decoder_fingerprint": "d" * 16,
            "rows_fingerprint": fingerprint(rows),
            "decoder_path": "decoder",
            "queries_fingerprint": fingerprint(queries),
            "gradients": asdict(GradientConfig(rank=rank, dim=vectors.shape[2], factors="random")),
            "normalise": "unit",
            "dim": vectors.shape[2],
        }


def make_encoder(folder: Path, scratch: Path, seed: int) -> None:
    """Write a sentence-transformers folder around a tiny random BERT."""
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "prompt", "response", ":", *WORDS]
    tokenizer = BertTokenizer(vocab={word: place for place, word in enumerate(vocabulary)})
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        max_position_embeddings=64,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        BertModel(config).save_pretrained(scratch)
    tokenizer.save_pretrained(scratch)
    transformer = Transformer(str(scratch))
    SentenceTransformer(modules=[transformer, Pooling(8), Normalize()], device="cpu").save(str(folder), create_model_card=False)


def make_student(folder: Path, rows: Sequence[Example], scratch: Path, encoder_seed: int = 1, **facts: object) -> None:
    """Write a student run whose encoder learnt nothing; facts `seed`, `folds`, `fold` and `shuffle_target` are its own."""
    known: dict[str, Any] = {"seed": 0, "folds": None, "fold": 0, "shuffle_target": False} | facts
    parts = PARTS if known["folds"] is None else parts_of_fold(len(rows), known["folds"], known["fold"])
    with create_run(folder, "student", "") as run:
        for seed, name in ((0, "initial_encoder"), (encoder_seed, "encoder")):
            make_encoder(run.folder / name, scratch / f"{folder.name}-{name}", seed)
            save_text_format(run.folder / name, TEXT)
        pq.write_table(pa.table({"id": [row.id for row in rows], "part": parts}), run.folder / "split.parquet")
        run.facts = {
            "rows_fingerprint": fingerprint(rows),
            "decoder_fingerprint": "d" * 16,
            "teacher_method": "influcoder",
            "teacher_seed": 0,
            "near_duplicate_jaccard": 0.7,
            "rows_trained": parts.count("train"),
            **known,
        }


def make_cross_fitted(folder: Path, rows: Sequence[Example], scratch: Path) -> None:
    """Write a student run for each seed and fold; the folds' test parts partition the rows."""
    for seed in range(SEEDS):
        for fold in range(FOLDS):
            facts = {"seed": seed, "folds": FOLDS, "fold": fold}
            make_student(folder / f"seed-{seed}-fold-{fold}", rows, scratch, encoder_seed=2 + FOLDS * seed + fold, **facts)


def parts_of_fold(count: int, folds: int, fold: int) -> tuple[str, ...]:
    """Return the side of each row: four rows of a fold, then four of the next; of the others every fifth is validation."""
    return tuple("test" if place // 4 % folds == fold else "validation" if place % 5 == 0 else "train" for place in range(count))


def write_labels(path: Path, rows: Sequence[Example]) -> None:
    """Write labels beside the rows: every fourth row is poisoned, skills take turns."""
    write_table(
        path,
        [
            {"id": row.id, "prompt": row.prompt, "response": row.response, "poisoned": int(place % 4 == 0), "skill": GROUPS[place % 3]}
            for place, row in enumerate(rows)
        ],
    )
