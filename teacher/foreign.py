"""A teacher run out of attribution made elsewhere (`python -m teacher.foreign CONFIG.yaml`).

A Bergson index, rows as queries and, with `queries` and `query_path`, another index of task queries:

    output: runs/teacher/bergson
    rows: {paths: [data/rows.jsonl]}
    source: {kind: bergson, path: indexes/rows}                 # ids from data.hf; or `ids: rows.txt`; or `in_order: true`

Features in plain arrays, here with queries of their own:

    rows: {paths: [data/rows.jsonl]}
    queries: {paths: [data/queries.jsonl]}
    source: {kind: arrays, path: rows.npy, ids: rows.txt, query_path: queries.safetensors, query_ids: queries.json, normalise: none}

Scores that Kronfluence saved (`scores_NAME/`), its data sets in the order of our files; positive = helpful when measuring the loss:

    rows: {paths: [data/rows.jsonl]}
    queries: {paths: [data/queries.jsonl]}
    source: {kind: kronfluence_scores, path: influence_results/model/scores_ekfac, in_order: true}

Scores in a plain (queries, rows) array, of a method whose larger scores are more harmful:

    rows: {paths: [data/rows.jsonl]}
    queries: {paths: [data/queries.jsonl]}
    source: {kind: scores, path: scores.safetensors, key: influence, ids: rows.parquet, query_ids: queries.parquet, sign: -1}

The run is read as any other (`teacher/stage.py`). Vectors are aligned to the rows by id. Scores alone say nothing of a row that asks:
their features are factors of the matrix, and their student needs `asks: queries`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from influcoder.array_files import Matrix, read_ids, read_matrix
from influcoder.errors import ConfigError, DataError
from influcoder.examples import Example, fingerprint, write_examples
from influcoder.features import Manifest, create_store, load_features, write_shard
from influcoder.foreign import ForeignFeatures, ForeignScores, factorise, read_bergson, read_kronfluence
from influcoder.program import parse_config, run_program
from influcoder.readers import DataSource, read_examples
from influcoder.runs import create_run, sha256_of_file
from influcoder.scores import Scores, save_scores
from influcoder.text_format import TextFormat, save_text_format, truncate_all

SEED, SHARD_ROWS = 0, 4096
Sides = dict[str, list[Example]]


@dataclass(frozen=True, kw_only=True)
class ForeignSource:
    """What was made elsewhere, and which rows it is of."""

    kind: Literal["bergson", "arrays", "kronfluence_scores", "scores"]
    """bergson: an index folder; arrays: (rows, dim) features; kronfluence_scores: a scores folder; scores: (queries, rows)"""
    path: str
    """folder, or .npy or .safetensors file"""
    query_path: str | None = None
    """features alone: those of the queries; null when there are no queries"""
    key: str | None = None
    """tensor in a .safetensors file; null when it holds one"""
    ids: str | None = None
    """ids of the source's rows: .txt one a line, .json list, or column `id_column` of .jsonl, .csv, .parquet; null: see `in_order`"""
    query_ids: str | None = None
    """the same of the queries"""
    id_column: str = "id"
    """where ids stand in such tables, and in the data.hf of a Bergson index"""
    in_order: bool = False
    """sides without an ids file have as many rows as ours, in our order; false: a Bergson index names its rows itself"""
    sign: Literal[1, -1] = 1
    """-1 when larger means that the row harms the query more"""
    normalise: Literal["unit", "none"] | None = None
    """features alone, unit: scores are cosines, none: products; null is unit. Scores are reproduced as they are"""

    @property
    def of_scores(self) -> bool:
        """Whether it holds scores and no features."""
        return self.kind in ("kronfluence_scores", "scores")

    def __post_init__(self) -> None:
        if self.of_scores and (self.query_path is not None or self.normalise == "unit"):
            raise ConfigError(
                f"source: query_path or normalise: unit with kind {self.kind}; scores are one file, reproduced as they are; drop it"
            )
        if not self.of_scores and self.sign == -1 and self.query_path is None:
            raise ConfigError("source: sign -1 without query_path; a row's product with itself is positive whatever the sign; give queries")
        sides = ("ids", "query_ids") if self.of_scores or self.query_path is not None else ("ids",)
        nameless = [side for side in sides if getattr(self, side) is None and not self.in_order and self.kind != "bergson"]
        if nameless:
            raise ConfigError(f"source: {nameless[0]} is null with kind {self.kind}; expected an ids file, or in_order: true")


