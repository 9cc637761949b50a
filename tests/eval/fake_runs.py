"""A teacher run and a student run that no training made: random words, a tiny decoder and encoder, random unit features."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
from transformers import BertConfig, BertModel, BertTokenizer

from eval.config import EvalConfig, LabelsConfig
from influcoder.examples import Example, Turn, fingerprint, write_examples
from influcoder.features import Manifest, create_store, write_shard
from influcoder.influence.decoder import FreshDecoder, make_fresh_decoder
from influcoder.readers import DataSource
from influcoder.runs import create_run
from influcoder.scores import Scores, save_scores
from influcoder.text_format import TextFormat, save_text_format

WORDS = np.array([first + last for first in ("ba", "du", "ki", "lo", "me", "ra", "su", "ti") for last in ("n", "rk", "sh", "tt", "x")])
GROUPS = ("sums", "tales", "trade")
PARTS = ("train",) * 12 + ("validation",) * 4 + ("test",) * 24
DIM = 16
TEXT = TextFormat(max_prompt_chars=100, max_response_chars=100)


@dataclass(frozen=True)
class Runs:
    """A folder with `teacher`, `student` and `labels.jsonl`."""

    folder: Path
    rows: tuple[Example, ...]
    queries: tuple[Example, ...]

    def config(self, **changes: object) -> EvalConfig:
        """Return a config that judges the student with both labels."""
        columns = {"positive": "poisoned", "group": "skill"}
        settings: dict[str, object] = {
            "teacher": str(self.folder / "teacher"),
            "student": str(self.folder / "student"),
            "output": str(self.folder / "eval"),
            "labels": LabelsConfig(source=DataSource(paths=(str(self.folder / "labels.jsonl"),)), **columns),
            "num_queries": 8,
            "bootstrap_draws": 20,
            "device": "cpu",
        }
        return EvalConfig(**(settings | changes))  # type: ignore[arg-type]  # a test may hand in a wrong type

    def copy(self, name: str) -> Path:
        """Copy the student run under another name."""
        return Path(shutil.copytree(self.folder / "student", self.folder / name))


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
            dim=DIM,
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


def make_teacher(folder: Path, rows: Sequence[Example], queries: Sequence[Example]) -> None:
    """Write a teacher run of two seeds that mostly agree."""
    with create_run(folder, "teacher", "") as run:
        save_text_format(run.folder, TEXT)
        write_examples(run.folder / "rows.parquet", rows)
        write_examples(run.folder / "queries.parquet", queries)
        config = FreshDecoder(hidden_size=16, layers=1, heads=2, intermediate_size=16, vocab_size=280, max_tokens=256)
        decoder = make_fresh_decoder(config, rows, seed=0)
        decoder.model.save_pretrained(run.folder / "decoder")
        decoder.tokenizer.save_pretrained(run.folder / "decoder")
        random = np.random.default_rng(0)
        exact = random.normal(size=(len(rows) + len(queries), DIM)).astype(np.float32)
        for seed in (0, 1):
            noisy = exact + 0.1 * random.normal(size=exact.shape).astype(np.float32)
            make_features(run.folder / "features" / f"seed-{seed}" / "rows", rows, noisy[: len(rows)], seed)
            make_features(run.folder / "features" / f"seed-{seed}" / "queries", queries, noisy[len(rows) :], seed)
            unit = noisy / np.linalg.norm(noisy, axis=1, keepdims=True)
            make_scores(run.folder / "scores" / f"seed-{seed}", rows, queries, unit[len(rows) :] @ unit[: len(rows)].T, seed)
        run.facts = {
            "method": "influcoder",
            "seeds": [0, 1],
            "decoder_fingerprint": "d" * 16,
            "rows_fingerprint": fingerprint(rows),
            "decoder_path": "decoder",
            "rank": 4,
            "dim": DIM,
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


def make_student(folder: Path, rows: Sequence[Example], scratch: Path) -> None:
    """Write a student run whose encoder learnt nothing."""
    with create_run(folder, "student", "") as run:
        for seed, name in enumerate(("initial_encoder", "encoder")):
            make_encoder(run.folder / name, scratch / name, seed)
        save_text_format(run.folder / "encoder", TEXT)
        pq.write_table(pa.table({"id": [row.id for row in rows], "part": PARTS}), run.folder / "split.parquet")
        run.facts = {
            "rows_fingerprint": fingerprint(rows),
            "decoder_fingerprint": "d" * 16,
            "teacher_method": "influcoder",
            "teacher_seed": 0,
            "near_duplicate_jaccard": 0.7,
        }


def write_labels(path: Path, rows: Sequence[Example]) -> None:
    """Write labels beside the rows: every fourth row is poisoned, skills take turns."""
    lines = [
        json.dumps(
            {"id": row.id, "prompt": row.prompt, "response": row.response, "poisoned": int(place % 4 == 0), "skill": GROUPS[place % 3]}
        )
        for place, row in enumerate(rows)
    ]
    path.write_text("\n".join(lines) + "\n")
