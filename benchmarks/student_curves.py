"""How fidelity depends on labelled rows (chosen at random or actively), on the width of the embedding, and on its bytes.

    python -m benchmarks.student_curves [--bench mixed plain]     after make bench-student; some minutes

All curves are of the student `ours` with seed 0, on the questions and the truth of `make bench-student`. Writes
benchmarks/results/student_curves.json and docs/student_curves.png.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from sentence_transformers.base.modules import Dense
from torch.nn.functional import normalize

from benchmarks.bench_eval import find_data
from benchmarks.bench_student import ROOT, ask, run_name
from benchmarks.student_scores import Question
from influcoder.features import load_features
from influcoder.metrics import per_query_spearman
from influcoder.runs import git_commit, write_text_atomic
from influcoder.sentence_encoder import load_sentence_encoder
from influcoder.text_format import load_text_format, render
from student.active import choose_rows
from student.closed_form import PENALTIES, pool, ridge
from student.coordinates import principal_coordinates

RESULT, PICTURE = Path("benchmarks/results/student_curves.json"), Path("docs/student_curves.png")
LABELS, WIDTHS, DRAWS = (125, 250, 500, 1000, 2000), (16, 32, 64, 128, 256, 384), 3
Vectors = NDArray[np.float32]


def main() -> int:
    """Take all curves of every bench, write, draw."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.student_curves", description=main.__doc__)
    parser.add_argument("--bench", nargs="+", default=["mixed", "plain"], choices=["mixed", "plain"])
    data = find_data()
    if data is None:
        return 2
    found = {bench: curves(ROOT / bench, data) for bench in parser.parse_args().bench}
    write_text_atomic(RESULT, json.dumps({"git_commit": git_commit(), "benches": found}, indent=1) + "\n")
    draw(found)
    return 0


def curves(root: Path, data: Path) -> dict[str, Any]:
    """Return the figures of one bench."""
    question, run = ask(root, data), root / run_name("ours", 0)
    encoder, text_format = load_sentence_encoder(run / "encoder"), load_text_format(run / "encoder")
    texts = [render(example, text_format) for example in question.examples]
    pooled, asked = torch.from_numpy(pool(encoder, texts)), [*question.queries, *question.rows]
    head = encoder[-2]
    assert isinstance(head, Dense)  # a fitted encoder ends in it
    vectors = normalize(head.linear(pooled[asked]).detach()).numpy()
    found: dict[str, Any] = {"width": {}, "bytes": {}}
    for width in WIDTHS:
        sliced = vectors[:, :width] / np.linalg.norm(vectors[:, :width], axis=1, keepdims=True)
        found["width"][width] = _rho(question, sliced)
        found["bytes"][width] = {"float32": 4 * width, "int8": width + 4, "int8_spearman": _rho(question, int8(sliced))}
    features = torch.from_numpy(load_features(root / "teacher" / "features" / "seed-0" / "rows").vectors)
    found["labels"] = {"random": {}, "active": {}}
    train = torch.from_numpy(np.flatnonzero(question.parts == "train"))
    active = train[choose_rows(pooled[train], min(max(LABELS), len(train)))]
    for count in LABELS:
        chosen = [train[torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))[:count]] for seed in range(DRAWS)]
        found["labels"]["random"][count] = [_with_labels(question, pooled, features, rows) for rows in chosen]
        found["labels"]["active"][count] = [_with_labels(question, pooled, features, active[:count])]
        print(root.name, count, found["labels"]["random"][count], found["labels"]["active"][count], flush=True)
    return found


def int8(vectors: Vectors) -> Vectors:
    """Return vectors after a round trip through int8, each row scaled by its largest number."""
    scale = np.abs(vectors).max(1, keepdims=True) / 127
    restored: Vectors = (np.round(vectors / scale) * scale).astype(np.float32)
    return restored


def _with_labels(question: Question, pooled: torch.Tensor, features: torch.Tensor, rows: torch.Tensor) -> float:
    """Return the fidelity of a head fitted on some rows; its penalty is the best on the validation rows."""
    coordinates = principal_coordinates(features[rows], 384).coordinates
    validation = np.flatnonzero(question.parts == "validation")
    truth = (features[validation] @ features[validation].T).numpy()
    length, asked, found = float((pooled[rows] - pooled[rows].mean(0)).square().sum(1).mean()), [*question.queries, *question.rows], []
    for weight, bias in ridge(pooled[rows], coordinates, [share * length for share in PENALTIES]):
        mine = normalize(pooled[validation] @ weight.T + bias).numpy()
        third = len(validation) // 3
        chosen = per_query_spearman(mine[:third] @ mine[third:].T, truth[:third, third:]).mean()
        found.append((float(chosen), _rho(question, normalize(pooled[asked] @ weight.T + bias).numpy())))
    return max(found)[1]


def _rho(question: Question, vectors: Vectors) -> float:
    return float(per_query_spearman(question.kernel(vectors), question.truth).mean())


def draw(found: dict[str, Any]) -> None:
    """Draw the curves."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    labels, widths = figure.subplots(1, 2, sharey=True)
    for colour, (bench, values) in zip(("tab:blue", "tab:orange"), found.items(), strict=False):
        for kind, style in (("random", "-"), ("active", "--")):
            counts = values["labels"][kind]
            labels.plot(
                list(counts), [np.mean(rhos) for rhos in counts.values()], style, color=colour, marker="o", label=f"{bench}, {kind}"
            )
        widths.plot(list(values["width"]), list(values["width"].values()), color=colour, marker="o", label=f"{bench}, float32")
        int8s = [entry["int8_spearman"] for entry in values["bytes"].values()]
        widths.plot(list(values["width"]), int8s, "--", color=colour, marker="x", label=f"{bench}, int8")
    for axes, name, ticks in ((labels, "labelled rows", LABELS), (widths, "numbers in an embedding", WIDTHS)):
        axes.set(xscale="log", xlabel=name)
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    labels.set_ylabel("per-query Spearman with exact gradients")
    figure.savefig(PICTURE, dpi=130)


if __name__ == "__main__":
    raise SystemExit(main())