@dataclass(frozen=True, kw_only=True)
class ForeignConfig:
    """Make a teacher run out of features or scores made elsewhere (python -m teacher.foreign CONFIG.yaml)."""

    output: str
    """run directory to make; must not exist"""
    rows: DataSource
    """training rows; the source may hold more of them, but none less"""
    source: ForeignSource
    """what was made elsewhere"""
    queries: DataSource | None = None
    """task queries; null when only the rows' kernel is wanted"""
    text: TextFormat = field(default_factory=TextFormat)
    """character budgets of the student; what the other program read, it read"""
    decoder: str | None = None
    """the model whose gradients were taken, for the record"""

    def __post_init__(self) -> None:
        has_queries = self.source.of_scores or self.source.query_path is not None
        if has_queries != (self.queries is not None):
            there, absent = ("the source", "queries: null") if has_queries else ("queries", "source.query_path: null")
            raise ConfigError(f"{absent}, but {there} has queries; expected both or neither; give the other, or drop this one")


@dataclass(frozen=True)
class Aligned:
    """What the source says of our rows and queries, in our order."""

    vectors: dict[str, Matrix]
    """(rows, dim) by side: rows, queries"""
    scores: Matrix | None
    """(queries, rows) when these were given and not the vectors"""
    ids: dict[str, tuple[str, ...]]
    """of the source, by side: ours and perhaps more"""
    files: tuple[Path, ...]
    """what was read"""


def run(config: ForeignConfig, resolved_yaml: str) -> None:
    """Make the teacher run `config.output`.

    Raises:
        DataError: when the source is malformed, or does not hold every row.
        RunError: when the output exists.
    """
    with create_run(Path(config.output), "teacher", resolved_yaml) as made:
        sides = _read_sides(config, made.folder)
        save_text_format(made.folder, config.text)
        found = _align_scores(config.source, sides) if config.source.of_scores else _align_features(config.source, sides)
        for side, ids in found.ids.items():
            print(f"{side}: {len(sides[side])} found in the source, {len(ids) - len(sides[side])} more of it left out")
        facts = {
            "method": f"foreign:{config.source.kind}",
            "seeds": [SEED],
            "decoder": config.decoder,
            "decoder_fingerprint": _fingerprint_source(config.source, found),
            "normalise": "none" if config.source.of_scores else config.source.normalise or "unit",
            "rows_ask": not config.source.of_scores,
        }
        made.facts = facts | {f"{side}_fingerprint": fingerprint(examples) for side, examples in sides.items()}
        _write_features(made.folder, made.facts, sides, found.vectors)
        if config.queries is not None:
            made.facts |= _write_scores(made.folder, made.facts, found.scores)
    print(f"{config.output}: complete")


def main(arguments: Sequence[str]) -> None:
    """Parse the command line and make the run."""
    run(*parse_config(ForeignConfig, arguments, "python -m teacher.foreign"))


def _read_sides(config: ForeignConfig, folder: Path) -> Sides:
    sources = {"rows": config.rows} | ({"queries": config.queries} if config.queries else {})
    sides = {side: truncate_all(read_examples(source), config.text) for side, source in sources.items()}
    for side, examples in sides.items():
        write_examples(folder / f"{side}.parquet", examples)
    return sides


