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
from transformers import get_linear_schedule_with_warmup

from influcoder.metrics import per_query_spearman
from student.config import OptimizerConfig, RecipeConfig
from student.data import Block, Pairs, Tokens
from student.losses import full_block_loss, reference_loss, signed_power

MONITOR = "validation_per_query_spearman"


class Distillation(LightningModule):
    """Trains the encoder so that the dot product of its unit embeddings ranks as the teacher does."""

    def __init__(self, encoder: SentenceTransformer, recipe: RecipeConfig, optimizer: OptimizerConfig) -> None:
        super().__init__()
        self.encoder, self.recipe, self.optimizer = encoder, recipe, optimizer

    def embed(self, tokens: Tokens) -> Tensor:
        """Return unit embeddings (rows, dim)."""
        embeddings: Tensor = self.encoder({name: tensor.to(self.device) for name, tensor in tokens.items()})["sentence_embedding"]
        return torch.nn.functional.normalize(embeddings.float(), dim=-1)

    def training_step(self, block: Block, batch_index: int) -> Tensor:
        """Return the loss of one block."""
        embeddings = self.embed(block.tokens)
        scores = embeddings[block.queries] @ embeddings[block.candidates].T
        target, mask = block.target.to(scores.device), block.mask.to(scores.device)
        if self.recipe.objective == "full_block":
            loss = full_block_loss(scores, signed_power(target, self.recipe.target_exponent), mask, self.recipe.row_weight)
        else:
            loss = reference_loss(scores, target, mask, self.recipe.kl_weight, self.recipe.temperature)
        self.log("loss", loss, prog_bar=True, batch_size=1)
        return loss

    def configure_optimizers(self) -> Any:
        """Return AdamW and its schedule; without `max_epochs` or `max_steps` the rate stays at its peak after warm-up."""
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.optimizer.learning_rate, weight_decay=self.optimizer.weight_decay)
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
        self.target = pairs.asking[asked] @ pairs.features[ranked].T
        self.patience, self.without_progress = patience, 0
        self.best, self.best_epoch = -2.0, -1
        self.best_weights: dict[str, Tensor] = {}

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Validate; Lightning logs the figure to every logger."""
        assert isinstance(pl_module, Distillation)
        figure = self.measure(pl_module.encoder)
        pl_module.log(MONITOR, figure, prog_bar=True)
        if figure > self.best:
            self.best, self.best_epoch, self.without_progress = figure, trainer.current_epoch, 0
            self.best_weights = {name: tensor.detach().cpu().clone() for name, tensor in pl_module.encoder.state_dict().items()}
        else:
            self.without_progress += 1
            trainer.should_stop = trainer.should_stop or self.without_progress >= self.patience

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
