"""The base install works without the extras, and says so when one is needed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

NEEDS_TRAIN = {"error_pooling", "onnx_export", "onnx_variants", "sentence_encoder", "training"}
"""modules of influcoder/*.py that belong to the extra `train`; of sub-packages, contributions is looked at, and what of serving needs no server"""

NOT_IN_BASE = (
    "bm25s",
    "cryptography",
    "datasets",
    "datasketch",
    "fastapi",
    "lightning",
    "matplotlib",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "openvino",
    "pandas",
    "peft",
    "prometheus_client",
    "pydantic",
    "ray",
    "scipy",
    "sentence_transformers",
    "sklearn",
    "starlette",
    "torch",
    "transformers",
    "uvicorn",
    "wandb",
)
"""onnxruntime too: which of its two packages is installed is the user's choice, by extra"""


def run_without_extras(code: str, folder: Path) -> str:
    block = f"import sys\nfor name in {NOT_IN_BASE!r}: sys.modules[name] = None\n"
    done = subprocess.run([sys.executable, "-c", block + code], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_module_of_the_base_install_imports_without_the_extras(repository: Path) -> None:
    stems = {path.stem for path in (repository / "influcoder").glob("*.py")} - {"__init__", "__main__", *NEEDS_TRAIN}
    stems |= {f"contributions.{path.stem}" for path in (repository / "influcoder" / "contributions").glob("*.py")} - {
        "contributions.__init__"
    }
    stems |= {"serving.answers", "serving.batching", "serving.config", "serving.row_texts"}
    assert len(stems) > 30
    code = f"import importlib, influcoder\nfor stem in {sorted(stems)!r}: importlib.import_module('influcoder.' + stem)\nprint('all')"
    assert run_without_extras(code, repository) == "all\n"


def test_a_missing_extra_is_said_with_its_pip_command(repository: Path) -> None:
    code = """
from influcoder.errors import InflucoderError
from influcoder.splits import near_duplicate_groups
try:
    near_duplicate_groups(["a"], 0.7)
except InflucoderError as error:
    print(error)
"""
    assert run_without_extras(code, repository) == "`datasketch` is not installed; do: pip install 'influcoder[train]'\n"
