from __future__ import annotations

import json
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from influcoder.array_files import read_ids, read_matrix
from influcoder.errors import DataError
from influcoder.foreign import ForeignFeatures, ForeignScores, factorise, read_bergson, read_kronfluence
from tests.influcoder.foreign_sources import f32, write_bergson, write_data, write_safetensors

ROWS = [[1.0, -2.0, 0.5], [0.25, 3.0, -1.5], [4.0, 0.0, 8.0]]
IDS = ["c", "a", "b"]


def test_an_index_is_read_with_its_ids(tmp_path: Path) -> None:
    # modules not in the order of their names: the columns stand as they are listed
    found = read_bergson(write_bergson(tmp_path / "index", ROWS, sizes={"layers.9.up": 2, "layers.10.up": 1}, ids=IDS))
    assert found.ids == ("c", "a", "b") and found.vectors.dtype == np.float32
    assert found.vectors.tolist() == ROWS
    assert found.of(["b", "c"]).tolist() == [ROWS[2], ROWS[0]]


@pytest.mark.parametrize(
    ("kind", "payload"),
    [
        ("bfloat16", bytes.fromhex("803f00c0003f803e4040c0bf804000000041")),  # the upper half of each float32
        ("float16", struct.pack("<9e", *ROWS[0], *ROWS[1], *ROWS[2])),
        ("float64", struct.pack("<9d", *ROWS[0], *ROWS[1], *ROWS[2])),
    ],
)
def test_every_type_of_number_is_read(tmp_path: Path, kind: str, payload: bytes) -> None:
    found = read_bergson(write_bergson(tmp_path / "index", ROWS, payload=payload, base_dtype=kind), ids=IDS)
    assert found.vectors.dtype == np.float32 and found.vectors.tolist() == ROWS


def test_only_indexes_of_the_same_modules_and_projection_share_a_space(tmp_path: Path) -> None:
    first, same, other, seeded = (
        write_bergson(tmp_path / name, ROWS, sizes=sizes)
        for name, sizes in (
            ("first", {"q": 1, "k": 2}),
            ("same", {"q": 1, "k": 2}),
            ("other", {"k": 2, "q": 1}),
            ("seeded", {"q": 1, "k": 2}),
        )
    )
    (seeded / "processor_config.yaml").write_text("projection_seed: 3\n")
    spaces = [read_bergson(index, ids=IDS).space for index in (first, same, other, seeded)]
    assert spaces[0] == spaces[1] and spaces[0] != spaces[2] and spaces[0] != spaces[3]


def break_unfinished(index: Path) -> None:
    index.rename(index.with_name("index.part"))


def break_stream(index: Path) -> None:
    (index / "data.hf" / "first-by-name.arrow").write_bytes(b"not arrow")


def break_order(index: Path) -> None:
    write_data(index / "data.hf", {"id": IDS}, _indices_files=[{"filename": "indices.arrow"}])


def aggregate(index: Path) -> None:
    write_data(index / "data.hf", {"query_index": [0, 1, 2]})


def truncate(index: Path) -> None:
    (index / "gradients.bin").write_bytes((index / "gradients.bin").read_bytes()[:-4])


