from __future__ import annotations

import ast
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from influcoder.onnx_encoder import OnnxEncoder
from influcoder.readers import DataSource, read_examples
from influcoder.text_format import load_text_format, render, save_text_format

ALLOWED = {"numpy", "tokenizers", "onnxruntime"}


@pytest.fixture
def script(repository: Path) -> Path:
    return repository / "examples" / "onnx_inference.py"


def make_rows(count: int, seed: int) -> list[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    words = "river bread code stars green tea über \u2028 garden".split(" ")

    def text(longest: int) -> str:
        return " ".join(rng.choice(words, rng.integers(1, longest)))

    # longer than both character budgets and the encoder's tokens; some rows have no prompt
    return [
        {"id": f"r{row}", "prompt": "" if row % 9 == 0 else text(60), "response": "so " + text(120), "label": 1} for row in range(count)
    ]


def test_it_needs_only_three_packages(script: Path) -> None:
    imported = set()
    for node in ast.walk(ast.parse(script.read_text())):
        if isinstance(node, ast.Import):
            imported |= {name.name.split(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            imported.add(node.module.split(".")[0])
    assert imported - set(sys.stdlib_module_names) == ALLOWED


def as_chat(encoder: Path) -> None:
    save_text_format(encoder, replace(load_text_format(encoder), prompt_marker="[", separator="]", response_marker="(", end_marker=")"))


def as_before(encoder: Path) -> None:
    path = encoder / "text_format.json"
    old = json.loads(path.read_text())
    del old["separator"], old["end_marker"]
    path.write_text(json.dumps(old))


@pytest.mark.parametrize("change", [as_chat, as_before])
def test_its_ranking_is_that_of_the_library(script: Path, exported_folder: Path, tmp_path: Path, change: Callable[[Path], None]) -> None:
    folder = Path(shutil.copytree(exported_folder, tmp_path / "encoder"))
    change(folder)
    for name, rows in (("pool", make_rows(80, 0)), ("queries", make_rows(5, 1))):
        (tmp_path / f"{name}.jsonl").write_text(
            "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows) + "\n", encoding="utf-8"
        )
    pool, queries = (str(tmp_path / f"{name}.jsonl") for name in ("pool", "queries"))
    done = subprocess.run(
        [sys.executable, str(script), str(folder), pool, queries, "--top", "80"],
        capture_output=True, text=True, cwd=tmp_path, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]

    encoder = OnnxEncoder(folder)
    vectors = {
        path: encoder.encode([render(row, encoder.text_format) for row in read_examples(DataSource(paths=(path,)))])
        for path in (pool, queries)
    }
    scores = vectors[queries] @ vectors[pool].T
    assert [line["query"] for line in found] == [f"r{row}" for row in range(5)]
    for line, expected in zip(found, scores, strict=True):
        places = [int(row["id"].removeprefix("r")) for row in line["rows"]]
        assert sorted(places) == list(range(80))
        # the same order, rows that differ by rounding alone apart
        np.testing.assert_allclose(expected[places], -np.sort(-expected), atol=1e-5)
        np.testing.assert_allclose([row["score"] for row in line["rows"]], expected[places], atol=1e-5)
        assert expected.std() > 1e-3  # far above rounding: there is an order to find


def test_one_folder_opens_in_sentence_transformers_and_without_torch(script: Path, exported_folder: Path, tmp_path: Path) -> None:
    """Neither knows of this package: SentenceTransformer as anyone calls it, and the script where torch and we cannot be imported."""
    texts = [f"Prompt: {word}\nResponse: {word} tea" for word in "river bread code stars green tea garden".split()]
    truth = SentenceTransformer(str(exported_folder), device="cpu").encode(texts, normalize_embeddings=True, show_progress_bar=False)
    code = f"""
import runpy, sys
for name in ("torch", "transformers", "sentence_transformers", "influcoder", "onnx"):
    sys.modules[name] = None
import numpy as np
from pathlib import Path
encode = runpy.run_path({str(script)!r})["encode"]
np.save({str(tmp_path / "found.npy")!r}, encode(Path({str(exported_folder)!r}), {texts!r}, batch_size=3))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(np.load(tmp_path / "found.npy"), truth, atol=1e-5)
