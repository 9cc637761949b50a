"""What the teacher stage can be told."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from influcoder.errors import ConfigError
from influcoder.influence.decoder import DecoderConfig
from influcoder.influence.finetune import FinetuneConfig
from influcoder.influence.gradients import GradientConfig
from influcoder.readers import DataSource
from influcoder.text_format import TextFormat


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
    method: Literal["influcoder"] = "influcoder"
    """influcoder: fresh LoRA gradients, CountSketch, cosine"""
    text: TextFormat = field(default_factory=TextFormat)
    """character budgets; the student and attribution use the same"""
    finetune: FinetuneConfig | None = None
    """train the decoder on the rows first; null takes it as it is"""
    gradients: GradientConfig = field(default_factory=GradientConfig)
    """gradient space and projection"""
    seeds: tuple[int, ...] = (0, 1)
    """projection seeds, all from one pass: the first is the target, the second measures its noise (the ceiling)"""
    trainer: dict[str, Any] = field(default_factory=dict)
    """arguments of lightning.pytorch.Trainer for the fine-tuning"""

    def __post_init__(self) -> None:
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise ConfigError(f"seeds: {list(self.seeds)}; expected at least one, each once")
        if self.decoder.fresh is not None and self.finetune is None:
            raise ConfigError("finetune: null with a fresh decoder, whose random weights know nothing; give a finetune block")
        if self.decoder.adapter is not None and self.finetune is not None:
            raise ConfigError("finetune: given together with decoder.adapter; the adapter is taken as trained; drop one of the two")
