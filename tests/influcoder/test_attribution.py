from __future__ import annotations

import json
import shutil
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
from influcoder.attribution import AttributionConfig, attribute, attribute_shards, begin, make_ranking
from influcoder.embed_batch import embed_batch
from influcoder.errors import ConfigError, DataError, RunError
from influcoder.examples import Example, Turn
from influcoder.index import open_index
from influcoder.index_search import search
from influcoder.onnx_encoder import OnnxEncoder
from influcoder.pool import PoolRow, in_shards
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


def rank(
    encoder: OnnxEncoder, rows: Sequence[Example], queries: Sequence[Example], folder: Path, *, shard_rows: int, top_k: int = 100
) -> None:
    ranking = make_ranking(encoder, queries, top_k=top_k, top=5, chunk_rows=64)
    begin(folder, {})
    attribute_shards(folder, in_shards((PoolRow(row, None) for row in rows), shard_rows), ranking)


def read_top(folder: Path, side: str = "top") -> dict[str, list[Any]]:
    table = pq.read_table(folder / "topk.parquet").to_pydict()
    chosen = [place for place, value in enumerate(table["side"]) if value == side]
    return {name: [values[place] for place in chosen] for name, values in table.items()}


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

    top = read_top(Path(config.output))
    assert top["query_id"] == [f"q{query}" for query in range(6) for _ in range(7)]
    assert top["rank"] == list(range(1, 8)) * 6
    np.testing.assert_allclose(np.reshape(top["score"], (6, 7)), -np.sort(-scores, axis=1)[:, :7], atol=1e-5)
    places = [int(row.removeprefix("r")) for row in top["id"]]
    np.testing.assert_allclose(scores[np.repeat(np.arange(6), 7), places], top["score"], atol=1e-5)
    assert top["contributor"] == [f"c{place % 3}" for place in places]
    bottom = read_top(Path(config.output), "bottom")
    np.testing.assert_allclose(np.reshape(bottom["score"], (6, 7)), np.sort(scores)[:, :7], atol=1e-5)
    assert bottom["rank"] == list(range(1, 8)) * 6
    assert (Path(config.output) / "rejected.jsonl").read_text() == ""
    longer = sum(bool(encoding.overflowing) for encoding in encoder.tokenize([render(row, encoder.text_format) for row in rows]))
    assert longer > 0 and facts["truncated_share"] == longer / 200


