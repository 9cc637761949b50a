from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import influcoder

HEAVY = ("torch", "transformers", "sentence_transformers", "lightning", "onnxruntime", "onnx", "ray")
PUBLIC = [
    "AttributionConfig",
    "Columns",
    "DataSource",
    "Example",
    "InflucoderError",
    "OnnxEncoder",
    "__version__",
    "aggregate",
    "attribute",
    "export_encoder",
    "read_examples",
    "render",
]


def loaded_after(statement: str, repository: Path) -> set[str]:
    """Run a statement in a fresh interpreter; return which heavy modules it loaded."""
    code = f"import json, sys; {statement}; print(json.dumps([name for name in {HEAVY!r} if name in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=repository, timeout=120)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout))


@pytest.mark.parametrize(
    "statement",
    [
        "import influcoder; influcoder.__version__; dir(influcoder)",
        "import influcoder.onnx_encoder, influcoder.attribution, influcoder.cli",
        "from influcoder import OnnxEncoder, attribute, read_examples, render, aggregate",
    ],
)
def test_using_an_encoder_loads_neither_torch_nor_onnxruntime(statement: str, repository: Path) -> None:
    assert loaded_after(statement, repository) == set()


def test_attribution_runs_where_torch_cannot_be_imported(exported_folder: Path, tmp_path: Path, repository: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "response": "river bread"}\n{"prompt": "b", "response": "green tea"}\n')
    code = f"""
import sys
for name in ("torch", "transformers", "sentence_transformers", "onnx"):
    sys.modules[name] = None
from influcoder import AttributionConfig, DataSource, attribute
rows = DataSource(paths=({str(tmp_path / "rows.jsonl")!r},))
config = AttributionConfig(encoder={str(exported_folder)!r}, pool=rows, queries=rows, output={str(tmp_path / "run")!r})
assert attribute(config)["counts"]["rows"] == 2
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=repository, timeout=120)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "topk.parquet").exists()


def test_the_public_names_are_exactly_these() -> None:
    assert influcoder.__all__ == PUBLIC == sorted(PUBLIC) == dir(influcoder)
    for name in PUBLIC:
        assert getattr(influcoder, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'Encoder'"):
        influcoder.Encoder  # noqa: B018


def test_every_name_comes_from_where_it_says() -> None:
    from influcoder.attribution import attribute
    from influcoder.onnx_export import export_encoder
    from influcoder.readers import read_examples

    assert (influcoder.attribute, influcoder.export_encoder, influcoder.read_examples) == (attribute, export_encoder, read_examples)
