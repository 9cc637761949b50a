"""A small teacher run that has seen part of a pool, and the teacher's own scores of the whole pool, by another run of the stage."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from influcoder.influence.decoder import DecoderConfig, FreshDecoder
from influcoder.influence.gradients import GradientConfig
from influcoder.readers import DataSource
from influcoder.text_format import TextFormat
from teacher.config import TeacherConfig
from tests.influcoder.test_attribution import make_rows, write_jsonl
from tests.teacher.test_stage import make_config, run_stage

Rows = Sequence[dict[str, Any]]
QUERIES = 5
LONGEST = 210
"""characters of a response that the decoder reads whole; rows of the pool have at most 205, or over 300, which it does not"""
SPACE = GradientConfig(rank=4, dim=128, factors="random", shard_rows=8)
"""drawn from the seed alone, so that runs of other rows share it"""


def pool_rows() -> Rows:
    return make_rows(200, seed=0)


def query_rows() -> Rows:
    rows = make_rows(QUERIES, seed=1)[1:] + make_rows(QUERIES + 1, seed=2)[-1:]  # the first is longer than the decoder reads
    rows[0]["prompt"] = "bread river " * 20  # longer than the budget
    return rows


def readable(rows: Rows) -> Rows:
    return [row for row in rows if len(row["response"]) <= LONGEST]


def teacher_config(folder: Path, rows: Rows, **changes: Any) -> TeacherConfig:
    folder.mkdir(parents=True, exist_ok=True)
    paths = {name: write_jsonl(folder / f"{name}.jsonl", given) for name, given in (("rows", rows), ("queries", query_rows()))}
    sources = {name: DataSource(paths=(path,)) for name, path in paths.items()}
    settings: dict[str, Any] = {"text": TextFormat(max_prompt_chars=120, max_response_chars=400), "gradients": SPACE, "seeds": (0,)}
    return make_config(folder, **(sources | settings | changes))


def make_teachers(folder: Path) -> tuple[Path, Path]:
    """Return a run that was fine-tuned on every third row of the pool, and one of the same decoder on all that it can read."""
    fresh = FreshDecoder(hidden_size=16, layers=1, heads=2, intermediate_size=16, vocab_size=280, max_tokens=160)
    config = teacher_config(folder / "part", readable(pool_rows())[::3], decoder=DecoderConfig(fresh=fresh, device="cpu"))
    part = run_stage(config, json.dumps(asdict(config)))
    decoder = DecoderConfig(path=str(part / "decoder"), device="cpu")
    return part, run_stage(teacher_config(folder / "whole", readable(pool_rows()), decoder=decoder, finetune=None))
