"""Settings of the MNIST example."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from examples.mnist.classifier import TrainingConfig
from influcoder.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class MnistConfig:
    """Influence of training digits on test digits, some labels wrong: figures and a page of galleries."""

    data: str | None = None
    """folder of the four idx files; null: $INFLUCODER_DATA/mnist, else ../shared/data/mnist, else scikit-learn's digits"""
    output: str = "runs/mnist"
    method: Literal["ekfac", "exact"] = "ekfac"
    """of scores between digits; exact: conjugate gradients on the whole Gauss-Newton matrix, about 5 s a query and 1 000 curvature rows.
    Self-influence is EK-FAC's in both: it would take a solve a row"""
    rows: int = 20000
    """training digits, drawn by the seed; fewer where there are not as many"""
    flipped: float = 0.1
    """share of them with a wrong label, 0 to 1"""
    queries: int = 100
    """test digits, drawn by the seed"""
    curvature_rows: int = 4000
    """of the training digits, whose mean the curvature is"""
    damping: float = 0.1
    """in mean eigenvalues: of each layer with ekfac, of the whole matrix with exact"""
    training: TrainingConfig = field(default_factory=TrainingConfig)
    seed: int = 0

    def __post_init__(self) -> None:
        if self.rows < 100 or self.queries < 1 or self.curvature_rows < 1 or not 0 < self.flipped < 1 or self.damping <= 0:
            raise ConfigError(
                f"rows {self.rows}, queries {self.queries}, curvature_rows {self.curvature_rows}, flipped {self.flipped}, damping "
                f"{self.damping}; expected at least 100 rows, 1 query, 1 curvature row, a share in (0, 1), a damping above 0"
            )
