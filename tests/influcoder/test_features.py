from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from influcoder.errors import RunError
from influcoder.features import Manifest, create_store, has_shard, load_features, read_manifest, write_shard

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


@pytest.fixture
def store(tmp_path: Path, gradients: NDArray[np.float32]) -> Path:
    create_store(tmp_path, MANIFEST)
    for shard in range(MANIFEST.num_shards):
        write_shard(tmp_path, shard, gradients[MANIFEST.rows_of(shard)])
    return tmp_path


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


def test_select_follows_the_ids_asked_for(store: Path) -> None:
    found = load_features(store)
    np.testing.assert_array_equal(found.select(["row-7", "row-0", "row-7"]), found.vectors[[7, 0, 7]])
    with pytest.raises(RunError, match=r"features: no row 'x' \(2 of 3 ids are unknown\)"):
        found.select(["row-7", "x", "y"])


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


def test_a_shard_of_another_shape_is_named(store: Path) -> None:
    """As when a folder was put together by hand: each shard is whole, but they do not belong together."""
    for suffix in (".json", ".safetensors"):
        (store / f"shard-00002{suffix}").write_bytes((store / f"shard-00000{suffix}").read_bytes())
    assert refusal(store).startswith(f"{store / 'shard-00002.safetensors'}: not a shard of 2 x 32 features")


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
    [("dim", 64), ("shard_rows", 5), ("method", "less"), ("seed", 4), ("rows_fingerprint", "x"), ("decoder_fingerprint", "x")],
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
