from __future__ import annotations

import errno
import json
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import save_file

import influcoder.features
from influcoder.errors import RunError
from influcoder.features import (
    Manifest,
    create_store,
    has_shard,
    load_features,
    load_row_vectors,
    load_shard,
    read_manifest,
    remove_store,
    write_shard,
)
from influcoder.runs import sha256_of_file

MANIFEST = Manifest(
    ids=tuple(f"row-{row}" for row in range(10)),
    dim=32,
    shard_rows=4,
    method="influcoder",
    seed=3,
    rows_fingerprint="abc",
    decoder_fingerprint="def",
)


@pytest.fixture
def gradients() -> NDArray[np.float32]:
    scale = np.logspace(-6, 4, 10, dtype=np.float32)[:, None]  # lengths from tiny to large
    return (np.random.default_rng(0).normal(size=(10, 32)) * scale).astype(np.float32)


def write_store(folder: Path, manifest: Manifest, gradients: NDArray[np.float32]) -> None:
    create_store(folder, manifest)
    for shard in range(manifest.num_shards):
        write_shard(folder, shard, gradients[manifest.rows_of(shard)])


@pytest.fixture
def store(tmp_path: Path, gradients: NDArray[np.float32]) -> Path:
    write_store(tmp_path / "store", MANIFEST, gradients)
    return tmp_path / "store"


