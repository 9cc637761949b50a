"""Settings of the eval stage. Paths of runs are given by hand; every other fact about them is read from the runs."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal

from influcoder.aggregation import DEFAULT_TOP
from influcoder.errors import ConfigError
from influcoder.readers import DataSource

METHODS = (
    "teacher",
    "teacher_second_seed",
    "student",
    "shuffled_target",
    "untrained_encoder",
    "query_blind",
    "bm25",
    "bm25_response",
    "rep_sim",
    "rep_sim_mean",
    "loss",
    "length",
    "random",
)
"""names that the table gives to its own rows"""

Kind = Literal["detection", "retrieval", "mislabel"]


@dataclass(frozen=True, kw_only=True)
class TaskConfig:
    """A question whose answers are known. Eval alone reads them; no other stage names these columns.

    detection: the task's queries show a behaviour; the rows that taught it are to be found (poison, toxicity).
    retrieval: every query has its own rows to be found (passages that state a fact).
    mislabel:  rows with a wrong response are to be found by their influence on themselves; there are no queries.
    """

    kind: Kind = "detection"
    """detection, retrieval or mislabel"""
    rows: DataSource
    """the candidates, rows of the teacher's pool by id, with their answers; judged rows that it does not hold are no candidates"""
    queries: DataSource | None = None
    """the task's queries among the teacher's, by id; null takes all of them"""
    positive: str = "label"
    """detection, mislabel: column of `rows` that says which are to be found; an empty cell is no candidate"""
    positive_values: tuple[str, ...] | None = None
    """detection, mislabel: cells that mean yes, all others no; null: 1 and true mean yes, 0 and false no, others are refused"""
    exclude_values: tuple[str, ...] = ()
    """detection, mislabel: cells whose rows are no candidates, as the distractors that DATE-LM's homogeneous variant leaves out"""
    links: DataSource | None = None
    """retrieval: table of answers, one line a query; its `columns.id` names the query"""
    linked: str = "row_ids"
    """retrieval: column of `links` that lists the ids of the query's rows"""
    match: tuple[str, ...] = ()
    """retrieval, instead of links: a row answers a query when they agree in these columns of `rows` and `queries`"""
    cutoff: int = 50
    """retrieval: k of recall@k"""

    def __post_init__(self) -> None:
        if self.kind == "retrieval" and (self.links is None) == (not self.match):
            raise ConfigError("tasks: a retrieval task has its answers in `links` or by `match`; give exactly one of the two")
        if self.kind == "retrieval" and self.match and self.queries is None:
            raise ConfigError("tasks: `match` compares columns of `rows` with those of `queries`; give queries")
        if self.cutoff < 1:
            raise ConfigError(f"tasks: cutoff {self.cutoff}; expected at least 1")


@dataclass(frozen=True, kw_only=True)
class GroupConfig:
    """A kind of each row, such as its skill or source: fidelity is also told apart by it."""

    rows: DataSource
    """file that names the kinds, often the pool itself; every judged row must be in it"""
    column: str
    """its column"""


@dataclass(frozen=True, kw_only=True)
class GateConfig:
    """Limits beyond which a run's figures are not to be believed; null switches a gate off."""

    trained_share: float | None = 0.8
    """the decoder's mean loss on judged rows, at most this share of what it has with random weights"""
    randomised_share: float | None = 0.5
    """the target's agreement with the decoder of random weights, at most this share of its agreement with its second seed"""
    randomised_queries: int = 40
    """fidelity queries, and eight times as many candidates, on which the decoder of random weights is asked"""
    cardinality_share: float | None = 0.25
    """distinct rows among the student's top 10 of all queries, at least this share of the target's"""
    shuffled_margin: float | None = 0.05
    """per-query Spearman of a student of shuffled targets, at most so much above the best floor"""


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """Judge students, their teacher and the floors on rows and queries that the distillation never saw (python -m eval CONFIG.yaml)."""

    teacher: str
    """folder of a complete teacher run"""
    student: tuple[str, ...]
    """folders of student runs distilled from that teacher: one for each seed, and for each fold where the split has folds"""
    output: str
    """folder to make for this run; must not exist"""
    compare: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """other students of the same split to stand in the table: name of the row -> folders"""
    teachers: dict[str, str] = field(default_factory=dict)
    """other teacher runs on the same rows and queries to stand in the table, as of other methods: name of the row -> folder"""
    shuffled_target: tuple[str, ...] = ()
    """students of shuffled targets (`shuffle_target: true`), of the first fold at least; they must score like a floor"""
    groups: GroupConfig | None = None
    """kinds of rows; null leaves only lengths to tell fidelity apart by"""
    tasks: dict[str, TaskConfig] = field(default_factory=dict)
    """name -> question with known answers; the name begins the metric's, as in poison_auprc"""
    num_queries: int = 200
    """test rows that serve as fidelity queries, at most half of a fold's; the other test rows are the candidates"""
    top: int = DEFAULT_TOP
    """detection: a row's score is the mean of its so many best per-query scores"""
    seed: int = 0
    """choice of the queries, bootstrap, and the random floor"""
    bootstrap_draws: int = 1000
    """resamples behind each 95 % interval"""
    cost_rows: int = 128
    """judged rows whose gradients are taken once more to time the teacher"""
    gates: GateConfig = field(default_factory=GateConfig)
    """limits; a run that fails one is written, and the program says so and ends with exit code 2"""
    device: str = "auto"
    """where encoders and decoder run; auto takes a GPU when there is one"""
    wandb_project: str | None = None
    """log table, metrics and plots to this Weights & Biases project; null logs nothing there"""

    def __post_init__(self) -> None:
        for name in ("num_queries", "top", "bootstrap_draws", "cost_rows"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: {getattr(self, name)}; expected at least 1")
        for name in ("student", *(f"compare.{name}" for name in self.compare)):
            folders = self.student if name == "student" else self.compare[name.removeprefix("compare.")]
            if not folders:
                raise ConfigError(f"{name}: no folder; expected at least one student run")
        for block, names in (("compare", set(self.compare)), ("teachers", set(self.teachers))):
            if taken := sorted({*METHODS, *(self.compare if block == "teachers" else ())} & names):
                raise ConfigError(
                    f"{block}: the name {taken[0]!r} is that of another row of the table ({', '.join(METHODS)}); choose another"
                )
        for name in self.tasks:
            if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
                raise ConfigError(f"tasks: name {name!r}; expected small letters, digits and underscores, as in poison_hard")
