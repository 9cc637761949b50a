"""A teacher run that no gradients made: three topics of words, a row's feature is its topic's direction with a little noise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from influcoder.examples import Example, Turn, fingerprint, write_examples
from influcoder.features import Manifest, create_store, write_shard
from influcoder.runs import create_run
from influcoder.text_format import TextFormat, save_text_format

WORDS = [f"{first}{last}" for last in ("rk", "tt", "sh") for first in ("ba", "du", "ki", "lo", "me", "ra", "su", "ti")]
TOPICS, DIM, SHARD_ROWS = 3, 8, 50
TEXT = TextFormat(max_prompt_chars=100, max_response_chars=100, prompt_marker="Ask: ")


class World:
    """Texts whose topic is seen in their words."""

    def __init__(self) -> None:
        self.random = np.random.default_rng(0)
        self.topics = self.random.permutation(np.array(WORDS)).reshape(TOPICS, -1)

    def draw(self, name: str, count: int) -> tuple[list[Example], NDArray[np.int64]]:
        """Return examples and their topics."""
        chosen = self.random.integers(TOPICS, size=count)
        examples = [
            Example(
                id=f"{name}{place}",
                context=(Turn(role="user", content=" ".join(self.random.choice(self.topics[topic], 4))),),
                response=" ".join(self.random.choice(self.topics[topic], 4)),
            )
            for place, topic in enumerate(chosen)
        ]
        return examples, chosen

    def point(self, chosen: NDArray[np.int64], directions: NDArray[np.float64]) -> NDArray[np.float32]:
        """Return a noisy direction of each topic."""
        return (directions[chosen] + 0.1 * self.random.normal(size=(len(chosen), DIM))).astype(np.float32)


def make_teacher(folder: Path, count: int = 90, num_queries: int = 0, asymmetric: bool = False) -> Path:
    """Write a complete teacher run whose ranking follows from the words; its second seed has a little more noise.

    Args:
        folder: of the run.
        count: rows.
        num_queries: task queries of the same topics.
        asymmetric: a row as a query has other features than as a row: those of the next topic.
    """
    world = World()
    rows, chosen = world.draw("row", count)
    directions = world.random.normal(size=(TOPICS, DIM))
    sides = {"rows": (rows, world.point(chosen, directions))}
    if num_queries:
        queries, asked = world.draw("query", num_queries)
        sides["queries"] = (queries, world.point(asked, directions))
    if asymmetric:
        sides["rows_as_queries"] = (rows, world.point((chosen + 1) % TOPICS, directions))
    second = np.random.default_rng(1)
    with create_run(folder, "teacher", "") as run:
        save_text_format(run.folder, TEXT)
        run.facts = {"method": "influcoder", "seeds": [4, 5], "decoder_fingerprint": "d" * 16}
        for side, (examples, vectors) in sides.items():
            if side != "rows_as_queries":
                write_examples(run.folder / f"{side}.parquet", examples)
                run.facts[f"{side}_fingerprint"] = fingerprint(examples)
            write_store(run.folder / "features" / "seed-4" / side, examples, vectors)
            noisy = vectors + 0.1 * second.normal(size=vectors.shape).astype(np.float32)
            write_store(run.folder / "features" / "seed-5" / side, examples, noisy)
    return folder


def write_store(store: Path, examples: list[Example], vectors: NDArray[np.float32]) -> None:
    """Write one side's features."""
    manifest = Manifest(
        ids=tuple(example.id for example in examples),
        dim=DIM,
        shard_rows=SHARD_ROWS,
        method="influcoder",
        seed=4,
        rows_fingerprint=fingerprint(examples),
        decoder_fingerprint="d" * 16,
    )
    create_store(store, manifest)
    for shard in range(manifest.num_shards):
        write_shard(store, shard, vectors[manifest.rows_of(shard)])
