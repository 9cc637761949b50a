"""`make bench-student`: how closely students follow a teacher on rows they have not seen, judged on exact gradients.

    python -m benchmarks.bench_student [--seconds 120] [--bench mixed plain ekfac]     about 30 minutes a bench on 2 cores; goes on where it stopped

Two pools of 4,000 real rows (INFLUCODER_DATA) and small-lm as it is: `plain`, one mix of instructions, and `mixed`, of every source. 200 test
rows ask for 1,000 others; the truth is the cosine of exact gradients, layer by layer, nothing projected. `ekfac` is a second target, with
every setting as for the first: EK-FAC on 2,000 of the mixed rows; its truth is the teacher's second seed, of other rows, labels and signs.
Every student that is trained gets the same seconds, rows and teacher, and is chosen on the same validation rows. Writes
benchmarks/results/bench_student.json.
"""

from __future__ import annotations

import argparse
import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from benchmarks.bench_eval import find_data, minilm, run_steps
from benchmarks.bench_pool import read
from benchmarks.student_scores import Question, floors, student_kernel, teacher_kernels
from eval.bootstrap import Estimate, Resampler
from influcoder.examples import load_examples
from influcoder.features import load_row_vectors
from influcoder.influence.decoder import DecoderConfig, load_decoder
from influcoder.influence.exact import exact_products
from influcoder.influence.self_check import usable_layers
from influcoder.influence.tokens import tokenize
from influcoder.metrics import aggregated_spearman, per_query_spearman, residual_spearman, top_overlap
from influcoder.runs import git_commit, write_text_atomic

ROOT, RESULT = Path("runs/bench_student"), Path("benchmarks/results/bench_student.json")
QUERIES, CANDIDATES, ROWS = 200, 1000, 4000
SEEDS = (0, 1, 2)
TEXT, REFERENCE, STATIC, OURS = "student_text", "student_reference", "student_static", "student"
Students = dict[str, tuple[str, tuple[int, ...], list[str]]]
STUDENTS: Students = {
    "ours": (OURS, SEEDS, []),
    "ours, no products": (OURS, (0,), ["--encoder.causal_lm.layers", "1", "--encoder.causal_lm.rank", "1"]),
    "ours, fine-tuned": (OURS, (0,), ["--trainer.max_epochs", "1000", "--optimizer.learning_rate", "1e-5", "--recipe.block_rows", "64"]),
    "token table": (STATIC, (0,), []),
    "MiniLM, head in closed form": (TEXT, (0,), ["--encoder.head", "closed_form", "--trainer.max_epochs", "0"]),
    "MiniLM, full block": (TEXT, (0,), []),
    "reference recipe": (REFERENCE, SEEDS, []),
}
"""config, seeds and overrides by name"""


@dataclass(frozen=True)
class Bench:
    """What is asked of the students."""

    pool: str
    """mixed or plain"""
    teacher: str = "teacher"
    """config"""
    exact: bool = True
    """judged on exact gradients; else on the teacher's second seed"""
    students: tuple[str, ...] = tuple(STUDENTS)
    seeds: int = len(SEEDS)
    """of each student, at most"""
    rows: int = ROWS
    """the first of the pool's"""


BENCHES = {
    "mixed": Bench("mixed"),
    "plain": Bench("plain"),
    "ekfac": Bench(
        "mixed", teacher="teacher_ekfac", exact=False, students=("ours", "MiniLM, full block", "reference recipe"), seeds=1, rows=2000
    ),
}


