"""`make bench-planted`: does the student find planted rows as well as its teacher, where its teacher stands above the floors?

    python -m benchmarks.bench_planted     about 20 minutes on 2 cores; goes on where it stopped, and from what make bench-teachers left

The rows and the decoder of `make bench-teachers`. The teacher is the best one there, LoGra with each layer's cosine; the student is the
decoder's own errors with a head in closed form, cross-fitted, so that every row is scored by a student that was not fitted on it.
Writes benchmarks/results/bench_planted.json and .md.
"""

from __future__ import annotations

from benchmarks.bench_teachers import FOLDS, ROOT, run

TEACHERS = {
    "teacher": "teacher",
    "teacher-logra": "teacher_logra",
    "teacher-ekfac": "teacher_ekfac",
    "teacher-f-influence": "teacher_f_influence",
    "teacher-f-influence-layers": "teacher_f_influence_layers",
}
"""config by folder; the first trains the decoder of the others, but the recorded training of f-INE is its own"""


def main() -> int:
    """Run the stages that are missing, then copy the figures."""
    return run("bench_planted", plan())


def plan() -> list[tuple[str, list[str]]]:
    """Return the stages in order: folder below runs/bench_teachers, and the module with its arguments."""
    steps = [(folder, ["teacher", f"configs/bench_teachers/{config}.yaml"]) for folder, config in TEACHERS.items()]
    for fold in FOLDS:
        name = f"planted-student-fold-{fold}"
        settings = ["--output", str(ROOT / name), "--split.fold", str(fold)]
        steps.append((name, ["student", "configs/bench_teachers/student_planted.yaml", *settings]))
    return [*steps, ("planted-eval", ["eval", "configs/bench_teachers/eval_planted.yaml"])]


if __name__ == "__main__":
    raise SystemExit(main())