@pytest.mark.parametrize(
    ("settings", "damage", "message"),
    [
        ({"attribute_tokens": True, "num_grads": 12}, None, r"index: 12 gradients of tokens; expected one .* a row; build .*without --attribute_tokens"),
        ({"base_dtype": "int4"}, None, r"info\.json: base_dtype 'int4'; expected one of float64, float32, float16, bfloat16; choose"),
        ({"base_dtype": None}, None, r"info\.json: not as Bergson 2\.5 writes it \(KeyError\('base_dtype'\)\); build the index with that release"),
        ({"ids": None}, None, r"data\.hf: no column 'id', it has length, loss; expected ids; build the index with --drop_columns false, or give"),
        ({"ids": [*IDS[:2], "c"]}, None, r"gradients\.bin: id 'c' stands twice among its rows; expected every id once"),
        ({}, break_unfinished, r"index: an unfinished index \(\.part\); expected a complete one; let `bergson build` finish"),
        ({}, truncate, r"gradients\.bin: 32 bytes; expected 36, 3 rows of 3 float32; the index is damaged"),
        ({}, lambda index: (index / "gradients.bin").unlink(), r"gradients\.bin: 0 bytes; expected 36"),
        ({}, lambda index: (index / "info.json").unlink(), r"info\.json: cannot be read as JSON \(.*No such file"),
        ({}, aggregate, r"index: one gradient of all rows; expected one a row; build it with --aggregation none"),
        ({}, break_order, r"data\.hf: its rows are a selection of its files; expected all in order"),
        ({}, break_stream, r"first-by-name\.arrow: cannot be read as an Arrow stream"),
        ({}, lambda index: write_data(index / "data.hf", {"id": IDS[:2]}), r"gradients\.bin: 3 rows, but 2 ids; expected one each"),
    ],
)  # fmt: skip
def test_what_is_no_index_of_rows_is_refused(
    tmp_path: Path, settings: dict[str, Any], damage: Callable[[Path], Any] | None, message: str
) -> None:
    index = write_bergson(tmp_path / "index", ROWS, **({"ids": IDS} | settings))
    if damage is not None:
        damage(index)
    with pytest.raises(DataError, match=message) as caught:
        read_bergson(index)
    assert "\n" not in str(caught.value)


def test_an_aggregated_index_is_refused_with_given_ids_too(tmp_path: Path) -> None:
    index = write_bergson(tmp_path / "index", ROWS)
    write_data(index / "data.hf", {"query_index": [0]})
    with pytest.raises(DataError, match="one gradient of all rows"):
        read_bergson(index, ids=IDS)


@pytest.mark.parametrize(
    ("value", "wanted", "message"),
    [
        (0.0, ["a"], r"here: the features of 'a' have length 0\.0 \(1 such rows\); expected finite .*; drop the row \(Bergson leaves"),
        (np.inf, ["a"], r"here: the features of 'a' have length inf"),
        (np.nan, ["b", "a"], r"here: the features of 'a' have length nan"),
        (0.0, ["b", "d", "e"], r"here: no 'd' in it \(2 of 3 rows are missing, its own ids begin with 'a'\); expected all; attribute them"),
    ],
)
def test_rows_that_say_nothing_are_refused_by_name(value: float, wanted: list[str], message: str) -> None:
    vectors = np.array([[value, value], [3, 4]], np.float32)
    features = ForeignFeatures(files=(Path("here"),), ids=("a", "b"), vectors=vectors)
    assert features.of(["b"]).tolist() == [[3, 4]]  # what is not asked for may be bad
    with pytest.raises(DataError, match=message):
        features.of(wanted)


def test_scores_are_aligned_on_both_sides() -> None:
    values = np.array([[1, 0, -3], [4, 0, 6]], np.float32)
    scores = ForeignScores(files=(Path("here"),), query_ids=("q", "p"), row_ids=("a", "b", "c"), values=values)
    assert scores.of(["p", "q"], ["c", "a"]).tolist() == [[6, 4], [-3, 1]]
    for queries, rows, message in (
        (["q"], ["b", "a"], "the scores of 'b' have length 0"),
        (["q", "r"], ["a"], "no 'r' in it .1 of 2 queries"),
    ):
        with pytest.raises(DataError, match=message):
            scores.of(queries, rows)
    with pytest.raises(DataError, match="here: 3 rows, but 2 ids"):
        ForeignScores(files=(Path("here"),), query_ids=("q", "p"), row_ids=("a", "b"), values=values)
    with pytest.raises(DataError, match="here: 2 queries, but 1 ids"):
        ForeignScores(files=(Path("here"),), query_ids=("q",), row_ids=("a", "b", "c"), values=values)


SCORES = [[1.0, -2.0, 3.0], [0.5, 0.25, -4.0]]


def partition(folder: Path, data: int, module: int) -> Path:
    return folder / f"pairwise_scores_data_partition{data}_module_partition{module}.safetensors"


def test_kronfluence_scores_are_read_from_folder_or_file(tmp_path: Path) -> None:
    file = write_safetensors(tmp_path / "pairwise_scores.safetensors", {"all_modules": f32(SCORES)})
    for path in (tmp_path, file):
        values, files = read_kronfluence(path)
        assert (values.tolist(), files) == (SCORES, (file,)) and values.dtype == np.float32


