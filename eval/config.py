"""Settings of the eval stage. Paths of runs are given by hand; every other fact about them is read from the runs."""

from __future__ import annotations

from dataclasses import dataclass, field

from influcoder.aggregation import DEFAULT_TOP
from influcoder.errors import ConfigError
from influcoder.readers import DataSource

METHODS = (
    "teacher",
    "teacher_second_seed",
    "student",
    "untrained_encoder",
    "query_blind",
    "bm25",
    "rep_sim",
    "rep_sim_mean",
    "length",
    "random",
)
"""names that the table gives to its own rows"""


@dataclass(frozen=True, kw_only=True)
class LabelsConfig:
    """Answers about the pool's rows, joined by id. Eval alone reads them."""

    source: DataSource
    """file that holds the labels, often the pool itself; `columns` say how its ids are found"""
    positive: str | None = None
    """column that is 1 or true for the rows that the task wants found; null skips the task"""
    group: str | None = None
    """column of a kind such as skill or topic; null skips fidelity within a group"""

    def __post_init__(self) -> None:
        if self.positive is None and self.group is None:
            raise ConfigError("labels: positive and group are both null; name at least one column, or leave `labels` out")


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """Judge a student, its teacher and the floors on the test split."""

    teacher: str
    """folder of a complete teacher run"""
    student: str
    """folder of a complete student run, distilled from that teacher"""
    output: str
    """folder to make for this run; must not exist"""
    compare: dict[str, str] = field(default_factory=dict)
    """other student runs of the same split to stand in the table: name of the row -> folder"""
    labels: LabelsConfig | None = None
    """answers about the pool's rows; null leaves fidelity to the teacher as the only question"""
    num_queries: int = 200
    """test rows that serve as fidelity queries, at most half of them; the other test rows are the candidates"""
    top: int = DEFAULT_TOP
    """a row's score in the task is the mean of its so many best per-query scores"""
    seed: int = 0
    """choice of the queries, bootstrap, and the random floor"""
    bootstrap_draws: int = 1000
    """resamples behind each 95 % interval"""
    device: str = "auto"
    """where encoders and decoder run; auto takes a GPU when there is one"""
    wandb_project: str | None = None
    """log table, metrics and plot to this Weights & Biases project; null logs nothing there"""

    def __post_init__(self) -> None:
        for name in ("num_queries", "top", "bootstrap_draws"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: {getattr(self, name)}; expected at least 1")
        taken = sorted(set(METHODS) & set(self.compare))
        if taken:
            raise ConfigError(f"compare: the name {taken[0]!r} is one of the table's own rows ({', '.join(METHODS)}); choose another")
