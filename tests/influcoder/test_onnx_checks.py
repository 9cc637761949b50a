"""Graphs that name other files, lie about lengths, or want operators of their own are refused before any runtime sees them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from influcoder.errors import RunError
from influcoder.onnx_checks import check_graph
from influcoder.onnx_encoder import OnnxEncoder
from influcoder.onnx_settings import load_settings, save_settings
from influcoder.runs import sha256_of_file


def external_tensor(name: str = "w") -> TensorProto:
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "../../../etc/passwd"
    return tensor


def unmarked_tensor() -> TensorProto:
    """Names another file without the mark that says so."""
    tensor = external_tensor()
    tensor.ClearField("data_location")
    return tensor


def constant(tensor: TensorProto) -> onnx.NodeProto:
    return helper.make_node("Constant", [], ["c"], value=tensor)


def nested(tensor: TensorProto, depth: int) -> onnx.NodeProto:
    """A constant inside `depth` branches of If."""
    node = constant(tensor)
    for _ in range(depth):
        graph = helper.make_graph([node], "inner", [], [])
        node = helper.make_node("If", ["x"], ["y"], then_branch=graph, else_branch=graph)
    return node


def make_model(
    nodes: list[onnx.NodeProto] | None = None, tensors: list[TensorProto] | None = None, opsets: list[tuple[str, int]] | None = None
) -> onnx.ModelProto:
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    graph = helper.make_graph(nodes or [helper.make_node("Identity", ["x"], ["y"])], "g", [value], [value], initializer=tensors or [])
    imports = [helper.make_opsetid(domain, version) for domain, version in (opsets if opsets is not None else [("", 20)])]
    return helper.make_model(graph, opset_imports=imports)


def in_a_function() -> onnx.ModelProto:
    model = make_model()
    model.functions.append(
        helper.make_function("com.microsoft", "f", [], ["c"], [constant(external_tensor())], [helper.make_opsetid("", 20)])
    )
    return model


def in_a_sparse_tensor() -> onnx.ModelProto:
    model = make_model()
    model.graph.sparse_initializer.append(onnx.SparseTensorProto(values=external_tensor(), dims=[1]))
    return model


def in_training() -> onnx.ModelProto:
    model = make_model()
    model.training_info.append(onnx.TrainingInfoProto(algorithm=helper.make_graph([], "a", [], [], initializer=[external_tensor()])))
    return model


REFUSED: dict[str, tuple[Callable[[], onnx.ModelProto], str]] = {
    "weights": (lambda: make_model(tensors=[external_tensor()]), "lies in another file"),
    "weights, unmarked": (lambda: make_model(tensors=[unmarked_tensor()]), "lies in another file"),
    "constant": (lambda: make_model([constant(external_tensor())]), "lies in another file"),
    "branch": (lambda: make_model([nested(external_tensor(), 3)]), "lies in another file"),
    "function": (in_a_function, "lies in another file"),
    "sparse": (in_a_sparse_tensor, "lies in another file"),
    "training": (in_training, "lies in another file"),
    "own operators": (lambda: make_model(opsets=[("", 20), ("evil.ops", 1)]), r"wants operators of 'evil\.ops'"),
    "old opset": (lambda: make_model(opsets=[("", 9)]), "opset 9; expected 17 to 24"),
    "new opset": (lambda: make_model(opsets=[("", 99)]), "opset 99; expected 17 to 24"),
    "no opset": (lambda: make_model(opsets=[]), "names no operator set"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_hostile_graph_is_refused(name: str, tmp_path: Path) -> None:
    make, message = REFUSED[name]
    (tmp_path / "model.onnx").write_bytes(make().SerializeToString())
    with pytest.raises(RunError, match=rf"model\.onnx: .*{message}.*do not run this one"):
        check_graph(tmp_path / "model.onnx")


@pytest.mark.parametrize("cut", [1, 5, 40])
def test_a_length_past_the_end_is_refused(cut: int, tmp_path: Path) -> None:
    whole = make_model(tensors=[onnx.numpy_helper.from_array(np.ones(64, np.float32), "w")]).SerializeToString()
    (tmp_path / "model.onnx").write_bytes(whole[:-cut])
    with pytest.raises(RunError, match="a length in it goes past its end"):
        check_graph(tmp_path / "model.onnx")


@pytest.mark.parametrize("content", [b"\x3a\xff\xff\xff\xff\x7f", b"\xff" * 200, b"\x0b\x00", b'{"a": 1}' * 40, b"PK\x03\x04" + b"\0" * 50])
def test_what_is_no_graph_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(content)
    with pytest.raises(RunError, match="no ONNX graph"):
        check_graph(tmp_path / "model.onnx")


def test_an_empty_file_and_one_that_is_too_large_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.touch()
    with pytest.raises(RunError, match="0 bytes; expected more than none and less than 2 GiB"):
        check_graph(path)
    with path.open("r+b") as stream:
        stream.truncate(2 << 30)  # a hole: it takes no room on the disk
    with pytest.raises(RunError, match="2,147,483,648 bytes; expected"):
        check_graph(path)


def test_graphs_nested_without_end_are_refused(tmp_path: Path) -> None:
    content = b""
    for _ in range(2000):  # graph > node > attribute > graph, by hand: onnx itself gives up earlier
        for number in (6, 5, 1):
            content = bytes([number << 3 | 2]) + length_of(content) + content
    (tmp_path / "model.onnx").write_bytes(bytes([7 << 3 | 2]) + length_of(content) + content)
    with pytest.raises(RunError, match="no ONNX graph"):
        check_graph(tmp_path / "model.onnx")


def length_of(content: bytes) -> bytes:
    value, found = len(content), b""
    while value > 127:
        found, value = found + bytes([value & 127 | 128]), value >> 7
    return found + bytes([value])


def test_what_influcoder_wrote_is_accepted(exported_folder: Path, tmp_path: Path) -> None:
    check_graph(exported_folder / "onnx" / "model.onnx")
    (tmp_path / "model.onnx").write_bytes(make_model(opsets=[("", 20), ("com.microsoft", 1)]).SerializeToString())
    check_graph(tmp_path / "model.onnx")


def test_an_encoder_whose_record_fits_its_hostile_graph_is_refused(exported_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(exported_folder, tmp_path / "encoder"))
    graph = folder / "onnx" / "model.onnx"
    model = onnx.load(graph)
    model.graph.initializer.append(external_tensor("unused"))
    graph.write_bytes(model.SerializeToString())
    save_settings(folder / "onnx", replace(load_settings(folder), sha256=sha256_of_file(graph)))
    with pytest.raises(RunError, match="lies in another file"):
        OnnxEncoder(folder)
