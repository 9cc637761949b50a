from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from tokenizers import Encoding

from influcoder.aggregation import aggregate
from influcoder.attribution import AttributionConfig, attribute, attribute_rows, in_chunks
from influcoder.errors import ConfigError, DataError, RunError
from influcoder.examples import Example, Turn
from influcoder.onnx_encoder import OnnxEncoder
from influcoder.readers import Columns, DataSource
from influcoder.runs import open_run
from influcoder.text_format import render
from influcoder.top_k import TopK

WORDS = "river bread code stars green tea garden slowly music seven".split()


def make_rows(count: int, seed: int) -> list[dict[str, Any]]:
    rng = np.random.default_rng(seed)

    def text(longest: int) -> str:
        return " ".join(rng.choice(WORDS, rng.integers(1, longest)))

    # every 25th row is longer than the tiny encoder reads, and some rows say the same
    rows = [
        {"id": f"r{row}", "prompt": text(8), "response": text(60 if row % 25 == 0 else 12), "who": f"c{row % 3}"} for row in range(count)
    ]
    for row in range(10, count, 40):
        rows[row] |= {key: rows[row - 1][key] for key in ("prompt", "response")}
    return rows


def write_jsonl(path: Path, rows: Sequence[dict[str, Any] | str]) -> str:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def config(exported_folder: Path, tmp_path: Path) -> AttributionConfig:
    queries: list[dict[str, Any]] = [row | {"id": f"q{place}", "w": 1} for place, row in enumerate(make_rows(6, seed=1))]
    queries[4]["w"] = queries[5]["w"] = -1
    return AttributionConfig(
        encoder=str(exported_folder),
        pool=DataSource(paths=(write_jsonl(tmp_path / "pool.jsonl", make_rows(200, seed=0)),), columns=Columns(contributor="who")),
        queries=DataSource(paths=(write_jsonl(tmp_path / "queries.jsonl", queries),), columns=Columns(weight="w")),
        output=str(tmp_path / "run"),
        top_k=7,
        top=2,
        chunk_rows=64,
    )


def as_examples(rows: Sequence[dict[str, Any]]) -> list[Example]:
    return [Example(id=row["id"], context=(Turn(role="user", content=row["prompt"]),), response=row["response"]) for row in rows]


@given(st.data())
def test_running_top_k_is_one_stable_sort(data: st.DataObject) -> None:
    scores = data.draw(
        hnp.arrays(np.float32, st.tuples(st.integers(1, 3), st.integers(0, 30)), elements=st.sampled_from([-1.0, 0.0, 0.5, 2.0]))
    )
    k, chunk = data.draw(st.integers(1, 12)), data.draw(st.integers(1, 9))
    best = TopK(len(scores), k)
    for start in range(0, scores.shape[1], chunk):
        best.add(scores[:, start : start + chunk])
    expected = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    np.testing.assert_array_equal(best.rows, expected)
    np.testing.assert_array_equal(best.scores, np.take_along_axis(scores, expected, axis=1))