def test_ties_keep_the_row_order_across_shards(exported_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = OnnxEncoder(exported_folder)
    embed = encoder.embed

    def embed_coarsely(encodings: Sequence[Encoding]) -> NDArray[np.float32]:
        return (np.round(embed(encodings) * 4) / 4).astype(np.float32)  # sixteenths add up exactly, and many rows tie

    monkeypatch.setattr(encoder, "embed", embed_coarsely)
    rows, queries = as_examples(make_rows(150, seed=0)), as_examples(make_rows(3, seed=1))
    vectors = encoder.encode([render(row, encoder.text_format) for row in rows])
    scores = encoder.encode([render(query, encoder.text_format) for query in queries]) @ vectors.T
    best = np.argsort(-scores, axis=1, kind="stable")[:, :40]
    worst = np.argsort(scores, axis=1, kind="stable")[:, :40]
    assert any(len(np.unique(scores[query][best[query]])) < 40 for query in range(3)), "no ties: the test would show nothing"
    for shard_rows in (1, 7, 1000):
        folder = tmp_path / str(shard_rows)
        rank(encoder, rows, queries, folder, shard_rows=shard_rows, top_k=40)
        assert read_top(folder)["id"] == [f"r{row}" for row in best.ravel()]
        assert read_top(folder, "bottom")["id"] == [f"r{row}" for row in worst.ravel()]


@pytest.mark.parametrize("sides", [("above",), ("below",), ("above", "below")])
def test_rows_are_kept_and_removed_by_their_score_as_they_were_read(
    sides: tuple[str, ...], config: AttributionConfig, tmp_path: Path
) -> None:
    records = [row | {"label": {"nested": [row["id"], None]}, "text": "Tür"} for row in make_rows(200, seed=0)]
    records[9] = {"id": "r9", "prompt": "p"}
    write_jsonl(tmp_path / "pool.jsonl", records)
    attribute(config)
    scores = {row["id"]: row["score"] for row in pq.read_table(Path(config.output) / "rows.parquet").to_pylist()}
    ordered = sorted(scores.values())
    above, below = ((ordered[place] + ordered[place + 1]) / 2 if side in sides else None for side, place in (("above", 60), ("below", 140)))
    facts = attribute(replace(config, keep_above=above, keep_below=below, shard_rows=64, output=f"{config.output}-2"))
    inside = {name for name, score in scores.items() if (above is None or score > above) and (below is None or score < below)}
    assert 70 < len(inside) < 145
    for name, wanted in (("kept", inside), ("removed", scores.keys() - inside)):
        lines = (Path(f"{config.output}-2") / f"{name}.jsonl").read_text().splitlines()
        assert [json.loads(line) for line in lines] == [row for row in records if row["id"] in wanted]
        assert facts["counts"][name] == len(lines)


def test_a_run_leaves_an_index_that_answers_alike(config: AttributionConfig) -> None:
    attribute(replace(config, shard_rows=64))
    encoder = OnnxEncoder(config.encoder)
    index = open_index(Path(config.output) / "index", encoder)
    assert index.manifest.shard_rows == (64, 64, 64, 8)
    queries = encoder.encode([render(query, encoder.text_format) for query in as_examples(make_rows(6, seed=1))])
    found = search(index, queries, 7)
    for side, scores, rows in (("top", found.top_scores, found.top_rows), ("bottom", found.bottom_scores, found.bottom_rows)):
        expected = read_top(Path(config.output), side)
        np.testing.assert_allclose(scores.ravel(), expected["score"], atol=0.02)
        assert np.mean([a == b for a, b in zip(index.look_up(rows)["id"].to_pylist(), expected["id"], strict=True)]) > 0.6
    table = pq.read_table(Path(config.output) / "rows.parquet")
    assert index.look_up(np.arange(200)).to_pydict() == table.select(["id", "contributor"]).to_pydict()


def test_a_run_says_what_to_expect_and_what_it_lost(config: AttributionConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "broken.parquet").write_bytes(b"PAR1")
    paths = (config.pool.paths[0], str(tmp_path / "broken.parquet"))
    facts = attribute(replace(config, pool=replace(config.pool, paths=paths[:1]), shard_rows=100))
    assert facts["estimate"].keys() == {"rows", "rows_per_second", "seconds", "bytes"}
    assert facts["estimate"]["rows"] == 200 and facts["estimate"]["bytes"] > 200 * 32
    assert "about 200 rows at" in capsys.readouterr().err
    facts = attribute(replace(config, pool=replace(config.pool, paths=paths), output=f"{config.output}-2"))
    assert facts["counts"] == {"rows": 200, "rejected": 1, "queries": 6, "broken_files": 1} and facts["estimate"] is None
    (line,) = (Path(f"{config.output}-2") / "rejected.jsonl").read_text().splitlines()
    assert json.loads(line)["rest_of_file"] and json.loads(line)["where"] == paths[1]


def test_a_batch_is_columns_in_and_columns_out(exported_folder: Path) -> None:
    encoder = OnnxEncoder(exported_folder)
    texts = np.array(["river bread", "tea " * 80, "music"], object)
    made = embed_batch(encoder, {"text": texts, "id": np.array([3, 1, 2])})
    assert made.keys() == {"id", "embedding", "truncated"} and made["id"].tolist() == [3, 1, 2]
    np.testing.assert_array_equal(made["embedding"], encoder.encode(list(texts)))
    assert made["truncated"].tolist() == [False, True, False]


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
    assert run["counts"] == {"rows": 196, "rejected": 4, "queries": 6, "broken_files": 0}
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

    def rows() -> Iterator[PoolRow]:
        nonlocal drawn
        for row in as_examples(make_rows(100, seed=0)):
            drawn += 1
            yield PoolRow(row, None)

    def watched() -> Iterator[list[PoolRow]]:
        for shard in in_shards(rows(), 10):
            seen.append(drawn)
            yield shard

    begin(tmp_path, {})
    attribute_shards(tmp_path, watched(), make_ranking(encoder, as_examples(make_rows(2, seed=1)), top_k=5, top=5, chunk_rows=4))
    assert seen == list(range(10, 101, 10))


def test_fewer_rows_than_top_k_and_no_contributor(config: AttributionConfig) -> None:
    attribute(replace(config, pool=replace(config.pool, limit=4, columns=Columns())))
    top = read_top(Path(config.output))
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


@pytest.mark.parametrize("name", ["top_k", "top", "shard_rows", "chunk_rows"])
def test_limits(config: AttributionConfig, name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name}: 0; expected at least 1"):
        wrong: dict[str, Any] = {name: 0}
        replace(config, **wrong)


def test_a_threshold_that_keeps_nothing_is_refused(config: AttributionConfig) -> None:
    with pytest.raises(ConfigError, match=r"keep_above: 0\.5; expected less than keep_below, 0\.5"):
        replace(config, keep_above=0.5, keep_below=0.5)


def test_a_student_of_f_influence_says_which_rows_it_can_tell_from_none(config: AttributionConfig, tmp_path: Path) -> None:
    encoder = Path(shutil.copytree(config.encoder, tmp_path / "encoder"))
    (encoder / "fidelity.json").write_text(json.dumps({"validation": {"mu": {"slope": 4.0, "intercept": -1.0, "deviation": 1.4}}}))
    attribute(config)
    plain = pq.read_table(tmp_path / "run" / "topk.parquet")
    assert not {"mu", "mu_lower", "mu_upper", "distinguishable"} & set(plain.column_names)
    attribute(replace(config, encoder=str(encoder), output=str(tmp_path / "told")))
    found = pq.read_table(tmp_path / "told" / "topk.parquet")
    assert found.select(plain.column_names).equals(plain)
    mu = 4.0 * plain["score"].to_numpy().astype(np.float64) - 1.0
    np.testing.assert_allclose(found["mu"].to_numpy(), mu)
    np.testing.assert_allclose(found["mu_upper"].to_numpy() - found["mu_lower"].to_numpy(), 2 * 1.959964 * 1.4, rtol=1e-6)
    assert found["distinguishable"].to_pylist() == [bool(abs(value) > 1.959964 * 1.4) for value in mu]
    assert 0 < sum(found["distinguishable"].to_pylist()) < len(mu)
