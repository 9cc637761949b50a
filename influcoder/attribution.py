"""Attribute a pool: for each query the rows that influence it most and least, one score for every row, and an index to ask again.

The pool streams by in shards (`pool.py`), each of which is embedded, scored, quantised and committed on its own
(`attribution_shards.py`), so that neither memory nor what a kill costs grows with the pool; the files are made of the shards at the
end (`attribution_tables.py`). The same command goes on where a killed one stopped, and ends with the same bytes: the pool is read
again from the start, which is cheap, and shards that are committed are compared with their rows and passed over.

Needs no torch. Score = dot product of unit embeddings in float32, larger = training on the row lowers the query's loss more; rank 1 is
the most extreme on its side; ties keep the row order.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

from influcoder.aggregation import DEFAULT_TOP
from influcoder.attribution_shards import Made, Ranking, Shard, commit_shard, finished_shard, rank_shard, shard_file
from influcoder.attribution_tables import REJECTED_FILE, write_tables
from influcoder.calibration import load_mu_scale
from influcoder.distribution import load_distribution
from influcoder.doubt import warn
from influcoder.embed_batch import embed_rows
from influcoder.errors import ConfigError, DataError, RunError
from influcoder.examples import Example, fingerprint
from influcoder.index import remove_manifests
from influcoder.onnx_encoder import OnnxEncoder
from influcoder.onnx_settings import Variant
from influcoder.pool import PoolRow, estimate_rows, in_shards, iterate_pool
from influcoder.ray_engine import make_on_ray
from influcoder.readers import DataSource, OnBadRow, read_examples
from influcoder.rescoring import Rescoring
from influcoder.rescoring_teacher import Rescore, open_teacher
from influcoder.runs import create_run, write_json_atomic

JOB_FILE = "job.json"
"""what an unfinished run was begun with"""
SUMMARY_FILE = "summary.json"
"""counts of a run; written when all else is there"""
Engine = Callable[[Path, Iterable[tuple[int, Shard]], Ranking, Callable[[int], object]], Made]
"""makes and commits the shards of a run that are not there yet"""


@dataclass(frozen=True, kw_only=True)
class AttributionConfig:
    """Find the rows of a pool that influence the queries most and least: `topk.parquet` by query, `rows.parquet` by row, `index/`."""

    encoder: str
    """encoder folder with `onnx/`, as a student run or `influcoder export` left it"""
    pool: DataSource
    """rows to rank"""
    queries: DataSource
    """behaviour to explain; a malformed query is always refused"""
    output: str
    """run directory to make; must not exist, unless as the unfinished work of the same config"""
    top_k: int = 100
    """rows kept for each query at either end"""
    top: int | None = DEFAULT_TOP
    """a row's score is the mean over so many of its best queries; null takes all"""
    keep_above: float | None = None
    """write the rows whose score is larger to kept.jsonl, as they were read, and the others to removed.jsonl"""
    keep_below: float | None = None
    """the same for scores that are smaller; with both, a row must lie between"""
    rescore: Rescore | None = None
    """second stage: topk.parquet by the teacher's own scores of the student's short-list; null leaves it by the student's"""
    checkpoint: str | None = None
    """the decoder that you want explained (folder, hub id, teacher run or fingerprint): a line warns when the encoder imitates another"""
    on_bad_row: OnBadRow = "set_aside"
    """set_aside writes malformed and duplicate rows of the pool to rejected.jsonl and goes on; refuse stops"""
    shard_rows: int = 16384
    """rows committed at a time: what a kill costs at most, and held in memory as text and embeddings"""
    chunk_rows: int = 1024
    """rows of a shard that are tokenised, embedded and scored at a time"""
    variant: Variant = "fp32"
    """fp32, or what `influcoder export --variants` wrote and accepted: int8 for CPUs, bf16 for CPUs that have it, fp16 for GPUs"""
    dim: int | None = None
    """embed with the first so many numbers alone: a smaller index, a rougher ranking (onnx/parity.json says by how much); null takes all"""
    providers: tuple[str, ...] = ()
    """onnxruntime's execution providers, best first, or OpenVINO; empty takes CUDA when there, else CPU"""
    engine: Literal["local", "ray"] = "local"
    """local ranks shards one after the other; ray ranks them on the cluster of RAY_ADDRESS, else on all of this machine, to the same bytes"""
    actors: int | None = None
    """processes of ray, each with the encoder in memory; null takes one a GPU with CUDA, else one a CPU"""

    def __post_init__(self) -> None:
        for name in ("top_k", "top", "shard_rows", "chunk_rows", "actors"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name}: {value}; expected at least 1")
        if self.keep_above is not None and self.keep_below is not None and self.keep_above >= self.keep_below:
            raise ConfigError(f"keep_above: {self.keep_above}; expected less than keep_below, {self.keep_below}, or no row is kept")
        if self.rescore is not None and self.rescore.rows < self.top_k:
            raise ConfigError(f"rescore.rows: {self.rescore.rows}; expected at least top_k, {self.top_k}, of which it is the choice")
        if self.actors is not None and self.engine != "ray":
            raise ConfigError(f"actors: {self.actors}; expected null with engine {self.engine}, which has none; set engine ray")


