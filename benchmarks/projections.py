"""How well projected cosines follow those of whole gradients, by projection: agreement, seconds, bytes a row.

    python -m benchmarks.projections [--queries 60] [--rows 240] [--output benchmarks/results/projections.json]

The fine-tuned decoder and the rows of `make bench-eval` (runs/bench/teacher). Seconds are of one seed, taken in one process, the
projections after each other on the same rows; the first, rank 16 at random, is the price to compare with.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from influcoder.examples import load_examples
from influcoder.influence.basis import fit_basis
from influcoder.influence.decoder import Decoder, DecoderConfig, load_decoder
from influcoder.influence.exact import exact_products
from influcoder.influence.gradients import GradientConfig, GradientProjector
from influcoder.influence.self_check import usable_layers
from influcoder.influence.tokens import TokenizedRow, tokenize
from influcoder.metrics import per_query_spearman
from influcoder.runs import git_commit

RUN = Path("runs/bench/teacher")
SEEDS = (0, 1)
BASIS_ROWS = 128
PROJECTIONS = {
    "random 16, CountSketch": GradientConfig(rank=16, factors="random", dim=65536),
    "random 64, CountSketch": GradientConfig(rank=64, factors="random", dim=65536),
    "leading 16, CountSketch, 16 384": GradientConfig(rank=16, dim=16384),
    "leading 16, CountSketch": GradientConfig(rank=16, dim=65536),
    "leading 64, CountSketch": GradientConfig(rank=64, dim=65536),
    "leading 32 x 32": GradientConfig(rank=32, output_rank=32, sketch="none"),
}


def main() -> int:
    """Measure every projection."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.projections", description=main.__doc__)
    parser.add_argument("--queries", type=int, default=60)
    parser.add_argument("--rows", type=int, default=240)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/projections.json"))
    arguments = parser.parse_args()
    decoder = load_decoder(DecoderConfig(path=str(RUN / "decoder")), [], 0)
    examples = load_examples(RUN / "rows.parquet")
    order = np.random.default_rng(0).permutation(len(examples))
    rows = tokenize([examples[place] for place in order[: arguments.queries + arguments.rows + 2 * BASIS_ROWS]], decoder)
    judged = rows[: -2 * BASIS_ROWS]  # the bases have not seen what they are judged on
    found = measure(decoder, judged, (rows[-BASIS_ROWS:], rows[-2 * BASIS_ROWS : -BASIS_ROWS]), arguments.queries)
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    figures = {"git_commit": git_commit(), "gpu": gpu, "queries": arguments.queries, "rows": arguments.rows, "projections": found}
    arguments.output.write_text(json.dumps(figures, indent=1) + "\n")
    return 0


def measure(decoder: Decoder, judged: list[TokenizedRow], samples: tuple[list[TokenizedRow], ...], num_queries: int) -> dict[str, Any]:
    """Return the figures of every projection on rows whose first `num_queries` ask the others; `samples` are for the bases, one a seed."""
    layers, _ = usable_layers(decoder, judged[:2])
    queries, rows = judged[:num_queries], judged[num_queries:]
    exact = exact_products(decoder, layers, queries, rows, max_batch_tokens=4096).cosines
    bases = [fit_basis(decoder, layers, sample, inputs=64, outputs=64, max_batch_tokens=4096) for sample in samples]
    found = {}
    for name, config in PROJECTIONS.items():
        kernels, seconds = [], []
        for seed, basis in zip(SEEDS, bases, strict=True):
            projector = GradientProjector(decoder, config, [seed], layers=layers, bases=[basis])
            projector.project(judged[:4])
            vectors = torch.zeros(len(judged), projector.dim)
            started = time.perf_counter()
            for positions, gradients in projector.project_all(judged):
                vectors[positions] = gradients[0].cpu()
            seconds.append(time.perf_counter() - started)
            vectors = torch.nn.functional.normalize(vectors, dim=1)
            kernels.append((vectors[:num_queries] @ vectors[num_queries:].T).numpy())
        found[name] = {
            "seed_to_seed": float(per_query_spearman(kernels[1], kernels[0]).mean()),
            "exact": float(np.mean([per_query_spearman(kernel, exact).mean() for kernel in kernels])),
            "exact_of_mean": float(per_query_spearman((kernels[0] + kernels[1]) / 2, exact).mean()),
            "bytes_per_row": 2 * projector.dim + 4,
            "seconds_per_1000": 1000 * min(seconds) / len(judged),
            "config": asdict(config),
        }
        print(name, {key: value for key, value in found[name].items() if key != "config"}, flush=True)
    return found


if __name__ == "__main__":
    raise SystemExit(main())