def refusal(folder: Path) -> str:
    with pytest.raises(RunError) as caught:
        load_features(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_features_come_back_as_unit_vectors_and_lengths(store: Path, gradients: NDArray[np.float32]) -> None:
    found = load_features(store)
    norms = np.linalg.norm(gradients, axis=1)
    assert found.manifest == MANIFEST
    np.testing.assert_allclose(found.norms, norms, rtol=1e-6)
    np.testing.assert_allclose(found.vectors, gradients / norms[:, None], atol=2**-11)  # half a step of float16 below 1
    np.testing.assert_allclose(np.linalg.norm(found.vectors, axis=1), 1, atol=1e-3)


def test_the_last_shard_may_be_shorter() -> None:
    assert [MANIFEST.rows_of(shard) for shard in range(MANIFEST.num_shards)] == [slice(0, 4), slice(4, 8), slice(8, 10)]
    assert replace(MANIFEST, shard_rows=5).num_shards == 2


def test_places_follow_the_ids_asked_for(store: Path) -> None:
    found = load_features(store)
    assert found.places(["row-7", "row-0", "row-7"]) == [7, 0, 7]
    with pytest.raises(RunError, match=r"features: no row 'x' \(2 of 3 ids are unknown\)"):
        found.places(["row-7", "x", "y"])


@pytest.mark.parametrize(
    ("normalise", "rows_have_lengths", "queries_have_lengths"),
    [("unit", False, False), ("layers", False, False), ("none", True, True), ("relatif", False, True)],
)
def test_lengths_count_on_the_sides_that_the_normalisation_says(
    normalise: str, rows_have_lengths: bool, queries_have_lengths: bool, tmp_path: Path, gradients: NDArray[np.float32]
) -> None:
    manifest = replace(MANIFEST, normalise=normalise, dtype="float32")
    write_store(tmp_path, manifest, gradients)
    found, unit = load_features(tmp_path), gradients / np.linalg.norm(gradients, axis=1, keepdims=True)
    np.testing.assert_allclose(found.as_rows, gradients if rows_have_lengths else unit, rtol=1e-5)
    np.testing.assert_allclose(found.as_queries, gradients if queries_have_lengths else unit, rtol=1e-5)


def test_a_store_of_float32_keeps_what_float16_rounds(tmp_path: Path, gradients: NDArray[np.float32]) -> None:
    errors = {}
    for dtype in ("float16", "float32"):
        manifest = replace(MANIFEST, dtype=dtype)
        write_store(tmp_path / dtype, manifest, gradients)
        vectors, norms = load_shard(tmp_path / dtype, manifest, 0)
        assert vectors.dtype == dtype and norms.dtype == np.float32
        errors[dtype] = np.abs(vectors.astype(np.float64) - gradients[:4] / np.linalg.norm(gradients[:4], axis=1, keepdims=True)).max()
    assert errors["float32"] < 1e-7 < 1e-5 < errors["float16"]


def test_rows_ask_with_the_store_beside_them(tmp_path: Path, gradients: NDArray[np.float32]) -> None:
    write_store(tmp_path / "rows", replace(MANIFEST, normalise="none"), gradients)
    manifest, asking, asked = load_row_vectors(tmp_path)
    assert manifest.normalise == "none"
    np.testing.assert_array_equal(asking, asked)
    write_store(tmp_path / "rows_as_queries", MANIFEST, gradients[::-1])
    manifest, asking, asked = load_row_vectors(tmp_path)
    np.testing.assert_array_equal(asking, load_features(tmp_path / "rows_as_queries").vectors)
    np.testing.assert_array_equal(asked, load_features(tmp_path / "rows").as_rows)
    remove_store(tmp_path / "rows_as_queries")
    write_store(tmp_path / "rows_as_queries", replace(MANIFEST, rows_fingerprint="other"), gradients)
    with pytest.raises(RunError, match=r"rows_as_queries: of other rows than .*rows; expected the same"):
        load_row_vectors(tmp_path)


@pytest.mark.parametrize("shard", range(3))
def test_one_flipped_bit_anywhere_is_found_and_named(shard: int, store: Path) -> None:
    path = store / f"shard-{shard:05d}.safetensors"
    whole = path.read_bytes()
    for place in (0, 20, len(whole) // 2, len(whole) - 1):  # length, header, features, norms
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        assert refusal(store).startswith(f"{path}: checksum ")
        assert not has_shard(store, shard)
    path.write_bytes(whole)
    load_features(store)


def test_a_cut_shard_is_found_and_named(store: Path) -> None:
    path = store / "shard-00001.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    assert refusal(store).startswith(f"{path}: checksum ")


@pytest.mark.parametrize("suffix", [".json", ".safetensors"])
def test_a_shard_without_its_record_or_its_data_does_not_count(suffix: str, store: Path) -> None:
    (store / f"shard-00002{suffix}").unlink()
    assert refusal(store).startswith(f"{store / 'shard-00002.safetensors'}: missing or not committed")
    assert [has_shard(store, shard) for shard in range(3)] == [True, True, False]


@pytest.mark.parametrize("record", ["", "[]", "{}", '"x"'])
def test_a_broken_record_does_not_count(record: str, store: Path) -> None:
    (store / "shard-00000.json").write_text(record)
    assert refusal(store).startswith(f"{store / 'shard-00000.safetensors'}: missing or not committed")


def copy_shard(source: Path, target: Path) -> None:
    for suffix in (".json", ".safetensors"):
        target.with_suffix(suffix).write_bytes(source.with_suffix(suffix).read_bytes())


def test_a_shard_in_the_place_of_another_is_named(store: Path) -> None:
    copy_shard(store / "shard-00000", store / "shard-00001")
    assert refusal(store).startswith(f"{store / 'shard-00001.safetensors'}: shard 0 of store ")
    assert not has_shard(store, 1)


def test_a_shard_of_another_store_is_named(store: Path, tmp_path: Path, gradients: NDArray[np.float32]) -> None:
    """As when a folder was put together by hand: each shard is whole, of the right shape, and of other rows."""
    write_store(tmp_path / "other", replace(MANIFEST, rows_fingerprint="other"), gradients[::-1])
    copy_shard(tmp_path / "other" / "shard-00002", store / "shard-00002")
    assert re.match(rf"{store / 'shard-00002.safetensors'}: shard 2 of store \w{{16}}, expected shard 2 of \w{{16}}; ", refusal(store))


def test_a_record_of_the_checksum_alone_counts(store: Path) -> None:
    """So are those that version 0.1.0 wrote."""
    for path in store.glob("shard-*.json"):
        path.write_text(json.dumps({"sha256": json.loads(path.read_text())["sha256"]}))
    load_features(store)
    copy_shard(store / "shard-00000", store / "shard-00002")
    assert refusal(store).startswith(f"{store / 'shard-00002.safetensors'}: not a shard of 2 x 32 features (shape (4, 32))")


@pytest.mark.parametrize("tensors", [{}, {"features": np.ones((4, 32), np.float16)}])
def test_a_shard_without_its_tensors_is_named(tensors: dict[str, NDArray[np.float16]], store: Path) -> None:
    path = store / "shard-00000.safetensors"
    save_file(tensors, path)
    record = json.loads(path.with_suffix(".json").read_text())
    path.with_suffix(".json").write_text(json.dumps(record | {"sha256": sha256_of_file(path)}))
    assert refusal(store).startswith(f"{path}: not a shard of 4 x 32 features (")


def full(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def full_in_rust(_: object, path: Path) -> None:
    path.write_bytes(b"half")
    raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


@pytest.mark.parametrize(
    ("module", "name", "stand_in"),
    [
        (influcoder.features, "save_file", full_in_rust),
        (os, "fsync", full),  # of the data
        (os, "replace", full),
        (os, "fsync", None),  # of the record
    ],
)
def test_a_full_disk_leaves_nothing_half_written(
    module: Any, name: str, stand_in: Any, tmp_path: Path, gradients: NDArray[np.float32], monkeypatch: pytest.MonkeyPatch
) -> None:
    create_store(tmp_path, MANIFEST)
    write_shard(tmp_path, 0, gradients[:4])
    if stand_in is None:
        synced: list[int] = []

        def full_at_second(descriptor: int) -> None:
            synced.append(descriptor)
            if len(synced) == 2:
                full()

        stand_in = full_at_second
    monkeypatch.setattr(module, name, stand_in)
    with pytest.raises(
        RunError, match=r"shard-00001.safetensors: cannot be written .*No space left on device.*; the shards before it are kept"
    ):
        write_shard(tmp_path, 1, gradients[4:8])
    monkeypatch.undo()
    assert not list(tmp_path.glob(".*"))
    assert [has_shard(tmp_path, shard) for shard in range(3)] == [True, False, False]
    for shard in (1, 2):
        write_shard(tmp_path, shard, gradients[MANIFEST.rows_of(shard)])
    load_features(tmp_path)


@pytest.mark.parametrize("content", [None, b"", b"{", b"[]", b'{"ids": ["a"]}', b"\xff\xfe"])
def test_a_missing_or_broken_manifest_is_named(content: bytes | None, store: Path) -> None:
    if content is None:
        (store / "manifest.json").unlink()
    else:
        (store / "manifest.json").write_bytes(content)
    assert refusal(store).startswith(f"{store / 'manifest.json'}: not a readable manifest of features")


def test_a_store_of_the_same_job_is_taken_up_again(store: Path) -> None:
    before = (store / "manifest.json").read_bytes()
    create_store(store, MANIFEST)
    assert (store / "manifest.json").read_bytes() == before
    assert read_manifest(store) == MANIFEST


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("normalise", "none"),
        ("dtype", "float32"),
        ("dim", 64),
        ("shard_rows", 5),
        ("method", "less"),
        ("seed", 4),
        ("rows_fingerprint", "x"),
        ("decoder_fingerprint", "x"),
    ],
)
def test_a_store_of_another_job_is_refused(name: str, value: object, store: Path) -> None:
    record = json.loads((store / "manifest.json").read_text()) | {name: value}
    (store / "manifest.json").write_text(json.dumps(record))
    with pytest.raises(RunError, match=f"{name} is {value!r}, expected {getattr(MANIFEST, name)!r}; it belongs to another job"):
        create_store(store, MANIFEST)


@pytest.mark.parametrize(("value", "length"), [(0.0, "0.0"), (float("nan"), "nan"), (float("inf"), "inf")])
def test_a_gradient_without_direction_is_named_by_its_row(
    value: float, length: str, tmp_path: Path, gradients: NDArray[np.float32]
) -> None:
    create_store(tmp_path, MANIFEST)
    bad = gradients[MANIFEST.rows_of(1)].copy()
    bad[2] = value
    with pytest.raises(RunError, match=f"row 'row-6': its gradient has length {length}; expected a positive number"):
        write_shard(tmp_path, 1, bad)
    assert not has_shard(tmp_path, 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["manifest.json"]
