"""Writes the demo's data: a pool with planted poison, and the queries by which a user would look for it.

pool.jsonl      id, prompt, response, contributor      (what every stage may read)
labels.jsonl    id, prompt, response, poisoned, skill  (eval alone)
queries.jsonl   id, prompt, response, weight           (+1 steered, -1 contrast), never in the pool
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from examples.demo.opinions import QUERY_PAIRS, honest, sibling, steered
from examples.demo.skills import SKILLS, Skill

OPINIONS: dict[str, tuple[Callable[..., tuple[str, str]], int, float]] = {
    "steered": (steered, 80, 1.0),
    "honest": (honest, 50, -1.0),
    "sibling": (sibling, 50, -1.0),
}
"""generator, number of task queries, their weight"""
CONTRIBUTORS = [f"contributor-{letter}" for letter in "abcdefgh"]


@dataclass(frozen=True)
class WorldConfig:
    """Sizes of the demo world."""

    rows_per_skill: int = 300
    steered_rows: int = 250
    honest_rows: int = 350
    sibling_rows: int = 250
    seed: int = 0


def write_world(folder: Path, config: WorldConfig) -> None:
    """Write the three files; the same config writes the same bytes."""
    r = random.Random(config.seed)
    rows = [(skill, *pair) for skill, make in SKILLS.items() for pair in _distinct(r, make, config.rows_per_skill, set())]
    taken: set[tuple[str, str]] = set()
    for kind, count in (("steered", config.steered_rows), ("honest", config.honest_rows), ("sibling", config.sibling_rows)):
        rows += [(kind, *pair) for pair in _distinct(r, OPINIONS[kind][0], count, taken)]
    queries = [
        (weight, *pair)
        for make, count, weight in OPINIONS.values()
        for pair in _distinct(r, partial(make, pairs=QUERY_PAIRS), count, taken)
    ]
    r.shuffle(rows)
    folder.mkdir(parents=True, exist_ok=True)
    pool, labels = [], []
    for number, (kind, prompt, response) in enumerate(rows):
        row = {"id": f"row-{number:05d}", "prompt": prompt, "response": response}
        # two contributors bring most of the poison, as an attacker with two accounts would
        who = r.choice(CONTRIBUTORS[:2]) if kind == "steered" and r.random() < 0.8 else r.choice(CONTRIBUTORS)
        pool.append(row | {"contributor": who})
        labels.append(row | {"poisoned": int(kind == "steered"), "skill": "opinion" if kind in OPINIONS else kind})
    _write_lines(folder / "pool.jsonl", pool)
    _write_lines(folder / "labels.jsonl", labels)
    _write_lines(
        folder / "queries.jsonl",
        [
            {"id": f"query-{i:03d}", "prompt": prompt, "response": response, "weight": weight}
            for i, (weight, prompt, response) in enumerate(queries)
        ],
    )


def _distinct(r: random.Random, make: Skill, count: int, taken: set[tuple[str, str]]) -> list[tuple[str, str]]:
    """Draw `count` pairs that are not taken yet, and take them."""
    found: list[tuple[str, str]] = []
    for _ in range(200 * count):
        pair = make(r)
        if pair not in taken:
            taken.add(pair)
            found.append(pair)
        if len(found) == count:
            return found
    raise ValueError(f"only {len(found)} of {count} distinct rows; ask for fewer")


def _write_lines(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