def attribute(config: AttributionConfig, config_yaml: str | None = None) -> dict[str, Any]:
    """Make the attribution run that `config` asks for, or finish it; return what its run.json says of it.

    Args:
        config: what to rank, by what, and where to write.
        config_yaml: its resolved YAML when it came from a file; None writes it out.

    Raises:
        RunError: when the encoder is not usable, the output exists, or unfinished work there is of another pool, encoder or queries.
        DataError: when a query is malformed, or a row is and `on_bad_row` is `refuse`, or no row is usable.
    """
    resolved = config_yaml or json.dumps(asdict(config), indent=2) + "\n"
    with create_run(Path(config.output), "attribution", resolved, resume=True) as run:
        load = partial(
            OnnxEncoder, Path(config.encoder).absolute(), variant=config.variant, dim=config.dim, providers=config.providers or None
        )
        encoder = load()
        queries = read_examples(config.queries)
        teacher = open_teacher(config.rescore, encoder.text_format) if config.rescore else None
        warnings = warn(Path(config.encoder), config.checkpoint, teacher.facts if teacher else None)
        ranking = make_ranking(
            encoder, queries, top_k=config.rescore.rows if config.rescore else config.top_k, top=config.top, chunk_rows=config.chunk_rows,
            keep_above=config.keep_above, keep_below=config.keep_below, mu_scale=load_mu_scale(Path(config.encoder)),
            distribution=load_distribution(Path(config.encoder)),
        )  # fmt: skip
        made_by = {
            "encoder_fingerprint": encoder.fingerprint,
            "queries_fingerprint": fingerprint(queries),
            "text_format": asdict(encoder.text_format),
            "provider": encoder.provider,
        } | ({"teacher_fingerprint": teacher.fingerprint} if teacher else {})
        begin(run.folder, made_by)

        def shards() -> Iterator[list[PoolRow]]:
            pool = iterate_pool(config.pool, config.on_bad_row, encoder.text_format, keep_lines=ranking.filters)
            return in_shards(pool, config.shard_rows)

        def committed() -> None:
            run.worth_resuming = True

        rescoring, expected = None, estimate_rows(config.pool)
        if teacher and not (run.folder / SUMMARY_FILE).exists():
            rescoring = Rescoring(teacher, ranking, shards, config.top_k)
            rescoring.begin(run.folder / "work", expected)
        engine = _make_here if config.engine == "local" else partial(make_on_ray, load, config.actors)
        found = attribute_shards(run.folder, shards(), ranking, expected=expected, committed=committed, engine=engine, rescoring=rescoring)
        run.facts |= made_by | {"top": config.top, "warnings": warnings} | found
    return run.facts


def make_ranking(encoder: OnnxEncoder, queries: Sequence[Example], **settings: Any) -> Ranking:
    """Embed the queries; `settings` are the other fields of `Ranking`."""
    return Ranking(encoder=encoder, queries=queries, query_vectors=embed_rows(encoder, queries)[0], **settings)


def begin(folder: Path, made_by: dict[str, Any]) -> None:
    """Make a run's folders, or accept those of an unfinished run of the same encoder and queries.

    Raises:
        RunError: when it has others.
    """
    for name in ("index", "work"):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for unfinished in (folder / name).glob(".*.writing"):
            unfinished.unlink()
    if not (folder / SUMMARY_FILE).exists():
        remove_manifests(folder / "index")  # of a run that was killed when it had published: it does so again
    path = folder / JOB_FILE
    if path.exists() and (before := json.loads(path.read_text(encoding="utf-8"))) != made_by:
        name = next(name for name in made_by if before.get(name) != made_by[name])
        raise RunError(
            f"{path}: unfinished work of another {name.split('_')[0]} ({name} {before.get(name)!r:.40}, now {made_by[name]!r:.40}); "
            f"finish it with its own, or remove {folder}"
        )
    write_json_atomic(path, made_by)