def test_scores_by_module_are_summed_and_bfloat16_is_read(tmp_path: Path) -> None:
    half = ("BF16", [2, 3], bytes.fromhex("003f80bfc03f803e003e00c0"))  # SCORES / 2, the upper half of each float32
    write_safetensors(tmp_path / "pairwise_scores.safetensors", {"layers.0": half, "layers.1": half})
    assert read_kronfluence(tmp_path)[0].tolist() == SCORES


@pytest.mark.parametrize("names", [("data_partitions", "module_partitions"), ("data_partition_size", "module_partition_size")])
def test_partitions_are_summed_over_modules_and_joined_over_data(tmp_path: Path, names: tuple[str, str]) -> None:
    (tmp_path / "score_arguments.json").write_text(json.dumps(dict(zip(names, (2, 3), strict=True))))
    columns = [[[1.0, -2.0], [0.5, 0.25]], [[3.0], [-4.0]]]
    for data, whole in enumerate(columns):
        for module, share in enumerate((0.25, 0.25, 0.5)):
            write_safetensors(partition(tmp_path, data, module), {"all_modules": f32([[share * value for value in row] for row in whole])})
    values, files = read_kronfluence(tmp_path)
    assert values.tolist() == SCORES and len(files) == 6
    partition(tmp_path, 1, 2).unlink()
    with pytest.raises(
        DataError, match=r"partition1_module_partition2\.safetensors: missing \(1 of 6 score files are\); expected all; let Kron"
    ):
        read_kronfluence(tmp_path)
    write_safetensors(partition(tmp_path, 1, 2), {"all_modules": f32([[1.0]])})
    with pytest.raises(DataError, match=r"all_modules has shape \(1, 1\), the modules before it \(2, 1\)"):
        read_kronfluence(tmp_path)
    for module in range(3):
        write_safetensors(partition(tmp_path, 1, module), {"all_modules": f32([[1.0]])})
    with pytest.raises(DataError, match="data partitions of 2, 1 queries; expected the same"):
        read_kronfluence(tmp_path)


def test_what_are_no_pairwise_scores_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"score_arguments\.json: cannot be read as JSON"):
        read_kronfluence(tmp_path)
    with pytest.raises(DataError, match=r"scores\.safetensors: missing \(1 of 1 score files are\)"):
        read_kronfluence(tmp_path / "scores.safetensors")
    file = write_safetensors(tmp_path / "pairwise_scores.safetensors", {"all_modules": ("F32", [1, 2, 2], struct.pack("<4f", 1, 2, 3, 4))})
    with pytest.raises(DataError, match=r"all_modules \(three axes are scores of tokens\) has shape \(1, 2, 2\) .*expected a matrix"):
        read_kronfluence(tmp_path)
    write_safetensors(file, {})
    with pytest.raises(DataError, match="no scores in it; expected 'all_modules' or one tensor a module"):
        read_kronfluence(tmp_path)
    file.write_bytes(b"\0" * 20)
    with pytest.raises(DataError, match="cannot be read as safetensors"):
        read_kronfluence(tmp_path)


