"""The second stage of an attribution: rows on the student's short-list are scored again with their teacher's own features.

    RUN/work/teacher-queries.safetensors, .json    `vectors` (Q, D), made before the pool is read: what cannot work says so at once
    RUN/work/short-list.parquet, .json             the rows with their texts, from a second pass over the pool
    RUN/work/rescored-00000.safetensors, .json     best rows of each query among those of a piece; a kill costs one piece at most

Q queries, D coordinates of a feature.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from tqdm import tqdm

from influcoder.attribution_shards import Ranking
from influcoder.commits import commit, read_record
from influcoder.embed_batch import embed_rows
from influcoder.examples import Example, load_examples, write_examples
from influcoder.pool import PoolRow
from influcoder.rescoring_teacher import RescoringTeacher
from influcoder.short_list import Places, Ranked, best_of, pick_rows, plan_pieces
from influcoder.text_format import truncate_all
from influcoder.top_k import Side

SIDES: tuple[Side, ...] = ("top", "bottom")
NAMES = ("rows", "scores", "student_scores")


@dataclass
class Rescoring:
    """The second stage of one job."""

    teacher: RescoringTeacher
    ranking: Ranking
    """by the student, of a short-list: its `top_k` at either end"""
    shards: Callable[[], Iterable[Sequence[PoolRow]]]
    """reads the pool anew, in the job's shards"""
    top_k: int
    """rows kept of the short-list"""
    counts: dict[str, int] = field(default_factory=dict)
    """of the short-list's rows, the same whether the job was killed or not; empty before `rank`"""

    @property
    def facts(self) -> dict[str, Any]:
        """What run.json says of it, under its own name."""
        return {"rescore": self.teacher.facts | {"rows": self.ranking.top_k} | self.counts}

    def begin(self, work: Path, expected: int | None) -> None:
        """Compute the queries' features, unless that is done, and say what the rows will take.

        Args:
            work: the job's folder of unfinished things.
            expected: rows of the pool; None when nobody knows.

        Raises:
            MissingExtraError: when torch is not installed.
            ConfigError: when the decoder cannot be loaded.
            RunError: when it is another by now, or gives the run's rows other features than the run holds.
            DataError: when a query has no feature.
        """
        record = work / "teacher-queries.json"
        if read_record(record) is not None:
            return
        rate, queries = self.teacher.check(), truncate_all(self.ranking.queries, self.ranking.encoder.text_format)
        vectors = self.teacher.computing.of_queries(queries)
        self.teacher.release()  # a large decoder had better not wait in memory while the pool is embedded
        _commit(record, {"vectors": vectors}, {"rows_per_second": rate})
        most = 2 * len(queries) * self.ranking.top_k
        most = most if expected is None else min(most, expected)
        _say(f"at most about {most:,} rows, {rate:.3g} rows/s: {most / rate:,.0f} s, less what {self.teacher.folder} has seen")

    def rank(self, work: Path, sides: Mapping[Side, Ranked], records: Sequence[Mapping[str, Any]]) -> dict[Side, Ranked]:
        """Return each query's best rows of the short-list by the teacher's scores; pieces that are committed are not scored again.

        Args:
            work: the job's folder of unfinished things.
            sides: by the student's scores.
            records: commit records of the pool's shards.

        Raises:
            RunError: when the pool has changed, a part of the teacher run is missing, or the disk is full.
        """
        positions = np.unique(np.concatenate([ranked.rows.ravel() for ranked in sides.values()]))
        made_of = {"short_list": hashlib.sha256(positions.tobytes()).hexdigest()[:16]}
        rows = self._texts(work, positions, records, made_of)
        shards = [self.teacher.seen.shard_of(row) for row in rows]
        new = shards.count(None)
        seconds = new / _known(work / "teacher-queries.json")["rows_per_second"]
        _say(f"{len(rows):,} rows; {len(rows) - new:,} are in {self.teacher.folder}, the others take about {seconds:,.0f} s")
        pieces, parts, unscored = plan_pieces(shards, self.teacher.record["gradients"]["shard_rows"]), [], 0
        with tqdm(desc="rescore", unit=" rows", total=len(rows)) as bar:
            for number, (shard, places) in enumerate(pieces):
                record = work / f"rescored-{number:05d}.json"
                if not _is_made_of(record, made_of):
                    self._score(record, made_of, shard, [rows[place] for place in places], positions[places])
                parts.append(_load_best(record))
                unscored += _known(record)["unscored"]
                bar.update(len(places))
        self.teacher.release()
        self.counts = {"short_listed": len(rows), "seen": len(rows) - new, "computed": new, "unscored": unscored}
        return {side: best_of([part[side] for part in parts], self.top_k, side) for side in SIDES}

    def _texts(self, work: Path, positions: Places, records: Sequence[Mapping[str, Any]], made_of: dict[str, Any]) -> list[Example]:
        """Return the rows of the short-list, from a second pass over the pool unless that is done."""
        record = work / "short-list.json"
        if not _is_made_of(record, made_of):
            shards = tqdm(self.shards(), desc="texts of the short-list", unit=" shards", total=len(records), leave=False)
            rows = pick_rows(shards, records, positions)
            commit(record, {"short-list.parquet": lambda path: write_examples(path, rows)}, made_of)
        return load_examples(record.with_suffix(".parquet"))

    def _score(self, record: Path, made_of: dict[str, Any], shard: int | None, rows: Sequence[Example], positions: Places) -> None:
        """Score the rows of a piece for every query, and commit the best on either side, as many as the tables keep."""
        teacher = self.teacher
        vectors = teacher.computing.of_rows(rows) if shard is None else teacher.seen.vectors(shard, rows)
        scored = np.flatnonzero(np.isfinite(vectors).all(axis=1))
        of_queries = load_file(record.with_name("teacher-queries.safetensors"))["vectors"]
        scores = of_queries @ vectors[scored].T  # (Q, R)
        embedded = embed_rows(self.ranking.encoder, [rows[place] for place in scored.tolist()])[0]
        whole = Ranked(np.broadcast_to(positions[scored], scores.shape), scores, self.ranking.query_vectors @ embedded.T)
        best = {side: best_of([whole], self.top_k, side) for side in SIDES}
        tensors = {f"{side}_{name}": getattr(found, name) for side, found in best.items() for name in NAMES}
        _commit(record, tensors, made_of | {"unscored": len(rows) - len(scored)})


def _load_best(record: Path) -> dict[Side, Ranked]:
    tensors = load_file(record.with_suffix(".safetensors"))
    return {side: Ranked(*(tensors[f"{side}_{name}"] for name in NAMES)) for side in SIDES}


def _known(record: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(record.read_text(encoding="utf-8"))
    return found


def _is_made_of(record: Path, made_of: Mapping[str, Any]) -> bool:
    """Return whether a record is committed, whole, and of this short-list."""
    found = read_record(record)
    return found is not None and made_of.items() <= found.items()


def _commit(record: Path, tensors: Mapping[str, NDArray[Any]], facts: Mapping[str, Any]) -> None:
    whole = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    commit(record, {f"{record.stem}.safetensors": lambda path: save_file(whole, path)}, facts)


def _say(line: str) -> None:
    tqdm.write(f"rescore: {line}", file=sys.stderr)
