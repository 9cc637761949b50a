from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from influcoder import index_search
from influcoder.errors import DataError, RunError
from influcoder.index import append, open_index, publish, write_shard
from influcoder.index_search import score_blocks, search, search_shards
from influcoder.quantisation import Quantised, quantise
from influcoder.text_format import TextFormat
from influcoder.top_k import TopK

DIM = 24


def fake_encoder(fingerprint: str = "f" * 64, **text_format: Any) -> Any:
    return SimpleNamespace(fingerprint=fingerprint, text_format=TextFormat(**text_format), settings=SimpleNamespace(dim=DIM))


def unit_rows(count: int, seed: int) -> NDArray[np.float32]:
    vectors = np.random.default_rng(seed).standard_normal((count, DIM)).astype(np.float32)
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)


def add(folder: Path, count: int, seed: int, encoder: Any = None) -> NDArray[np.float32]:
    vectors = unit_rows(count, seed)
    ids = [f"{seed}-{row}" for row in range(count)]
    append(folder, encoder or fake_encoder(), vectors, ids, [f"c{row % 2}" if row % 3 else None for row in range(count)])
    return vectors


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An index of two versions: 300 rows, and 250 more."""
    add(tmp_path / "index", 300, 0)
    add(tmp_path / "index", 250, 1)
    return tmp_path / "index"


def test_a_search_is_one_stable_sort_of_all_scores(folder: Path) -> None:
    index, queries = open_index(folder, fake_encoder()), unit_rows(7, 9)
    restored = np.concatenate([shard.restored() for shard in index.shards()])
    np.testing.assert_allclose(restored, np.concatenate([unit_rows(300, 0), unit_rows(250, 1)]), atol=0.01)
    scores, found = queries.astype(np.float64) @ restored.T.astype(np.float64), search(index, queries, 40)
    np.testing.assert_array_equal(found.top_rows, np.argsort(-scores, axis=1, kind="stable")[:, :40])
    np.testing.assert_array_equal(found.bottom_rows, np.argsort(scores, axis=1, kind="stable")[:, :40])
    np.testing.assert_allclose(found.top_scores, np.take_along_axis(scores, found.top_rows, axis=1), atol=1e-5)
    np.testing.assert_allclose(found.bottom_scores, np.take_along_axis(scores, found.bottom_rows, axis=1), atol=1e-5)
    table = index.look_up(found.bottom_rows[0, :3])
    ids = [f"0-{row}" for row in range(300)] + [f"1-{row}" for row in range(250)]
    assert table["id"].to_pylist() == [ids[row] for row in found.bottom_rows[0, :3]]
    assert index.look_up(np.array([[1, 0], [549, 1]]))["contributor"].to_pylist() == ["c1", None, None, "c1"]
    assert index.look_up(np.empty(0, np.int64)).num_rows == 0


@given(st.data())
def test_a_search_keeps_the_order_under_ties(data: st.DataObject) -> None:
    codes = data.draw(hnp.arrays(np.int8, st.tuples(st.integers(0, 200), st.just(2)), elements=st.integers(-2, 2)))
    queries = data.draw(hnp.arrays(np.float32, st.tuples(st.integers(1, 3), st.just(2)), elements=st.sampled_from([-1.0, 0.0, 0.5])))
    k, cuts = data.draw(st.integers(1, 30)), sorted(data.draw(st.lists(st.integers(0, len(codes)), max_size=3)))
    shards = [Quantised(part, np.full(2, 0.25, np.float32), np.array([0.5, 1], np.float32)) for part in np.split(codes, cuts)]
    found = search_shards(shards, queries, k)
    scores = queries @ (codes * 0.25 + [0.5, 1]).T  # exact in float32: quarters and halves
    for side, rows in ((-scores, found.top_rows), (scores, found.bottom_rows)):
        np.testing.assert_array_equal(rows, np.argsort(side, axis=1, kind="stable")[:, :k])


def test_blocks_are_small_and_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_search, "BLOCK_BYTES", 4 * (DIM + 3) * 100)
    shard, queries = quantise(unit_rows(250, 0)), unit_rows(3, 1)
    blocks = [block.copy() for block in score_blocks(shard, queries)]
    assert [block.shape for block in blocks] == [(3, 100), (3, 100), (3, 50)]
    np.testing.assert_allclose(np.concatenate(blocks, axis=1), queries @ shard.restored().T, atol=1e-5)


@given(st.data())
def test_merged_parts_are_the_whole(data: st.DataObject) -> None:
    scores = data.draw(hnp.arrays(np.float32, st.tuples(st.integers(1, 3), st.integers(0, 40)), elements=st.sampled_from([-1.0, 0.0, 0.5])))
    k, cuts = data.draw(st.integers(1, 12)), sorted(data.draw(st.lists(st.integers(0, scores.shape[1]), max_size=3)))
    for side, signed in (("top", -scores), ("bottom", scores)):
        whole = TopK(len(scores), k, side)  # type: ignore[arg-type]  # one of the two
        for part in np.split(scores, cuts, axis=1):
            kept = TopK(len(scores), k, side)  # type: ignore[arg-type]
            kept.add(part)
            whole.merge(kept.scores, kept.rows, part.shape[1])
        expected = np.argsort(signed, axis=1, kind="stable")[:, :k]
        np.testing.assert_array_equal(whole.rows, expected)
        np.testing.assert_array_equal(whole.scores, np.take_along_axis(scores, expected, axis=1))


def test_a_version_stays_as_it_was_when_rows_are_appended(tmp_path: Path) -> None:
    add(tmp_path, 300, 0)
    first, queries = open_index(tmp_path), unit_rows(3, 9)
    before = search(first, queries, 10).top_rows
    add(tmp_path, 250, 1)
    np.testing.assert_array_equal(search(first, queries, 10).top_rows, before)
    np.testing.assert_array_equal(search(open_index(tmp_path, version=1), queries, 10).top_rows, before)
    second = open_index(tmp_path)
    assert (second.manifest.version, second.manifest.num_rows, second.manifest.shard_rows) == (2, 550, (300, 250))


def test_an_id_is_appended_once(folder: Path) -> None:
    with pytest.raises(DataError, match=r"id '1-7' is in the index already; expected new ids"):
        append(folder, fake_encoder(), unit_rows(2, 5), ["new", "1-7"], [None, None])
    with pytest.raises(DataError, match=r"an id stands twice among the 2 rows"):
        append(folder, fake_encoder(), unit_rows(2, 5), ["new", "new"], [None, None])
    assert open_index(folder).manifest.version == 2


def test_an_append_that_was_killed_counts_for_nothing(folder: Path) -> None:
    write_shard(folder, 2, unit_rows(10, 3), [f"lost-{row}" for row in range(10)], [None] * 10)
    assert open_index(folder).manifest.num_rows == 550
    add(folder, 20, 2)
    assert open_index(folder).manifest.shard_rows == (300, 250, 20)


def test_of_two_writers_one_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_shard(folder, 2, unit_rows(10, 3), [f"mine-{row}" for row in range(10)], [None] * 10)
    monkeypatch.setattr("influcoder.index._newest", lambda folder: 1)  # what a writer saw that began before version 2
    with pytest.raises(RunError, match=r"manifest-00002\.json: written by someone else meanwhile"):
        publish(folder, fake_encoder(), 3)
    assert not list(folder.glob(".*"))


def test_another_encoder_is_refused(folder: Path) -> None:
    for foreign, message in (
        (fake_encoder("e" * 64), "made by encoder ffffffffffff, asked with eeeeeeeeeeee"),
        (fake_encoder(max_prompt_chars=5), "made text in another format"),
    ):
        with pytest.raises(RunError, match=message):
            open_index(folder, foreign)
        with pytest.raises(RunError, match=message):
            append(folder, foreign, unit_rows(1, 5), ["new"], [None])


FILES = [f"shard-0000{shard}.{name}" for shard in (0, 1) for name in ("codes.npy", "scales.npy", "ids.parquet")]


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_byte_is_refused_by_name(name: str, folder: Path) -> None:
    content = bytearray((folder / name).read_bytes())
    content[len(content) * 2 // 3] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(RunError, match=rf"{name}: checksum .* the file is corrupt"):
        open_index(folder)
    (folder / name).unlink()
    with pytest.raises(RunError, match=rf"{name}: cannot be read"):
        open_index(folder)


def test_a_shard_of_another_index_is_refused(folder: Path, tmp_path: Path) -> None:
    add(tmp_path / "other", 300, 7)
    for path in (tmp_path / "other").glob("shard-00000.*"):
        shutil.copy(path, folder / path.name)
    with pytest.raises(RunError, match=r"shard-00000\.codes\.npy: checksum"):
        open_index(folder)
    np.save(folder / "shard-00000.codes.npy", np.zeros((300, DIM + 1), np.int8))
    with pytest.raises(RunError, match=r"shard-00000\.codes\.npy: int8 \(300, 25\); expected int8 \(300, 24\)"):
        search(open_index(folder, verify=False), unit_rows(1, 0), 3)


def test_what_is_no_finished_index_is_refused(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(RunError, match="does not exist; expected an index"):
        open_index(tmp_path / "nowhere")
    write_shard(tmp_path, 0, unit_rows(3, 0), ["a", "b", "c"], [None] * 3)
    with pytest.raises(RunError, match=r"is unfinished \(no manifest\)"):
        open_index(tmp_path)
    with pytest.raises(RunError, match=r"shard-00001 is not committed"):
        publish(tmp_path, fake_encoder(), 2)
    with pytest.raises(RunError, match=r"manifest-00007\.json: not a readable manifest"):
        open_index(folder, version=7)
    path = folder / "manifest-00002.json"
    for content, message in (("{", "not a readable manifest"), (json.dumps({"schema_version": 99}), "schema 99, expected 1")):
        path.write_text(content)
        with pytest.raises(RunError, match=message):
            open_index(folder)


def test_a_row_takes_a_byte_a_dimension(tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).standard_normal((2000, 384)).astype(np.float32)
    write_shard(tmp_path, 0, vectors, [str(row) for row in range(2000)], [None] * 2000)
    size = sum(path.stat().st_size for path in tmp_path.glob("shard-*") if "ids" not in path.name)
    assert size <= 1.02 * 2000 * 384