def test_a_run_equals_brute_force(config: AttributionConfig) -> None:
    facts = attribute(config)
    rows, queries = as_examples(make_rows(200, seed=0)), as_examples(make_rows(6, seed=1))
    weights = np.array([1.0, 1, 1, 1, -1, -1])
    encoder = OnnxEncoder(config.encoder)
    row_vectors = encoder.encode([render(row, encoder.text_format) for row in rows])
    scores = encoder.encode([render(query, encoder.text_format) for query in queries]) @ row_vectors.T

    table = pq.read_table(Path(config.output) / "rows.parquet").to_pydict()
    assert table["id"] == [row.id for row in rows]
    assert table["contributor"] == [f"c{place % 3}" for place in range(200)]
    np.testing.assert_allclose(table["score"], aggregate(scores, weights, 2), atol=1e-5)
    np.testing.assert_allclose(table["best_score"], scores[:4].max(axis=0), atol=1e-5)
    best = [int(query.removeprefix("q")) for query in table["best_query_id"]]
    np.testing.assert_allclose(scores[best, np.arange(200)], scores[:4].max(axis=0), atol=1e-5)
    assert max(best) < 4  # a contrast query is nobody's best query

    top = pq.read_table(Path(config.output) / "topk.parquet").to_pydict()
    assert top["query_id"] == [f"q{query}" for query in range(6) for _ in range(7)]
    assert top["rank"] == list(range(1, 8)) * 6
    np.testing.assert_allclose(np.reshape(top["score"], (6, 7)), -np.sort(-scores, axis=1)[:, :7], atol=1e-5)
    places = [int(row.removeprefix("r")) for row in top["id"]]
    np.testing.assert_allclose(scores[np.repeat(np.arange(6), 7), places], top["score"], atol=1e-5)
    assert top["contributor"] == [f"c{place % 3}" for place in places]
    assert (Path(config.output) / "rejected.jsonl").read_text() == ""
    longer = sum(bool(encoding.overflowing) for encoding in encoder.tokenize([render(row, encoder.text_format) for row in rows]))
    assert longer > 0 and facts["truncated_share"] == longer / 200


def test_ties_keep_the_row_order_across_chunks(exported_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = OnnxEncoder(exported_folder)
    embed = encoder.embed

    def embed_coarsely(encodings: Sequence[Encoding]) -> NDArray[np.float32]:
        return (np.round(embed(encodings) * 4) / 4).astype(np.float32)  # sixteenths add up exactly, and many rows tie

    monkeypatch.setattr(encoder, "embed", embed_coarsely)
    rows, queries = as_examples(make_rows(150, seed=0)), as_examples(make_rows(3, seed=1))
    vectors = encoder.encode([render(row, encoder.text_format) for row in rows])
    scores = encoder.encode([render(query, encoder.text_format) for query in queries]) @ vectors.T
    best = np.argsort(-scores, axis=1, kind="stable")[:, :40]
    assert any(len(np.unique(scores[query][best[query]])) < 40 for query in range(3)), "no ties: the test would show nothing"
    for chunk_rows in (1, 7, 1000):
        folder = tmp_path / str(chunk_rows)
        folder.mkdir()
        attribute_rows(encoder, in_chunks(rows, chunk_rows), queries, folder=folder, top_k=40)
        assert pq.read_table(folder / "topk.parquet")["id"].to_pylist() == [f"r{row}" for row in best.ravel()]


def bad_pool(path: Path) -> str:
    rows: list[dict[str, Any] | str] = [*make_rows(200, seed=0)]
    rows[3] = "{not json"
    rows[70] = {"id": "empty", "prompt": "a", "response": " ", "who": "c"}
    rows[71] = {"id": "lacking", "prompt": "a", "who": "c"}
    rows[150] = {"id": "r20", "prompt": "again", "response": "the id of row 21", "who": "c"}
    return write_jsonl(path, rows)


def test_bad_rows_are_set_aside_and_the_others_ranked(config: AttributionConfig, tmp_path: Path) -> None:
    pool = bad_pool(tmp_path / "bad.jsonl")
    attribute(replace(config, pool=replace(config.pool, paths=(pool,))), "encoder: given\n")
    run = open_run(Path(config.output), "attribution")
    rejected = [json.loads(line) for line in (Path(config.output) / "rejected.jsonl").read_text().splitlines()]
    assert [row["where"] for row in rejected] == [f"{pool}:4", f"{pool}:71", f"{pool}:72", f"{pool}: row 151"]
    for row, reason in zip(
        rejected, ["not JSON", "response is empty", "no column 'response'", "id 'r20' stands in row 21 already"], strict=True
    ):
        assert reason in row["reason"]
    kept = [f"r{place}" for place in range(200) if place not in (3, 70, 71, 150)]
    assert pq.read_table(Path(config.output) / "rows.parquet")["id"].to_pylist() == kept
    assert run["counts"] == {"rows": 196, "rejected": 4, "queries": 6}
    assert run["encoder_fingerprint"] == OnnxEncoder(config.encoder).fingerprint and run["rows_per_second"] > 0
    assert (Path(config.output) / "config.yaml").read_text() == "encoder: given\n"


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"id": "x", "prompt": "a", "response": "", "who": "c"}, r"pool\.jsonl:41: the response is empty"),
        ({"id": "r5", "prompt": "a", "response": "b", "who": "c"}, r"pool\.jsonl: row 41: id 'r5' stands in row 6 already"),
    ],
)
def test_refuse_stops_at_the_first_bad_row_and_leaves_nothing(
    config: AttributionConfig, tmp_path: Path, bad: dict[str, Any], message: str
) -> None:
    write_jsonl(tmp_path / "pool.jsonl", [*make_rows(40, seed=0), bad])
    with pytest.raises(DataError, match=message):
        attribute(replace(config, on_bad_row="refuse", chunk_rows=8))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pool.jsonl", "queries.jsonl"]


