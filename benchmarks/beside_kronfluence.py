"""EK-FAC beside kronfluence (1.0.1): seconds of factors and of scores, and how far the scores of both agree, on one decoder and its rows.

    pip install kronfluence; python -m benchmarks.beside_kronfluence [--rows 256] [--queries 16] [--seeds 3]

small-lm and the first rows of INFLUCODER_DATA's poison pool. Both have the same layers, loss (a row's mean over its response), one label
a position drawn from the model, damping of .1 mean eigenvalue, float32 and rows sorted by length; they take turns, seed by seed, after a
warm-up. Both write their factors to disk. Writes benchmarks/results/kronfluence.json.
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import combinations, product
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.bench_eval import find_data
from influcoder.errors import require
from influcoder.influence.decoder import Decoder, DecoderConfig, load_decoder
from influcoder.influence.ekfac_decoder import Draws, fit_decoder_ekfac
from influcoder.influence.ekfac_files import load_ekfac
from influcoder.influence.ekfac_scores import precondition_queries, stream_scores
from influcoder.influence.self_check import usable_layers
from influcoder.influence.tokens import TokenizedRow, pad, pad_token_id, predict, tokenize
from influcoder.metrics import per_query_spearman
from influcoder.readers import DataSource, read_examples
from influcoder.runs import git_commit, write_text_atomic
from influcoder.text_format import TextFormat, truncate_all

RESULT = Path("benchmarks/results/kronfluence.json")
BATCH_ROWS, BATCH_TOKENS = 16, 1024
"""of kronfluence, of ours: about as many tokens"""
Scores = NDArray[np.floating]
Contender = Callable[[int, Path], tuple[float, float, Scores]]
"""(seed, folder) -> seconds of factors, seconds of scores, scores (Q, N)"""


def main() -> int:
    """Let both take turns, compare, write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.beside_kronfluence", description=main.__doc__)
    for name, default in (("rows", 256), ("queries", 16), ("seeds", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    data = find_data()
    if data is None:
        return 2
    decoder = load_decoder(DecoderConfig(path=str(data / "models" / "small-lm")), [], 0)
    source = DataSource(paths=(str(data / "poison" / "pool.jsonl.gz"),))
    examples = truncate_all(read_examples(source), TextFormat(max_prompt_chars=240, max_response_chars=160))[
        : options.rows + options.queries
    ]
    tokens = tokenize(examples, decoder)
    queries, rows = tokens[: options.queries], sorted(tokens[options.queries :], key=lambda row: len(row.input_ids))
    contenders = {"influcoder": ours(decoder, queries, rows), "kronfluence": theirs(decoder, queries, rows)}
    for contend in (ours(decoder, queries[:2], rows[:8]), theirs(decoder, queries[:2], rows[:8])):
        _timed(contend, 0)
    taken: dict[str, list[tuple[float, float, Scores]]] = {name: [] for name in contenders}
    for seed in range(options.seeds):
        for name, contend in contenders.items():
            taken[name].append(_timed(contend, seed))
            print(f"{name} {seed}: factors {taken[name][-1][0]:.1f} s, scores {taken[name][-1][1]:.1f} s", flush=True)
    figures = vars(options) | {"git_commit": git_commit(), "threads": torch.get_num_threads(), **compare(taken)}
    write_text_atomic(RESULT, json.dumps(figures, indent=1) + "\n")
    print(json.dumps(figures, indent=1))
    return 0


def _timed(contend: Contender, seed: int) -> tuple[float, float, Scores]:
    with tempfile.TemporaryDirectory() as folder:
        return contend(seed, Path(folder))


def compare(taken: dict[str, list[tuple[float, float, Scores]]]) -> dict[str, Any]:
    """Return medians of seconds and of their ratios turn by turn, and mean per-query Spearman between seeds of each and between the two."""
    found: dict[str, Any] = {}
    scores = {name: [run[2] for run in runs] for name, runs in taken.items()}
    for name, runs in taken.items():
        found[name] = {
            "factors_seconds": median(run[0] for run in runs),
            "scores_seconds": median(run[1] for run in runs),
            "seed_to_seed": _agreement(combinations(scores[name], 2)),
        }
    for place, stage in enumerate(("factors", "scores")):
        found[f"{stage}_ratio"] = median(their[place] / our[place] for our, their in zip(*taken.values(), strict=True))
    found["agreement"] = _agreement(product(*scores.values()))
    return found


def _agreement(pairs: Any) -> float:
    return float(np.mean([per_query_spearman(first, second).mean() for first, second in pairs]))


def ours(decoder: Decoder, queries: Sequence[TokenizedRow], rows: Sequence[TokenizedRow]) -> Contender:
    """Return our way from rows to scores."""
    layers, _ = usable_layers(decoder, list(queries[:2]))

    def contend(seed: int, folder: Path) -> tuple[float, float, Scores]:
        started = time.perf_counter()
        fit_decoder_ekfac(decoder, layers, rows, folder / "factors", Draws(count=1, seed=seed), BATCH_TOKENS)
        fitted = time.perf_counter()
        factors = load_ekfac(folder / "factors", layers)
        asking = precondition_queries(decoder, factors, layers, queries, max_batch_tokens=BATCH_TOKENS)
        scores = stream_scores(decoder, layers, asking, rows, max_batch_tokens=BATCH_TOKENS).values
        return fitted - started, time.perf_counter() - fitted, scores

    return contend


def theirs(decoder: Decoder, queries: Sequence[TokenizedRow], rows: Sequence[TokenizedRow]) -> Contender:
    """Return kronfluence's way.

    Raises:
        MissingExtraError: when it is not installed.
    """
    kronfluence = require("kronfluence", "kronfluence")
    arguments, loading = require("kronfluence.arguments", "kronfluence"), require("kronfluence.utils.dataset", "kronfluence")
    logging.getLogger("kronfluence").setLevel(logging.ERROR)
    task = _task(list(usable_layers(decoder, list(queries[:2]))[0]))
    model = kronfluence.prepare_model(_Logits(copy.deepcopy(decoder.model)).eval(), task)

    def collate(batch: list[TokenizedRow]) -> tuple[Tensor, Tensor, Tensor]:
        return pad(batch, pad_token_id(decoder.tokenizer), decoder.device)

    def contend(seed: int, folder: Path) -> tuple[float, float, Scores]:
        torch.manual_seed(seed)
        analyzer = kronfluence.Analyzer("bench", model, task, cpu=True, disable_tqdm=True, output_dir=str(folder), disable_model_save=True)
        analyzer.set_dataloader_kwargs(loading.DataLoaderKwargs(collate_fn=collate))
        started = time.perf_counter()
        analyzer.fit_all_factors("factors", rows, per_device_batch_size=BATCH_ROWS, factor_args=arguments.FactorArguments(strategy="ekfac"))
        fitted = time.perf_counter()
        analyzer.compute_pairwise_scores(
            "scores", "factors", queries, rows, len(queries), per_device_train_batch_size=BATCH_ROWS,
            score_args=arguments.ScoreArguments(damping_factor=None),
        )  # fmt: skip
        scores: Scores = analyzer.load_pairwise_scores("scores")["all_modules"].float().numpy()
        return fitted - started, time.perf_counter() - fitted, scores

    return contend


class _Logits(nn.Module):
    """A decoder below a name of its own: kronfluence wraps a model's children."""

    def __init__(self, decoder: Any) -> None:
        super().__init__()
        self.decoder = decoder


def _task(layers: Sequence[str]) -> Any:
    """Return kronfluence's view of our rows: the mean loss over a response, and its Gauss-Newton matrix (1 / sqrt(T) of sampled labels)."""
    base: Any = require("kronfluence.task", "kronfluence").Task

    class RowTask(base):  # type: ignore[misc]  # untyped
        def compute_train_loss(self, batch: Any, model: _Logits, sample: bool = False) -> Tensor:
            predicted = predict(model.decoder, *batch)
            lengths = predicted.rows.bincount()[predicted.rows].float()
            targets = predicted.targets
            if sample:
                targets = torch.multinomial(predicted.logits.detach().softmax(1), 1)[:, 0]
            losses = torch.nn.functional.cross_entropy(predicted.logits, targets, reduction="none")
            return (losses / (lengths.sqrt() if sample else lengths)).sum()

        def compute_measurement(self, batch: Any, model: _Logits) -> Tensor:
            return self.compute_train_loss(batch, model)

        def get_influence_tracked_modules(self) -> list[str]:
            return [f"decoder.{name}" for name in layers]

        def get_attention_mask(self, batch: Any) -> Tensor:
            mask: Tensor = batch[1]
            return mask

    return RowTask()


if __name__ == "__main__":
    raise SystemExit(main())
