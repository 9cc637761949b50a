"""Batches of the distillation: which rows meet in a block, their texts, and the teacher's scores of all their pairs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from student.config import RecipeConfig

Tokens = dict[str, Tensor]
Tokenize = Callable[[list[str]], Tokens]


class Block(NamedTuple):
    """One batch. Rows are encoded once; queries and candidates are positions among them."""

    tokens: Tokens
    """of the texts of the block's rows"""
    queries: Tensor
    """(Q,) positions"""
    candidates: Tensor
    """(N,) positions"""
    target: Tensor
    """(Q, N) the teacher's scores"""

    @property
    def mask(self) -> Tensor:
        """Return which pairs count, (Q, N): all but a row with itself."""
        return self.queries[:, None] != self.candidates[None, :]


def plan_epoch(num_rows: int, recipe: RecipeConfig, seed: int, epoch: int) -> list[tuple[NDArray[np.int64], int]]:
    """Return an epoch's blocks as (rows, number of leading rows that are queries): a pure function of (seed, epoch).

    full_block: the rows in random order, cut into blocks, each row query and candidate at once (number 0).
    reference: every row is a query once, with candidates drawn from the other rows.
    """
    random = np.random.default_rng([seed, epoch])
    order = random.permutation(num_rows)
    if recipe.objective == "full_block":
        size = min(recipe.block_rows, num_rows)
        return [(order[start : start + size], 0) for start in range(0, num_rows - size + 1, size)]
    blocks = []
    size = min(recipe.num_queries, num_rows // 2)
    for start in range(0, num_rows - size + 1, size):
        queries = order[start : start + size]
        others = np.setdiff1d(order, queries)
        candidates = random.choice(others, min(recipe.num_candidates, len(others)), replace=False)
        blocks.append((np.concatenate([queries, candidates]), len(queries)))
    return blocks


class _Blocks(Dataset[Block]):
    def __init__(self, module: DistillationData, epoch: int) -> None:
        self.module = module
        self.plan = plan_epoch(len(module.train_texts), module.recipe, module.seed, epoch)

    def __len__(self) -> int:
        return len(self.plan)

    def __getitem__(self, place: int) -> Block:
        rows, num_queries = self.plan[place]
        positions = torch.arange(len(rows))
        queries, candidates = (positions[:num_queries], positions[num_queries:]) if num_queries else (positions, positions)
        vectors = torch.from_numpy(self.module.train_features[rows])
        return Block(
            tokens=self.module.tokenize([self.module.train_texts[row] for row in rows]),
            queries=queries,
            candidates=candidates,
            target=vectors[queries] @ vectors[candidates].T,
        )


class DistillationData(LightningDataModule):
    """Training blocks; needs `reload_dataloaders_every_n_epochs=1`, since every epoch has its own plan."""

    def __init__(
        self, train_texts: Sequence[str], train_features: NDArray[np.float32], tokenize: Tokenize, recipe: RecipeConfig, seed: int
    ) -> None:
        super().__init__()
        self.train_texts, self.train_features = list(train_texts), train_features
        self.tokenize, self.recipe, self.seed = tokenize, recipe, seed

    def train_dataloader(self) -> DataLoader[Block]:
        """Return the blocks of the current epoch."""
        epoch = self.trainer.current_epoch if self.trainer else 0
        return DataLoader(_Blocks(self, epoch), batch_size=None)
