"""How fast an exported encoder is: sentence-transformers in float32 and bfloat16 beside every variant of the same encoder.

    python -m benchmarks.encode [--rows 600] [--repeats 5]     ten minutes, 2 GB

MiniLM on real rows (instructions, toxic and not, and passages, of INFLUCODER_DATA), cut at its 256 tokens by everyone. Every contender goes from
text to unit vectors, tokenising included, in turns; a ratio is taken turn by turn, and medians are written to
benchmarks/results/encode.json with the lowest and the highest. Rankings are compared with those of sentence-transformers in float32:
64 queries, the other rows ranked. On a machine with CUDA the contenders are those of a GPU.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer

from benchmarks.bench_eval import find_data, minilm
from benchmarks.readme_block import Block, line
from influcoder.examples import Example, Turn
from influcoder.onnx_encoder import OnnxEncoder
from influcoder.onnx_export import export_encoder
from influcoder.onnx_parity import compare_rankings
from influcoder.onnx_settings import Variant
from influcoder.runs import git_commit, write_text_atomic
from influcoder.text_format import TextFormat, render, save_text_format, truncate

RESULT = Path("benchmarks/results/encode.json")
BLOCK = Block("<!-- encode: written by python -m benchmarks.encode -->", "<!-- end of encode -->")
BASE = "sentence-transformers, fp32"
CALIBRATION = 300
"""rows that the export is judged on, which nobody is timed on"""
Encode = Callable[[Sequence[str]], NDArray[np.float32]]


def main() -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.encode", description=main.__doc__)
    for name, default in (("rows", 600), ("repeats", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    data = find_data()
    if data is None:
        return 2
    texts = read_texts(data, CALIBRATION + options.rows)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "encoder"
        shutil.copytree(minilm(), folder)
        save_text_format(folder, TextFormat())
        device = "cuda" if torch.cuda.is_available() else "cpu"
        export_encoder(folder, texts[:CALIBRATION], variants=["fp16"] if device == "cuda" else ["int8", "bf16"])
        figures = race(contenders(folder, device), texts[CALIBRATION:], options.repeats)
    machine = torch.cuda.get_device_name() if device == "cuda" else f"{processor()}, {len(os.sched_getaffinity(0))} cores"
    found = {"git_commit": git_commit(), "machine": machine, "rows": options.rows, "repeats": options.repeats, "methods": figures}
    write_text_atomic(RESULT, json.dumps(found, indent=1) + "\n")
    BLOCK.write(table(found))
    print(table(found))
    return 0


def read_texts(data: Path, count: int) -> list[str]:
    """Return rows of three sources as an encoder reads them, in random order."""
    texts = []
    for name in ("poison", "toxicity", "factual"):
        with gzip.open(data / name / "pool.jsonl.gz", "rt", encoding="utf-8") as lines:
            rows = [json.loads(line) for line in lines]
        examples = (Example(id="", context=(Turn(role="user", content=row["prompt"]),), response=row["response"]) for row in rows)
        texts += [render(truncate(example, TextFormat()), TextFormat()) for example in examples]
    texts = list(dict.fromkeys(texts))
    return [texts[place] for place in np.random.default_rng(0).permutation(len(texts))[:count]]


def contenders(folder: Path, device: str) -> dict[str, Encode]:
    """Return who takes part, the one that all are compared with first."""

    def transformers(dtype: torch.dtype) -> Encode:
        model = SentenceTransformer(str(folder), device=device, model_kwargs={"dtype": dtype})
        return lambda texts: np.asarray(model.encode(list(texts), normalize_embeddings=True, show_progress_bar=False), np.float32)

    def ours(variant: Variant, *providers: str) -> Encode:
        return OnnxEncoder(folder, variant=variant, providers=providers or None).encode

    both = {BASE: transformers(torch.float32), "sentence-transformers, bf16": transformers(torch.bfloat16)}
    if device == "cuda":
        half = {"sentence-transformers, fp16": transformers(torch.float16)}
        return both | half | {"onnxruntime, fp32": ours("fp32"), "onnxruntime, fp16": ours("fp16")}
    return both | {
        "onnxruntime, fp32": ours("fp32"),
        "onnxruntime, int8": ours("int8"),
        "OpenVINO, fp32": ours("fp32", "OpenVINO"),
        "OpenVINO, bf16": ours("bf16"),
    }


def race(methods: Mapping[str, Encode], texts: Sequence[str], repeats: int) -> dict[str, Any]:
    """Return each method's rows a second, its ratio to the first one's turn by turn, and how its rankings agree with them."""
    embeddings = {name: encode(texts) for name, encode in methods.items()}  # the warm-up
    rates: dict[str, list[float]] = {name: [] for name in methods}
    for _ in range(repeats):
        for name, encode in methods.items():
            started = time.perf_counter()
            encode(texts)
            rates[name].append(len(texts) / (time.perf_counter() - started))
    figures = {}
    for name in methods:
        ratios = [mine / base for mine, base in zip(rates[name], rates[BASE], strict=True)]
        parity = compare_rankings(embeddings[name], embeddings[BASE])
        figures[name] = {
            "rows_per_second": round(median(rates[name]), 1),
            "ratio": round(median(ratios), 2),
            "lowest_ratio": round(min(ratios), 2),
            "highest_ratio": round(max(ratios), 2),
            "spearman": round(parity["spearman_mean"], 5),
            "top10_overlap": round(parity["top_overlap"], 3),
        }
    return figures


def table(found: Mapping[str, Any]) -> str:
    """Return the README's table."""
    heads = ("encoder", "rows a second", "times the first, median [lowest, highest]", "Spearman with it", "overlap of the first ten")
    lines = [line(*heads), line(*["---"] * len(heads))]
    for name, each in found["methods"].items():
        ratio = f"{each['ratio']:.2f} [{each['lowest_ratio']:.2f}, {each['highest_ratio']:.2f}]"
        lines.append(line(name, f"{each['rows_per_second']:.0f}", ratio, f"{each['spearman']:.4f}", f"{each['top10_overlap']:.2f}"))
    caption = f"{found['rows']} real rows, {found['machine']}, {found['repeats']} turns each, at {found['git_commit']}."
    return "\n".join([*lines, "", caption]) + "\n"


def processor() -> str:
    """Return the processor's name."""
    with Path("/proc/cpuinfo").open() as lines:
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


if __name__ == "__main__":
    raise SystemExit(main())
