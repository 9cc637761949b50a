"""Rows like those of the training are seldom marked, others often; both measures against slow ways to the same numbers."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from influcoder.attribution import AttributionConfig, attribute
from influcoder.distribution import BITS, FILE_NAME, Distribution, fit_distribution, load_distribution, save_distribution
from influcoder.embed_batch import embed_rows
from influcoder.errors import RunError
from influcoder.onnx_encoder import OnnxEncoder
from influcoder.readers import DataSource
from influcoder.text_format import render
from tests.influcoder.test_attribution import WORDS, as_examples, make_rows, read_top, write_jsonl

DIM = 12
Vectors = NDArray[np.float32]
GREEK = str.maketrans("abcdefghijklmnopqrstuvwxyz", "αβγδεζηθικλμνξοπρστυφχψωϊϋ")


def make_texts(count: int, seed: int) -> list[str]:
    """Return sentences of made words, few of them frequent, short and long."""
    letters = np.random.default_rng(0).choice(list("abcdefghiklmnoprstu"), (20_000, 6))
    random = np.random.default_rng(seed)
    return [" ".join("".join(letters[word % 20_000]) for word in random.zipf(1.4, random.integers(5, 60))) for _ in range(count)]


def make_vectors(count: int, seed: int) -> Vectors:
    """Return unit vectors that are spread more in some directions than in others."""
    scales = np.linspace(2, 0.05, DIM)
    vectors = np.random.default_rng(seed).normal(size=(count, DIM)) * scales + 1
    unit: Vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    return unit


@pytest.fixture(scope="module")
def fitted() -> Distribution:
    return fit_distribution((make_vectors(2000, 0), make_texts(2000, 0)), (make_vectors(2000, 1), make_texts(2000, 1)))


def test_one_like_row_in_a_hundred_is_marked_and_most_others_are(fitted: Distribution) -> None:
    vectors, texts = make_vectors(4000, 2), make_texts(4000, 2)
    assert 0.004 < fitted.far(vectors, texts).mean() < 0.02
    assert 0.005 < fitted.far(make_vectors(2000, 1), make_texts(2000, 1)).mean() <= 0.01  # the validation rows themselves
    greek = [text.translate(GREEK) for text in texts[:300]]
    assert fitted.far(vectors[:300], greek).mean() > 0.95  # by their wording
    elsewhere = make_vectors(300, 3)[:, ::-1]
    assert fitted.far(elsewhere, texts[:300]).mean() > 0.5  # by their embedding
    assert (fitted.far(np.ascontiguousarray(elsewhere[:, :5]), texts[:300]) == fitted.far(vectors[:300], texts[:300])).mean() > 0.97


def test_the_distance_is_that_of_the_inverse_covariance(fitted: Distribution) -> None:
    training, vectors = make_vectors(2000, 0).astype(np.float64), make_vectors(20, 4)
    covariance = np.cov(training.T, bias=True)
    inverse = np.linalg.inv(covariance + 0.01 * np.trace(covariance) / DIM * np.eye(DIM))
    expected = [np.sqrt((vector - training.mean(0)) @ inverse @ (vector - training.mean(0))) for vector in vectors.astype(np.float64)]
    np.testing.assert_allclose(fitted.distances(vectors), expected, rtol=1e-4)


def test_strangeness_counts_what_no_training_row_had() -> None:
    def fours(text: str) -> list[str]:
        return [text[start : start + 4] for start in range(len(text) - 3)]

    training, validation = ["the river bread", "über 東京🚪 tea", "abc"], ["the river tea over", "bread, tea", "no"]
    found = fit_distribution((make_vectors(3, 0), training), (make_vectors(3, 1), validation))
    seen = {four for text in training for four in fours(text)}
    counts = [(sum(four not in seen for four in fours(text)), len(fours(text))) for text in validation]
    share = sum(new for new, _ in counts) / sum(total for _, total in counts)
    assert found.new_share == pytest.approx(share) and 0 < share < 1
    expected = [(new - share * total) / max(1, total) ** 0.5 for new, total in counts]
    np.testing.assert_allclose(found.strangeness(validation), expected)
    assert found.strangeness(["", "abc"]).tolist() == [0, 0]
    assert np.unpackbits(found.seen).sum() == len(seen) and len(found.seen) == BITS // 8
    assert found.strangeness(["über 東京🚪 tea"])[0] < 0 < found.strangeness(["東京🚪über, 東京"])[0]


def test_it_comes_back_from_the_disk(fitted: Distribution, tmp_path: Path) -> None:
    assert load_distribution(tmp_path) is None
    save_distribution(tmp_path, fitted)
    found, vectors, texts = load_distribution(tmp_path), make_vectors(200, 5), [*make_texts(100, 5), *["x = {1: 2}"] * 100]
    assert found is not None and found.limits == fitted.limits and found.new_share == fitted.new_share
    np.testing.assert_array_equal(found.far(vectors, texts), fitted.far(vectors, texts))
    assert [path.name for path in tmp_path.iterdir()] == [FILE_NAME]
    (tmp_path / FILE_NAME).write_bytes(b"half")
    with pytest.raises(RunError, match=r"distribution\.safetensors: not readable .* distil again, or remove it"):
        load_distribution(tmp_path)


def test_an_attribution_marks_far_rows(exported_folder: Path, tmp_path: Path) -> None:
    folder, pool = Path(shutil.copytree(exported_folder, tmp_path / "encoder")), make_rows(120, seed=0)
    for row in pool[::6]:
        row["response"] = row["response"].translate(GREEK)
    like = as_examples(make_rows(300, seed=5))
    encoder = OnnxEncoder(folder)

    def sides(rows: Sequence[object]) -> tuple[Vectors, list[str]]:
        return embed_rows(encoder, rows)[0], [render(row, encoder.text_format) for row in rows]  # type: ignore[arg-type]

    distribution = fit_distribution(sides(like[:200]), sides(like[200:]))
    queries = DataSource(paths=(write_jsonl(tmp_path / "queries.jsonl", make_rows(4, seed=1)),))
    config = AttributionConfig(
        encoder=str(folder),
        pool=DataSource(paths=(write_jsonl(tmp_path / "pool.jsonl", pool),)),
        queries=queries,
        output=str(tmp_path / "plain"),
        top_k=50,
        shard_rows=50,
        chunk_rows=20,
    )
    assert "far_share" not in attribute(config)
    save_distribution(folder, distribution)
    facts = attribute(replace(config, output=str(tmp_path / "run")))
    expected = distribution.far(*sides(as_examples(pool)))
    rows, plain = (pq.read_table(tmp_path / name / "rows.parquet") for name in ("run", "plain"))
    assert rows["far"].to_pylist() == expected.tolist() and facts["far_share"] == expected.mean()
    assert expected[::6].mean() > 0.8 and expected.reshape(-1, 6)[:, 1:].mean() < 0.1
    assert rows.drop_columns("far").equals(plain) and "far" not in plain.column_names
    for side in ("top", "bottom"):
        table = read_top(tmp_path / "run", side)
        assert table["far"] == [bool(expected[int(row_id[1:])]) for row_id in table["id"]]
        assert any(table["far"])
    assert "far" not in pq.read_schema(tmp_path / "plain" / "topk.parquet").names
    assert len(WORDS) == 10  # few words, hence few fours: what is not among them stands out