def test_matrices_are_read_from_npy_and_safetensors(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array(ROWS))
    (tmp_path / "b.npy").write_bytes(b"\x93NUMPY\x01\x00\x46\x00" + b"{'descr': '<f2', 'fortran_order': True, 'shape': (2, 2)}".ljust(69) + b"\n"
                                     + struct.pack("<4e", 1, 2, 3, 4))  # fmt: skip
    one = write_safetensors(tmp_path / "one.safetensors", {"x": f32(ROWS)})
    two = write_safetensors(tmp_path / "two.safetensors", {"x": f32(SCORES), "y": f32(ROWS)})
    for found in (read_matrix(tmp_path / "a.npy"), read_matrix(one), read_matrix(two, "y")):
        assert found.dtype == np.float32 and found.tolist() == ROWS
    assert read_matrix(tmp_path / "b.npy").tolist() == [[1, 3], [2, 4]]
    np.save(tmp_path / "line.npy", np.ones(3))
    np.save(tmp_path / "whole.npy", np.ones((3, 2), int))
    (tmp_path / "pickled.npy").write_bytes(pickle.dumps([1.0]))
    np.save(tmp_path / "objects.npy", np.array([[{}]], dtype=object), allow_pickle=True)
    integers = write_safetensors(tmp_path / "integers.safetensors", {"x": ("I32", [1, 1], b"\0" * 4)})
    for path, key, message in (
        (two, None, r"no tensor None; it has x, y; set `key` to one of those"),
        (one, "y", r"no tensor 'y'; it has x; set `key`"),
        (integers, None, r"x is of type I32; expected one of F64, F32, F16, BF16; convert it"),
        (tmp_path / "line.npy", None, r"line\.npy: the array has shape \(3,\) and type float64; expected a matrix of floats"),
        (tmp_path / "whole.npy", None, r"has shape \(3, 2\) and type int64; expected a matrix of floats"),
        (tmp_path / "pickled.npy", None, r"cannot be read \(.*allow_pickle"),
        (tmp_path / "objects.npy", None, r"cannot be read \(Object arrays"),
        (tmp_path / "none.npy", None, r"none\.npy: cannot be read \(.*No such file"),
        (tmp_path / "a.pt", None, r"a\.pt: unknown kind of array; expected \.npy or \.safetensors"),
    ):
        with pytest.raises(DataError, match=message) as caught:
            read_matrix(path, key)
        assert "\n" not in str(caught.value)


def test_ids_are_read_from_every_kind_of_file(tmp_path: Path) -> None:
    expected = ("r1", "7", "ü x")
    (tmp_path / "ids.txt").write_text("r1\n7\nü x\n", encoding="utf-8")
    (tmp_path / "ids.json").write_text('["r1", 7, "ü x"]', encoding="utf-8")
    (tmp_path / "ids.jsonl").write_text('{"name": "r1"}\n{"name": 7}\n{"name": "ü x"}\n', encoding="utf-8")
    (tmp_path / "ids.csv").write_text("name,n\nr1,1\n7,2\nü x,3\n", encoding="utf-8")
    pq.write_table(pa.table({"name": list(expected)}), tmp_path / "ids.parquet")
    for kind in ("txt", "json", "jsonl", "csv", "parquet"):
        assert read_ids(tmp_path / f"ids.{kind}", "name") == expected, kind
    (tmp_path / "gap.txt").write_text("a\n\nb\n")
    (tmp_path / "bad.json").write_text('{"a": 1}')
    (tmp_path / "bad.jsonl").write_text("nothing\n")
    for name, message in (
        ("gap.txt", r"gap\.txt: no id in place 2 of 3; expected one a row"),
        ("bad.json", r"bad\.json: a JSON dict; expected a list of ids"),
        ("bad.jsonl", r"bad\.jsonl:1: not JSON"),
        ("none.txt", r"none\.txt: cannot be read"),
        ("ids.csv", r"ids\.csv: row 1: no column 'id'; it has 'name', 'n'; set `id_column` to the one that holds ids"),
        ("ids.dat", r"ids\.dat: no such file or folder"),
    ):
        with pytest.raises(DataError, match=message):
            read_ids(tmp_path / name, "id")


@pytest.mark.parametrize(("shape", "rank"), [((4, 9), 4), ((9, 4), 4), ((5, 7), 2), ((1, 3), 1)])
def test_factors_multiply_to_the_scores_and_share_their_size(shape: tuple[int, int], rank: int) -> None:
    random = np.random.default_rng(0)
    scores = (1e3 * random.normal(size=(shape[0], rank)) @ random.normal(size=(rank, shape[1]))).astype(np.float32)
    queries, rows = factorise(scores)
    assert queries.shape == (shape[0], min(shape)) and rows.shape == (shape[1], min(shape))
    np.testing.assert_allclose(queries @ rows.T, scores, atol=2e-6 * np.abs(scores).max())
    np.testing.assert_allclose(np.linalg.norm(queries, axis=0), np.linalg.norm(rows, axis=0), rtol=1e-4, atol=1e-2)