def test_a_kill_half_way_leaves_no_output(config: AttributionConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenize, calls = OnnxEncoder.tokenize, iter(range(100))

    def interrupted(encoder: OnnxEncoder, texts: Sequence[str]) -> list[Encoding]:
        if next(calls) == 2:  # the queries, one chunk, and then
            raise KeyboardInterrupt
        return tokenize(encoder, texts)

    monkeypatch.setattr(OnnxEncoder, "tokenize", interrupted)
    with pytest.raises(KeyboardInterrupt):
        attribute(config)
    assert next(calls) == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pool.jsonl", "queries.jsonl"]


def test_the_pool_is_never_held(config: AttributionConfig, tmp_path: Path) -> None:
    encoder, drawn, seen = OnnxEncoder(config.encoder), 0, []

    def rows() -> Iterator[Example]:
        nonlocal drawn
        for row in as_examples(make_rows(100, seed=0)):
            drawn += 1
            yield row

    def watched() -> Iterator[list[Any]]:
        for chunk in in_chunks(rows(), 10):
            seen.append(drawn)
            yield chunk

    attribute_rows(encoder, watched(), as_examples(make_rows(2, seed=1)), folder=tmp_path)
    assert seen == list(range(10, 101, 10))


def test_fewer_rows_than_top_k_and_no_contributor(config: AttributionConfig) -> None:
    attribute(replace(config, pool=replace(config.pool, limit=4, columns=Columns())))
    top = pq.read_table(Path(config.output) / "topk.parquet").to_pydict()
    assert top["rank"] == [1, 2, 3, 4] * 6 and top["contributor"] == [None] * 24


def test_a_pool_without_a_usable_row_says_why(config: AttributionConfig, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no usable row; .* the first was set aside: .*pool\.jsonl:1: no column 'answer'; it has 'id'"):
        attribute(replace(config, pool=replace(config.pool, columns=Columns(response="answer"))))
    write_jsonl(tmp_path / "pool.jsonl", [])
    with pytest.raises(DataError, match=r"no usable row; .* the pool is empty"):
        attribute(config)
    assert not Path(config.output).exists()


def test_a_bad_query_is_refused_whatever_the_rows_may(config: AttributionConfig, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "queries.jsonl", [{"id": "q", "prompt": "a", "response": "", "w": 1}])
    with pytest.raises(DataError, match=r"queries\.jsonl:1: the response is empty"):
        attribute(config)


def test_an_output_that_exists_is_refused(config: AttributionConfig) -> None:
    Path(config.output).mkdir()
    with pytest.raises(RunError, match="exists already"):
        attribute(config)


@pytest.mark.parametrize("name", ["top_k", "top", "chunk_rows"])
def test_limits(config: AttributionConfig, name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name}: 0; expected at least 1"):
        wrong: dict[str, Any] = {name: 0}
        replace(config, **wrong)