def attribute_shards(
    folder: Path,
    shards: Iterable[Sequence[PoolRow]],
    ranking: Ranking,
    *,
    expected: int | None = None,
    committed: Callable[[], None] = lambda: None,
    engine: Engine | None = None,
    rescoring: Rescoring | None = None,
) -> dict[str, Any]:
    """Rank a pool that arrives in shards; write the products into `folder`; return counts, speed and what was estimated.

    Args:
        folder: of the run, where `begin` was called.
        shards: in order.
        ranking: encoder, queries, and what to keep.
        expected: about so many rows, for the estimate; None when nobody knows.
        committed: called when a shard with a usable row is on the disk.
        engine: makes the shards; None makes one after the other here.
        rescoring: the second stage, begun; None leaves the tables to the student's scores.

    Raises:
        DataError: when not one row is usable.
        RunError: when a committed shard is of other rows, or the disk is full.
    """
    progress = Progress(folder, expected)
    if not (folder / SUMMARY_FILE).exists():
        records = _make_shards(folder, shards, ranking, progress, committed, engine or _make_here)
        summary = _summary(records, ranking)
        if not summary["counts"]["rows"]:
            raise DataError(f"pool: no usable row; expected at least one; {_first_reason(folder, len(records))}")
        write_tables(folder, records, ranking, rescoring)
        write_json_atomic(folder / SUMMARY_FILE, summary | (rescoring.facts if rescoring else {}))
    shutil.rmtree(folder / "work")  # from here on a killed job has nothing left to do but this
    facts: dict[str, Any] = json.loads((folder / SUMMARY_FILE).read_text(encoding="utf-8"))
    return facts | progress.facts()


def _make_shards(
    folder: Path, shards: Iterable[Shard], ranking: Ranking, progress: Progress, committed: Callable[[], None], engine: Engine
) -> list[dict[str, Any]]:
    records: dict[int, dict[str, Any]] = {}

    def keep(number: int, record: dict[str, Any]) -> None:
        records[number] = record
        if record["rows"]:
            committed()

    def unfinished() -> Iterator[tuple[int, Shard]]:
        for number, shard in enumerate(shards):
            record = finished_shard(folder, number, shard)
            if record is None:
                yield number, shard
            else:
                bar.update(len(shard))
                keep(number, record)

    with (
        tqdm(desc="attribute", unit=" rows", total=progress.expected) as bar,
        closing(engine(folder, unfinished(), ranking, bar.update)) as made,
    ):
        for number, record, seconds in made:
            progress.made(number, record, seconds, bar)
            bar.update(record["rejected"])
            keep(number, record)
    return [records[number] for number in sorted(records)]


def _make_here(folder: Path, shards: Iterable[tuple[int, Shard]], ranking: Ranking, advance: Callable[[int], object]) -> Made:
    for number, shard in shards:
        started = time.monotonic()
        record = commit_shard(folder, number, rank_shard(shard, ranking, advance))
        yield number, record, time.monotonic() - started


def _summary(records: Sequence[dict[str, Any]], ranking: Ranking) -> dict[str, Any]:
    names = ["rows", "rejected", "broken_files", *(["kept", "removed"] if ranking.filters else [])]
    counts = {name: sum(record[name] for record in records) for name in names}
    truncated = sum(record["truncated"] for record in records)
    shares = {"truncated_share": truncated / max(counts["rows"], 1)}
    if ranking.distribution is not None:
        shares["far_share"] = sum(record["far"] for record in records) / max(counts["rows"], 1)
    return {"counts": counts | {"queries": len(ranking.queries)}, **shares}


@dataclass
class Progress:
    """How fast shards are made, and what is to be expected of the rest."""

    folder: Path
    expected: int | None
    rows: int = 0
    seconds: float = 0.0
    estimate: dict[str, Any] = field(default_factory=dict)

    def made(self, number: int, record: dict[str, Any], seconds: float, bar: tqdm[Any]) -> None:
        """Count a shard; after the first one, say what the pool will take."""
        self.rows += record["rows"]
        self.seconds += seconds
        if self.estimate or self.expected is None or not record["rows"]:
            return
        each = seconds / record["rows"]
        size = sum(path.stat().st_size for path in self._files(number)) / record["rows"]
        self.estimate = {
            "rows": self.expected,
            "rows_per_second": round(1 / each, 1),
            "seconds": round(each * self.expected, 1),
            "bytes": round(size * self.expected),
        }
        line = "about {rows:,} rows at {rows_per_second:,} rows/s: {seconds:,.0f} s, {bytes:,} bytes on disk".format(**self.estimate)
        bar.write(line, file=sys.stderr)

    def facts(self) -> dict[str, Any]:
        """Return what run.json says of it; a run that found all its shards made has no speed."""
        return {"rows_per_second": round(self.rows / self.seconds, 1) if self.seconds else None, "estimate": self.estimate or None}

    def _files(self, number: int) -> Iterator[Path]:
        for part in ("index", "work"):
            yield from (self.folder / part).glob(f"shard-{number:05d}.*")


def _first_reason(folder: Path, num_shards: int) -> str:
    for number in range(num_shards):
        with shard_file(folder, number, REJECTED_FILE).open(encoding="utf-8") as lines:
            for line in lines:
                return "the first was set aside: {where}: {reason}".format(**json.loads(line))
    return "the pool is empty"
