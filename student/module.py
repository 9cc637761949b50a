"""The Lightning module around a SentenceTransformer, and the callback that keeps its best weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import get_linear_schedule_with_warmup

from influcoder.metrics import per_query_spearman
from student.caching import embed_block
from student.config import OptimizerConfig, RecipeConfig
from student.data import Block, Pairs, Tokens
from student.objective import block_loss

MONITOR = "validation_per_query_spearman"


class Distillation(LightningModule):
    """Trains the encoder so that the dot product of its unit embeddings ranks as the teacher does."""

    def __init__(self, encoder: SentenceTransformer, recipe: RecipeConfig, optimizer: OptimizerConfig, seed: int) -> None:
        super().__init__()
        self.encoder, self.recipe, self.optimizer, self.seed = encoder, recipe, optimizer, seed
        self.average: AveragedModel | None = None
        if optimizer.ema is not None:
            self.average = AveragedModel(encoder, multi_avg_fn=get_ema_multi_avg_fn(optimizer.ema)).requires_grad_(False)

    @property
    def result(self) -> SentenceTransformer:
        """The encoder that is validated and saved: the average of weights where there is one."""
        found = self.encoder if self.average is None else self.average.module
        assert isinstance(found, SentenceTransformer)
        return found

    def embed(self, tokens: Tokens) -> Tensor:
        """Return unit embeddings (rows, dim)."""
        embeddings: Tensor = self.encoder({name: tensor.to(self.device) for name, tensor in tokens.items()})["sentence_embedding"]
        return torch.nn.functional.normalize(embeddings.float(), dim=-1)

    def training_step(self, block: Block, batch_index: int) -> Tensor:
        """Return the loss of one block."""
        embeddings = embed_block(
            self.embed,
            block.tokens,
            self.recipe.max_batch_tokens,
            seed=(self.seed, self.current_epoch, batch_index),
            rank=self.global_rank,
            processes=self.trainer.world_size,
        )
        with torch.autocast(self.device.type, enabled=False):  # scores lie close together: float32 whatever the encoder's precision
            loss = self.loss_of(embeddings, block)
        if (self.global_step + 1) % self.trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]  # Lightning sets it from afar
            self.record("loss", loss.item(), self.global_step)
        return loss

    def loss_of(self, embeddings: Tensor, block: Block) -> Tensor:
        """Return the loss of a block's embeddings (texts, dim)."""
        return block_loss(embeddings, block, self.recipe)

    def record(self, name: str, value: float, step: int) -> None:
        """Show a figure and write it to every logger at once: Lightning writes later than a state is saved, and a kill would cost it."""
        self.log(name, value, prog_bar=True, logger=False, batch_size=1, sync_dist=True)
        for logger in self.loggers:
            logger.log_metrics({name: value, "epoch": self.current_epoch}, step=step)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Take the step, then the average."""
        super().optimizer_step(*args, **kwargs)
        if self.average is not None:
            self.average.update_parameters(self.encoder)

    def configure_optimizers(self) -> Any:
        """Return AdamW and its schedule; without `max_epochs` or `max_steps` the rate stays at its peak after warm-up."""
        optimizer = torch.optim.AdamW(self.encoder.parameters(), lr=self.optimizer.learning_rate, weight_decay=self.optimizer.weight_decay)
        steps = float(self.trainer.estimated_stepping_batches)
        total = int(steps) if steps != float("inf") else 10**9
        schedule = get_linear_schedule_with_warmup(optimizer, min(int(self.optimizer.warmup_share * total), 1000), total)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class KeepBest(Callback):
    """After every epoch measures the encoder on the validation split, keeps the best weights, stops without progress."""

    def __init__(self, pairs: Pairs, patience: int) -> None:
        asked, ranked = slice(None), slice(None)
        if pairs.rows_ask:  # a third of the rows asks for the others
            third = max(1, len(pairs.texts) // 3)
            asked, ranked = slice(third), slice(third, None)
        self.queries, self.candidates = pairs.askers[asked], pairs.texts[ranked]
        self.vectors = pairs.asking[asked], pairs.features[ranked]
        """of the teacher, whose products are the target"""
        self.target = self.vectors[0] @ self.vectors[1].T
        self.patience, self.without_progress = patience, 0
        self.best, self.best_epoch = -2.0, -1
        self.best_weights: dict[str, Tensor] = {}

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed training has to know."""
        return {name: getattr(self, name) for name in ("without_progress", "best", "best_epoch", "best_weights")}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take it up."""
        vars(self).update(state_dict)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop at once where a killed training had stopped."""
        trainer.should_stop = trainer.should_stop or self.without_progress >= self.patience

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Validate in the first process; every one receives the figure and stops with the others."""
        assert isinstance(pl_module, Distillation)
        figure = trainer.strategy.broadcast(self.measure(pl_module.result) if trainer.is_global_zero else 0.0)
        pl_module.record(MONITOR, figure, trainer.global_step - 1)
        if figure > self.best:
            self.take(figure, pl_module.result, trainer.current_epoch)
        else:
            self.without_progress += 1
            trainer.should_stop = trainer.should_stop or self.without_progress >= self.patience

    def take(self, figure: float, encoder: SentenceTransformer, epoch: int) -> None:
        """Keep these weights as the best."""
        self.best, self.best_epoch, self.without_progress = figure, epoch, 0
        self.best_weights = {name: tensor.detach().cpu().clone() for name, tensor in encoder.state_dict().items()}

    def measure(self, encoder: SentenceTransformer) -> float:
        """Return the mean per-query Spearman on the validation split."""
        training = encoder.training
        vectors = [encode(encoder, texts) for texts in (self.queries, self.candidates)]
        encoder.train(training)
        return float(per_query_spearman(vectors[0] @ vectors[1].T, self.target).mean())

    def restore(self, encoder: SentenceTransformer) -> None:
        """Put the best weights back."""
        if self.best_weights:
            encoder.load_state_dict(self.best_weights)


def encode(encoder: SentenceTransformer, texts: Sequence[str]) -> NDArray[np.float32]:
    """Return unit embeddings (rows, dim) in eval mode."""
    encoder.eval()
    found: NDArray[np.float32] = encoder.encode(list(texts), normalize_embeddings=True, show_progress_bar=False, batch_size=64)
    return found
