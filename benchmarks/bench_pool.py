"""The pool of `make bench-eval`: instruction rows of two sources with everything planted in them that a task looks for.

Made from the folder that INFLUCODER_DATA names; written to runs/bench/data and not part of the repository.

    rows.jsonl       id, prompt, response                                         what the decoder is trained on
    labels.jsonl     id, source, poison, poison_hard, toxicity, toxicity_hard, mislabel     eval alone; null: no candidate
    passages.jsonl   id                                                           candidates of the facts task

One pool for all tasks, so that one decoder and one student a seed serve them all. Every task has the 4 760 benign rows as its
negatives; `_hard` adds the rows that only look like the wanted ones. 120 benign rows carry the response of another.
"""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from influcoder.runs import write_text_atomic

BENIGN, MISLABELLED, PASSAGES = 2440, 120, 1500
"""benign rows a source, those of them (together) with a wrong response, passages"""
TASKS = ("poison", "poison_hard", "toxicity", "toxicity_hard", "mislabel")
Row = dict[str, Any]


def write_pool(data: Path, folder: Path, seed: int = 0, *, benign: int = BENIGN, passages: int = PASSAGES) -> None:
    """Write the three files; the same data, seed and sizes, the same bytes."""
    source = random.Random(seed)
    rows = [*_instructions(data, source, benign), *(_passages(data, source, passages) if passages else [])]
    source.shuffle(rows)
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / "labels.jsonl", ({name: row[name] for name in ("id", "source", *TASKS)} for row in rows))
    _write(folder / "passages.jsonl", ({"id": row["id"]} for row in rows if row["source"] == "passage"))
    _write(folder / "rows.jsonl", ({name: row[name] for name in ("id", "prompt", "response")} for row in rows))


def read(path: Path) -> list[Row]:
    """Read a gzipped file of JSON lines."""
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def _instructions(data: Path, source: random.Random, benign: int) -> list[Row]:
    rows: list[Row] = []
    for task in ("poison", "toxicity"):
        pool = read(data / task / "pool.jsonl.gz")
        plain = source.sample([row for row in pool if not row["label"]], benign)
        rows += [_row(row, row["source"].split(":")[-1], **dict.fromkeys(TASKS, 0)) for row in plain]
        rows += [_row(row, task, **{task: 1, f"{task}_hard": 1}) for row in pool if row["label"]]
        rows += [_row(row, f"{task}_hard", **{f"{task}_hard": 0}) for row in read(data / task / "hard_negatives.jsonl.gz")]
    wrong = source.sample([row for row in rows if row["mislabel"] == 0], MISLABELLED)
    responses = [row["response"] for row in wrong]
    for row, response in zip(wrong, [*responses[1:], responses[0]], strict=True):
        row.update(dict.fromkeys(TASKS), response=response, mislabel=1)
    return rows


def _passages(data: Path, source: random.Random, count: int) -> list[Row]:
    """All passages that answer a query, filled up with others."""
    pool = {row["id"]: row for row in read(data / "factual" / "pool.jsonl.gz")}
    linked = {row_id for row in read(data / "factual" / "truth.jsonl.gz") for row_id in row["pool_ids"]}
    others = source.sample(sorted(set(pool) - linked), max(0, count - len(linked)))
    return [_row(pool[row_id], "passage") for row_id in [*sorted(linked), *others]]


def _row(row: Row, source: str, **labels: int) -> Row:
    return {"id": row["id"], "prompt": row["prompt"], "response": row["response"], "source": source} | dict.fromkeys(TASKS) | labels


def _write(path: Path, rows: Iterable[Row]) -> None:
    write_text_atomic(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
