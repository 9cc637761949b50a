"""A teacher run that no gradients made: three topics of words, a row's feature is its topic's direction with a little noise."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from influcoder.examples import Example, Turn, fingerprint, write_examples
from influcoder.features import Manifest, create_store, write_shard
from influcoder.runs import create_run
from influcoder.text_format import TextFormat, save_text_format

WORDS = [f"{first}{last}" for last in ("rk", "tt", "sh") for first in ("ba", "du", "ki", "lo", "me", "ra", "su", "ti")]
TOPICS, DIM, SHARD_ROWS = 3, 8, 50
TEXT = TextFormat(max_prompt_chars=100, max_response_chars=100, prompt_marker="Ask: ")


def make_teacher(folder: Path, count: int = 90) -> Path:
    """Write a complete teacher run whose ranking follows from the words."""
    random = np.random.default_rng(0)
    topics = random.permutation(np.array(WORDS)).reshape(TOPICS, -1)
    chosen = random.integers(TOPICS, size=count)
    rows = [
        Example(
            id=f"row{place}",
            context=(Turn(role="user", content=" ".join(random.choice(topics[topic], 4))),),
            response=" ".join(random.choice(topics[topic], 4)),
        )
        for place, topic in enumerate(chosen)
    ]
    vectors = (random.normal(size=(TOPICS, DIM))[chosen] + 0.1 * random.normal(size=(count, DIM))).astype(np.float32)
    with create_run(folder, "teacher", "") as run:
        save_text_format(run.folder, TEXT)
        write_examples(run.folder / "rows.parquet", rows)
        run.facts = {"method": "influcoder", "seeds": [4, 5], "decoder_fingerprint": "d" * 16, "rows_fingerprint": fingerprint(rows)}
        manifest = Manifest(
            ids=tuple(row.id for row in rows),
            dim=DIM,
            shard_rows=SHARD_ROWS,
            method="influcoder",
            seed=4,
            rows_fingerprint=fingerprint(rows),
            decoder_fingerprint="d" * 16,
        )
        store = run.folder / "features" / "seed-4" / "rows"
        create_store(store, manifest)
        for shard in range(manifest.num_shards):
            write_shard(store, shard, vectors[manifest.rows_of(shard)])
    return folder
