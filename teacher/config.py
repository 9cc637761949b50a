"""What the teacher stage can be told."""

from __future__ import annotations

from dataclasses import dataclass, field

from influcoder.errors import ConfigError
from influcoder.influence.decoder import DecoderConfig
from influcoder.influence.finetune import FinetuneConfig
from influcoder.influence.gradients import GradientConfig
from influcoder.influence.methods import METHODS, MethodName, Normalise
from influcoder.program import Setting
from influcoder.readers import DataSource
from influcoder.text_format import TextFormat


@dataclass(frozen=True, kw_only=True)
class ChecksConfig:
    """What is measured beside the features, on a seeded sample of rows."""

    queries: int = 16
    """rows whose whole gradients are held for the exact products; 0 leaves the comparison out"""
    rows: int = 200
    """rows that they are compared with"""
    max_bytes: int = 2 << 30
    """of whole query gradients in memory; a decoder that needs more goes without the comparison"""

    def __post_init__(self) -> None:
        if self.queries < 0 or self.rows < 3 or self.max_bytes < 1:
            raise ConfigError(f"checks: queries {self.queries}, rows {self.rows}, max_bytes {self.max_bytes}; expected at least 0, 3, 1")


@dataclass(frozen=True, kw_only=True)
class EkfacConfig:
    """Over what method ekfac measures curvature; every seed has its own sample and labels."""

    rows: int = 1000
    """of a seeded sample of the pool, or all"""
    draws: int = 2
    """of labels a row, from the decoder itself"""

    def __post_init__(self) -> None:
        if self.rows < 1 or self.draws < 1:
            raise ConfigError(f"ekfac: rows {self.rows}, draws {self.draws}; expected at least 1 of each")


@dataclass(frozen=True, kw_only=True)
class TeacherConfig:
    """Rank training rows by the gradient influence of a decoder (python -m teacher CONFIG.yaml)."""

    output: str
    """run directory to make; must not exist"""
    rows: DataSource
    """training rows whose influence is measured"""
    decoder: DecoderConfig
    """the model whose gradients are taken"""
    queries: DataSource | None = None
    """rows that show a behaviour (weight +1) or its contrast (-1); null when only the rows' kernel is wanted"""
    method: MethodName = "influcoder"
    """influcoder: cosine of gradients; tracin: products over checkpoints; less: cosines with Adam's step over checkpoints;
    logra: products with the damped inverse Fisher; trackstar: cosines with optimiser's second moment and Fisher of rows and queries;
    ekfac: products with the damped inverse Gauss-Newton matrix, by Kronecker factors of whole gradients;
    f_influence: signed mu over checkpoints, with intervals"""
    normalise: Normalise | None = None
    """unit: cosines; none: products; relatif: products over the row's length (of self-influence); null is the method's own"""
    damping: float = 0.1
    """of the Fisher (logra, trackstar) or the Gauss-Newton matrix (ekfac): share of each layer's mean eigenvalue"""
    text: TextFormat = field(default_factory=TextFormat)
    """character budgets; the student and attribution use the same"""
    finetune: FinetuneConfig | None = None
    """train the decoder on the rows first; null takes it as it is"""
    checkpoints: str | None = None
    """folder of the checkpoints of an earlier fine-tuning of this decoder, as RUN/checkpoints; null takes those of `finetune`"""
    gradients: GradientConfig = field(default_factory=GradientConfig)
    """gradient space and projection"""
    ekfac: EkfacConfig = field(default_factory=EkfacConfig)
    """curvature of method ekfac"""
    seeds: tuple[int, ...] = (0, 1)
    """projection seeds, all from one pass: the first is the target, the second measures its noise (the ceiling)"""
    checks: ChecksConfig = field(default_factory=ChecksConfig)
    """self-checks of the run"""
    trainer: dict[str, Setting] = field(default_factory=dict)
    """arguments of lightning.pytorch.Trainer for the fine-tuning"""
    wandb_project: str | None = None
    """log the finished run to this Weights & Biases project; null logs nothing"""

    def __post_init__(self) -> None:
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise ConfigError(f"seeds: {list(self.seeds)}; expected at least one, each once")
        if not self.damping > 0:
            raise ConfigError(f"damping: {self.damping}; expected above 0")
        self._check_training()
        self._check_method()

    def _check_training(self) -> None:
        if self.finetune is None:
            if self.decoder.fresh is not None:
                raise ConfigError("finetune: null with a fresh decoder, whose random weights know nothing; give a finetune block")
            return
        if self.checkpoints is not None:
            raise ConfigError("checkpoints: given together with finetune, which makes its own; drop one of the two")
        if self.decoder.adapter is not None:
            raise ConfigError("finetune: given together with decoder.adapter; the adapter is taken as trained; drop one of the two")
        if self.finetune.adapter is not None and self.decoder.fresh is not None:
            raise ConfigError(
                "finetune.adapter: given with a fresh decoder, whose random weights it would leave as they are; train all of them"
            )
        if self.decoder.device_map is not None:
            raise ConfigError("finetune: given with decoder.device_map; train with your own launcher, then give the path")

    def _check_method(self) -> None:
        method = METHODS[self.method]
        if method.every_checkpoint and self.finetune is None and self.checkpoints is None:
            raise ConfigError(
                f"finetune: null with method {self.method}, which asks the checkpoints of a fine-tuning; give a finetune block, or checkpoints"
            )
        if method.noise_scaled and self.normalise not in (None, "none", "layers"):
            raise ConfigError(
                f"normalise: {self.normalise} with method {self.method}, whose products are mu; expected none, or layers, or nothing"
            )
        if method.fisher and self.gradients.sketch != "none":
            raise ConfigError(
                f"gradients.sketch: {self.gradients.sketch} with method {self.method}, whose preconditioner is one block a layer; "
                "expected none, with rank and output_rank of 8 to 64"
            )
        if method.ekfac and (self.gradients.rank is not None or self.gradients.output_rank is not None):
            raise ConfigError(
                f"gradients: rank {self.gradients.rank}, output_rank {self.gradients.output_rank} with method {self.method}, which rotates "
                "whole gradients; expected null for both, and dim coordinates of its eigenbasis are kept"
            )
        if method.fisher == "both" and self.queries is None:
            raise ConfigError(f"queries: null with method {self.method}, which weighs the rows' Fisher against the queries'; give queries")