def main() -> int:
    """Run the stages that are missing, judge, publish."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench_student", description=main.__doc__)
    parser.add_argument("--seconds", type=int, default=120, help="of training, for every student that is trained")
    parser.add_argument("--bench", nargs="+", default=list(BENCHES), choices=list(BENCHES))
    parser.add_argument("--students", nargs="+", default=list(STUDENTS), choices=list(STUDENTS), help="`ours` is always among them")
    arguments = parser.parse_args()
    data = find_data()
    if data is None:
        return 2
    for name in arguments.bench:
        bench, root = BENCHES[name], ROOT / name
        chosen = {
            student: (STUDENTS[student][0], STUDENTS[student][1][: bench.seeds], STUDENTS[student][2])
            for student in bench.students
            if student == "ours" or student in arguments.students
        }
        if not (root / "rows.jsonl").exists():
            root.mkdir(parents=True, exist_ok=True)
            rows = pool(data, bench.pool)[: bench.rows]
            write_text_atomic(
                root / "rows.jsonl", "".join(json.dumps({key: row[key] for key in ("id", "prompt", "response")}) + "\n" for row in rows)
            )
        if code := run_steps(root, plan(root, bench, arguments.seconds, chosen), data):
            return code
        publish(name, judge(root, bench, data, chosen), arguments.seconds)
    return 0


def pool(data: Path, bench: str, seed: int = 0) -> list[dict[str, Any]]:
    """Return the rows of a bench, shuffled: the same data and seed, the same rows."""
    source = random.Random(seed)
    poison, unsafe = (read(data / task / "pool.jsonl.gz") for task in ("poison", "toxicity"))
    benign = [row for row in poison + unsafe if not row["label"]]
    kinds = {kind: [row for row in benign if row["source"].split(":")[-1] in names] for kind, names in SOURCES.items()}
    if bench == "plain":
        return source.sample(kinds["instructions"], ROWS)
    rows = source.sample(kinds["instructions"], 1100) + source.sample(kinds["code"], 500) + source.sample(kinds["role-play"], 400)
    rows += [row for row in poison + unsafe if row["label"]]
    rows += [row for task in ("poison", "toxicity") for row in read(data / task / "hard_negatives.jsonl.gz")]
    rows += source.sample(read(data / "toxicity" / "comments.jsonl.gz"), 500) + source.sample(read(data / "factual" / "pool.jsonl.gz"), 500)
    rows += source.sample(read(data / "factual_trex" / "pool.jsonl.gz"), ROWS - len(rows))
    source.shuffle(rows)
    return rows


SOURCES = {"instructions": ("alpaca", "dolly"), "code": ("gpteacher-codegen",), "role-play": ("gpteacher-roleplay",)}


def plan(root: Path, bench: Bench, seconds: int, students: Students) -> list[tuple[str, list[str]]]:
    """Return the stages in order: folder below `root`, and the module with its arguments."""
    config = f"configs/bench_student/{bench.teacher}.yaml"
    teacher = ["teacher", config, "--output", f"{root}/teacher", "--rows.paths", f"[{root}/rows.jsonl]"]
    steps = [("teacher", teacher)]
    for name, (config, seeds, overrides) in students.items():
        for seed in seeds:
            folder = run_name(name, seed)
            command = ["student", f"configs/bench_student/{config}.yaml", "--output", f"{root}/{folder}", "--teacher", f"{root}/teacher"]
            limit = ["--trainer.max_time", f"00:00:{seconds // 60:02d}:{seconds % 60:02d}"]
            steps.append((folder, [*command, "--seed", str(seed), *limit, *overrides]))
    return steps


def run_name(name: str, seed: int) -> str:
    """Return the folder of a student."""
    return f"{name.replace(', ', '-').replace(' ', '_')}-seed-{seed}"


def judge(root: Path, bench: Bench, data: Path, students: Students) -> dict[str, dict[str, Any]]:
    """Return the figures of every method."""
    question = ask(root, data, exact=bench.exact)
    known = [
        *floors(question, root, data, minilm()),
        *teacher_kernels(question, root / "teacher", seeds=(0, 1) if bench.exact else (0,)),
    ]
    for name, (_, seeds, _) in students.items():
        found = [student_kernel(question, root / run_name(name, seed)) for seed in seeds]
        known.append((name, "student", [kernel for kernel, _ in found], found[0][1]))
    resampler = Resampler(draws=2000, seed=0)
    figures = {}
    for name, role, kernels, facts in known:
        figures[name] = {"role": role, **facts, **_figures(kernels, question.truth, resampler)}
        print(f"{name:32} {figures[name]['per_query_spearman']['value']:.3f} {figures[name]['residual_spearman']['value']:.3f}", flush=True)
    return figures


def ask(root: Path, data: Path, *, exact: bool = True) -> Question:
    """Return test rows that ask, test rows that are ranked, and exact cosines, which are kept beside the runs, or the second seed's."""
    examples = load_examples(root / "teacher" / "rows.parquet")
    parts = np.array(pq.read_table(root / run_name("ours", 0) / "split.parquet")["part"].to_pylist())
    order = np.random.default_rng(0).permutation(len(examples))
    test = [int(place) for place in order if parts[place] == "test"][: QUERIES + CANDIDATES]
    queries, rows = test[:QUERIES], test[QUERIES:]
    if not exact:
        _, asking, vectors = load_row_vectors(root / "teacher" / "features" / "seed-1")
        return Question(examples, parts, queries, rows, (asking[queries] @ vectors[rows].T).astype(np.float64))
    path = root / "exact.npy"
    if not path.exists():
        decoder = load_decoder(DecoderConfig(path=str(data / "models" / "small-lm")), [], 0)
        tokens = tokenize([examples[place] for place in test], decoder)
        layers, _ = usable_layers(decoder, tokens[:2])
        found = exact_products(
            decoder, layers, tokens[:QUERIES], tokens[QUERIES:], max_batch_tokens=1024, max_bytes=6 << 30, unit_layers=True
        )
        np.save(path, found.cosines)
    return Question(examples, parts, queries, rows, np.load(path))


def _figures(kernels: list[NDArray[np.float32]], truth: NDArray[np.float64], resampler: Resampler) -> dict[str, Any]:
    measures = {"per_query_spearman": per_query_spearman, "residual_spearman": residual_spearman}
    found: dict[str, Any] = {}
    for name, measure in measures.items():
        found[name] = _estimate(resampler.mean("queries", [np.stack([measure(kernel, truth) for kernel in kernels])]))
    found["top10_overlap"] = _estimate(resampler.mean("queries", [np.stack([top_overlap(kernel, truth, 10) for kernel in kernels])]))
    found["aggregated_spearman"] = float(np.mean([aggregated_spearman(kernel, truth) for kernel in kernels]))
    return found


def _estimate(estimate: Estimate | None) -> dict[str, Any]:
    assert estimate is not None  # every query has a figure
    return {"value": estimate.value, "interval": list(estimate.interval), "seeds": list(estimate.seeds)}


def publish(bench: str, figures: dict[str, dict[str, Any]], seconds: int) -> None:
    """Write the bench's figures beside those of the other."""
    known = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    known[bench] = {"git_commit": git_commit(), "seconds": seconds, "threads": torch.get_num_threads(), "methods": figures}
    write_text_atomic(RESULT, json.dumps(known, indent=1) + "\n")


if __name__ == "__main__":
    raise SystemExit(main())