def _align_features(source: ForeignSource, sides: Sides) -> Aligned:
    found = {}
    for side, path, given in (("rows", source.path, source.ids), ("queries", source.query_path, source.query_ids)):
        if path is not None:
            ids = _given_ids(source, given, sides[side])
            if source.kind == "bergson":
                found[side] = read_bergson(Path(path), id_column=source.id_column, ids=ids)
            else:
                assert ids is not None  # ForeignSource.__post_init__
                matrix = read_matrix(Path(path), source.key)
                found[side] = ForeignFeatures(files=(Path(path),), ids=ids, vectors=matrix, space=matrix.shape[1])
    if "queries" in found and found["queries"].space != found["rows"].space:
        raise DataError(
            f"{source.query_path}: other coordinates than {source.path} has (number, modules or projection); "
            "expected the same, to be multiplied; make both with the same settings"
        )
    vectors = {side: features.of([example.id for example in sides[side]]) for side, features in found.items()}
    if "queries" in vectors:
        vectors["queries"] *= source.sign
    files = tuple(file for features in found.values() for file in features.files)
    return Aligned(vectors, None, {side: features.ids for side, features in found.items()}, files)


def _align_scores(source: ForeignSource, sides: Sides) -> Aligned:
    path = Path(source.path)
    values, files = read_kronfluence(path) if source.kind == "kronfluence_scores" else (read_matrix(path, source.key), (path,))
    row_ids, query_ids = _given_ids(source, source.ids, sides["rows"]), _given_ids(source, source.query_ids, sides["queries"])
    assert row_ids is not None and query_ids is not None  # ForeignSource.__post_init__
    found = ForeignScores(files=files, query_ids=query_ids, row_ids=row_ids, values=values)
    scores = source.sign * found.of(*([example.id for example in sides[side]] for side in ("queries", "rows")))
    queries, rows = factorise(scores)
    return Aligned({"rows": rows, "queries": queries}, scores, {"rows": row_ids, "queries": query_ids}, files)


def _given_ids(source: ForeignSource, given: str | None, examples: Sequence[Example]) -> tuple[str, ...] | None:
    if given is not None:
        return read_ids(Path(given), source.id_column)
    return tuple(example.id for example in examples) if source.in_order else None


def _fingerprint_source(source: ForeignSource, found: Aligned) -> str:
    """Return 16 hex digits that identify the source's contents and how they are taken."""
    taken = [source.kind, source.key, source.sign, source.normalise, found.ids, [sha256_of_file(file) for file in found.files]]
    digest = hashlib.sha256(json.dumps(taken).encode())
    return digest.hexdigest()[:16]


def _write_features(folder: Path, facts: dict[str, Any], sides: Sides, vectors: dict[str, Matrix]) -> None:
    for side, found in vectors.items():
        manifest = Manifest(
            ids=tuple(example.id for example in sides[side]),
            dim=found.shape[1],
            shard_rows=SHARD_ROWS,
            method=facts["method"],
            seed=SEED,
            rows_fingerprint=facts[f"{side}_fingerprint"],
            decoder_fingerprint=facts["decoder_fingerprint"],
            normalise=facts["normalise"],
        )
        store = folder / "features" / f"seed-{SEED}" / side
        create_store(store, manifest)
        for shard in range(manifest.num_shards):
            write_shard(store, shard, np.ascontiguousarray(found[manifest.rows_of(shard)]))  # safetensors takes any order for C's


def _write_scores(folder: Path, facts: dict[str, Any], given: Matrix | None) -> dict[str, Any]:
    """Write the queries' scores of the rows: those given, else the products of the features as they were stored."""
    queries, rows = (load_features(folder / "features" / f"seed-{SEED}" / side) for side in ("queries", "rows"))
    products = queries.as_queries @ rows.as_rows.T
    scores = Scores(
        values=products if given is None else given,
        query_ids=queries.manifest.ids,
        row_ids=rows.manifest.ids,
        method=facts["method"],
        seed=SEED,
        decoder_fingerprint=facts["decoder_fingerprint"],
    )
    save_scores(folder / "scores" / f"seed-{SEED}", scores)
    if given is None:
        return {}
    error = float(np.linalg.norm(products - given) / np.linalg.norm(given))
    print(f"scores: {given.shape[0]} queries x {given.shape[1]} rows as {rows.manifest.dim} factors in float16, relative error {error:.1e}")
    return {"relative_error": error}


if __name__ == "__main__":
    run_program(main)
