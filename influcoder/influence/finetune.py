"""Fine-tuning a decoder on the pool whose influence is to be measured.

Influence is only claimed for rows that the decoder was trained on, so the teacher fine-tunes on *all* rows of the pool.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from lightning.pytorch import LightningModule, Trainer
from peft import LoraConfig, get_peft_model
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, get_linear_schedule_with_warmup

from influcoder.errors import ConfigError
from influcoder.influence.capture import as_layer
from influcoder.influence.decoder import Decoder
from influcoder.influence.tokens import TokenizedRow, pad, pad_token_id, row_losses, token_batches


@dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """A LoRA on every linear layer but the output layer: what is trained, and then the gradient space."""

    rank: int = 16
    alpha: float | None = None
    """null is 2 * rank"""
    dropout: float = 0.0
    """while training; gradients are taken without"""

    def __post_init__(self) -> None:
        if self.rank < 1 or (self.alpha is not None and self.alpha <= 0) or not 0 <= self.dropout < 1:
            raise ConfigError(
                f"finetune.adapter: rank {self.rank}, alpha {self.alpha}, dropout {self.dropout}; "
                "expected a rank of at least 1, an alpha above 0, a dropout in [0, 1)"
            )


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """AdamW with linear warm-up and decay."""

    adapter: AdapterConfig | None = None
    """train a LoRA adapter, as LESS does; null trains all weights"""
    share: float = 1.0
    """share of the rows, drawn by the seed, that is trained on; LESS warms up on .05"""
    checkpoints: int = 1
    """points saved at equal distances, with Adam's moments; tracin and less ask all of them"""

    epochs: int = 2
    """passes over the pool"""
    learning_rate: float = 5e-4
    """peak"""
    warmup_share: float = 0.1
    """share of the steps before the peak, 0 to 1"""
    weight_decay: float = 0.01
    max_batch_tokens: int = 2048
    """padded tokens a batch"""
    seed: int = 0
    """order of the batches"""

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1 or self.checkpoints < 1:
            raise ConfigError(
                f"finetune: share {self.share}, checkpoints {self.checkpoints}; expected a share in (0, 1], at least 1 checkpoint"
            )
        if self.epochs < 1 or self.learning_rate <= 0 or not 0 <= self.warmup_share <= 1 or self.max_batch_tokens < 1:
            raise ConfigError(
                f"finetune: epochs {self.epochs}, learning_rate {self.learning_rate}, warmup_share {self.warmup_share}, "
                f"max_batch_tokens {self.max_batch_tokens}; expected positive numbers, warmup_share in 0 to 1"
            )


class DecoderModule(LightningModule):
    """Next-token training on the responses; the loss of a batch is the mean of its rows' mean losses (nats)."""

    def __init__(self, decoder: Decoder, config: FinetuneConfig) -> None:
        super().__init__()
        self.model, self.config = decoder.model, config

    def training_step(self, batch: tuple[Tensor, Tensor, Tensor], batch_index: int) -> Tensor:
        """Return the loss of one padded batch."""
        loss = row_losses(self.model, *batch).mean()
        self.log("decoder_loss", loss, prog_bar=True, batch_size=len(batch[0]))
        return loss

    def configure_optimizers(self) -> Any:
        """Return AdamW and its schedule."""
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=self.config.learning_rate, weight_decay=self.config.weight_decay)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = get_linear_schedule_with_warmup(optimizer, int(self.config.warmup_share * steps), steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class _ShuffledBatches:
    """The same length-sorted batches in a new seeded order every epoch."""

    def __init__(self, rows: Sequence[TokenizedRow], config: FinetuneConfig) -> None:
        self.batches, self.random = token_batches(rows, config.max_batch_tokens), random.Random(config.seed)

    def __iter__(self) -> Any:
        order = list(self.batches)
        self.random.shuffle(order)
        return iter(order)

    def __len__(self) -> int:
        return len(self.batches)


def add_adapter(decoder: Decoder, config: AdapterConfig, seed: int) -> Decoder:
    """Return the decoder with a fresh LoRA, the only thing that asks for gradients."""
    head = decoder.model.get_output_embeddings()
    names = [name for name, module in decoder.model.named_modules() if as_layer(module) is not None and module is not head]
    settings = LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha or 2 * config.rank,  # type: ignore[arg-type]  # any positive number is divided by the rank
        lora_dropout=config.dropout,
        target_modules=names,
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        adapted = cast(PreTrainedModel, get_peft_model(decoder.model, settings))
    return Decoder(adapted, decoder.tokenizer, decoder.max_tokens)


def drawn_share(rows: Sequence[TokenizedRow], config: FinetuneConfig) -> list[TokenizedRow]:
    """Return the rows that are trained on, in their order."""
    count = max(1, round(config.share * len(rows)))
    return [rows[place] for place in sorted(random.Random(config.seed).sample(range(len(rows)), count))]


def finetune(decoder: Decoder, rows: Sequence[TokenizedRow], config: FinetuneConfig, trainer: Trainer) -> None:
    """Train the decoder in place."""
    device, padding = decoder.device, pad_token_id(decoder.tokenizer)
    loader: DataLoader[Any] = DataLoader(
        rows,  # type: ignore[arg-type]  # any sequence is a dataset
        batch_sampler=_ShuffledBatches(rows, config),
        collate_fn=lambda batch: pad(batch, padding, torch.device("cpu")),
    )
    decoder.model.train()
    trainer.fit(DecoderModule(decoder, config), loader)
    decoder.model.to(device).eval()  # type: ignore[arg-type]  # transformers' stub of `to`
