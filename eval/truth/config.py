"""What `python -m eval.truth` can be told."""

from __future__ import annotations

from dataclasses import dataclass, field

from eval.methods import Role
from influcoder.errors import ConfigError
from influcoder.readers import DataSource


@dataclass(frozen=True, kw_only=True)
class MethodConfig:
    """Scores to be held against retraining. Give exactly one of `teacher` and `encoder`."""

    teacher: str | None = None
    """teacher run with the same rows and queries: its scores"""
    seed: int | None = None
    """of that run; null takes its first"""
    encoder: str | None = None
    """encoder folder: products of its embeddings; it must not have been trained on these rows"""
    role: Role = "reference"
    """its place in the table"""

    def __post_init__(self) -> None:
        if (self.teacher is None) == (self.encoder is None):
            raise ConfigError("methods: give exactly one of `teacher` and `encoder` for each")


@dataclass(frozen=True, kw_only=True)
class LdsConfig:
    """Linear datamodelling score: retrain on random halves of the rows."""

    subsets: int = 100
    """random halves; below 50 methods can hardly be told apart"""
    seeds: int = 1
    """trainings of each half, averaged; two give a ceiling"""

    def __post_init__(self) -> None:
        if self.subsets < 3 or self.seeds < 1:
            raise ConfigError(f"lds: subsets {self.subsets}, seeds {self.seeds}; expected at least 3 and 1")


@dataclass(frozen=True, kw_only=True)
class TailPatchConfig:
    """One training step on a row that a method puts first, or last: does the query's response become likelier?"""

    k: int = 10
    """rows a query at each end"""
    queries: int = 50
    """of the queries, at most; drawn by the seed"""
    learning_rate: float = 1e-4
    """of the step, in Adam's units: gradient over the root of the second moment at the last checkpoint"""

    def __post_init__(self) -> None:
        if self.k < 1 or self.queries < 1 or self.learning_rate <= 0:
            raise ConfigError(f"tail_patch: k {self.k}, queries {self.queries}, learning_rate {self.learning_rate}; expected above 0")


@dataclass(frozen=True, kw_only=True)
class RemovalConfig:
    """Remove the rows that a method flags, retrain, and ask for the behaviour."""

    run: str
    """eval run whose methods have ranked the rows"""
    task: str
    """its detection task; whose queries must not be those below"""
    methods: tuple[str, ...]
    """rows of its table"""
    budgets: tuple[int, ...]
    """how many rows are removed; shared by the folds"""
    queries: DataSource
    """held-out rows: the behaviour (weight +1) and what a model without it would answer (weight -1)"""
    benign: DataSource
    """held-out ordinary rows: the price of removing"""
    seeds: int = 3
    """trainings of each set of rows"""

    def __post_init__(self) -> None:
        if not self.methods or not self.budgets or min(self.budgets) < 1 or self.seeds < 1:
            raise ConfigError(
                f"removal: methods {list(self.methods)}, budgets {list(self.budgets)}, seeds {self.seeds}; "
                "expected a method, a budget above 0 and a seed at least"
            )


@dataclass(frozen=True, kw_only=True)
class TruthConfig:
    """Hold scores against models that were trained again without the rows (python -m eval.truth CONFIG.yaml)."""

    teacher: str
    """folder of a complete teacher run with a fine-tuning: that is what is repeated on parts of its rows"""
    output: str
    """folder to make for this run; must not exist"""
    methods: dict[str, MethodConfig] = field(default_factory=dict)
    """lds, tail_patch: what is compared, beside the teacher and the floors"""
    floors: bool = True
    """compare BM25, hidden states and chance too"""
    lds: LdsConfig | None = None
    """null leaves it out"""
    tail_patch: TailPatchConfig | None = None
    """null leaves it out"""
    removal: dict[str, RemovalConfig] = field(default_factory=dict)
    """by name: behaviours to be removed"""
    workers: int = 2
    """retrainings side by side, one thread each"""
    seed: int = 0
    """of the subsets and the bootstrap"""
    bootstrap_draws: int = 1000
    """resamples behind each 95 % interval"""
    device: str = "auto"
    """where encoders and decoder run"""

    def __post_init__(self) -> None:
        if self.workers < 1 or self.bootstrap_draws < 1:
            raise ConfigError(f"workers {self.workers}, bootstrap_draws {self.bootstrap_draws}; expected at least 1 of each")
        if self.lds is None and self.tail_patch is None and not self.removal:
            raise ConfigError("lds, tail_patch, removal: none given; expected at least one of them")
