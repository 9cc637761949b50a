"""Batches of the distillation: which texts meet in a block, and the teacher's scores of all their pairs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from lightning.pytorch import LightningDataModule, Trainer
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from torch import Tensor

from student.config import RecipeConfig
from student.coordinates import principal_coordinates

Tokens = dict[str, Tensor]
Tokenize = Callable[[list[str]], Tokens]
Places = NDArray[np.int64]


@dataclass(frozen=True)
class Pairs:
    """Texts that ask, texts that are ranked, and the vectors whose products are the teacher's scores."""

    askers: list[str]
    asking: NDArray[np.float32]
    """(askers, dim)"""
    texts: list[str]
    features: NDArray[np.float32]
    """(texts, dim)"""
    rows_ask: bool
    """the ranked texts ask themselves, each all but itself"""
    second_seed: Pairs | None = None
    """the same with the vectors of the teacher's second seed, where pairs are weighed by their uncertainty"""

    def scores(self, asked: Places, ranked: Places) -> Tensor:
        """Return the teacher's scores (asked, ranked)."""
        return torch.from_numpy(self.asking[asked]) @ torch.from_numpy(self.features[ranked]).T

    @property
    def targets(self) -> Tensor:
        """One vector (texts, dim) for the one embedding that each ranked text has.

        Where rows ask, an embedding is on both sides of a score, and its target is the mean of the row's two vectors, the asking one
        at the other's scale; a symmetric teacher has but one. On LESS that is worth as much as a head for either side (docs/LOG.md).
        """
        ranked = torch.from_numpy(self.features)
        if not self.rows_ask:
            return ranked
        asking = torch.from_numpy(self.asking)
        mean: Tensor = (asking * (ranked.norm() / asking.norm())).add_(ranked).div_(2)
        return mean

    @property
    def every_text(self) -> list[str]:
        """All texts, each once."""
        return self.texts if self.rows_ask else [*self.askers, *self.texts]


class Block(NamedTuple):
    """One batch. Texts are encoded once; queries and candidates are positions among them."""

    tokens: Tokens
    """of the block's texts"""
    queries: Tensor
    """(Q,) positions"""
    candidates: Tensor
    """(N,) positions"""
    target: Tensor
    """(Q, N) the teacher's scores"""
    second_target: Tensor | None
    """(Q, N) those of its second seed, where pairs are weighed by their uncertainty"""
    coordinates: Tensor
    """(N, dim) the teacher's coordinates of the candidates at the encoder's width; (N, 0) where no loss asks for them"""

    @property
    def mask(self) -> Tensor:
        """Return which pairs count, (Q, N): all but a row with itself."""
        return self.queries[:, None] != self.candidates[None, :]


def plan_epoch(num_asking: int | None, num_rows: int, recipe: RecipeConfig, seed: int, epoch: int) -> list[tuple[Places, Places]]:
    """Return an epoch's blocks as (who asks, who is ranked): a pure function of (seed, epoch).

    Rows ask (`num_asking` is None):
        full_block: the rows in random order, cut into blocks; the same array twice, since each row asks all others.
        reference: every row asks once, for candidates drawn from the other rows.
    Queries ask: some queries and some rows a block, until each of either has been in one, but for a remainder.
    """
    random = np.random.default_rng([seed, epoch])
    full = recipe.objective == "full_block"
    if num_asking is not None:
        asked_size = min(recipe.block_rows // 2 if full else recipe.num_queries, num_asking)
        ranked_size = min(recipe.block_rows - asked_size if full else recipe.num_candidates, num_rows)
        count = max(num_asking // asked_size, num_rows // ranked_size)
        return list(zip(_lots(random, num_asking, asked_size, count), _lots(random, num_rows, ranked_size, count), strict=True))
    order = random.permutation(num_rows)
    if full:
        return [(rows, rows) for rows in _cut(order, min(recipe.block_rows, num_rows))]
    blocks = []
    for queries in _cut(order, min(recipe.num_queries, num_rows // 2)):
        others = np.setdiff1d(order, queries)
        blocks.append((queries, random.choice(others, min(recipe.num_candidates, len(others)), replace=False)))
    return blocks


def _cut(order: Places, size: int) -> list[Places]:
    return [order[start : start + size] for start in range(0, len(order) - size + 1, size)]


def _lots(random: np.random.Generator, num: int, size: int, count: int) -> list[Places]:
    """Return `count` lots, cut from one random order after another: nothing stands twice in a lot."""
    lots: list[Places] = []
    while len(lots) < count:
        lots += _cut(random.permutation(num), size)
    return lots[:count]


class Blocks:
    """An epoch's blocks, made as they are asked for."""

    def __init__(
        self, pairs: Pairs, coordinates: Tensor, tokenize: Tokenize, plan: list[tuple[Places, Places]], trainer: Trainer | None
    ) -> None:
        self.pairs, self.coordinates, self.tokenize, self.plan, self.trainer = pairs, coordinates, tokenize, plan, trainer

    def __len__(self) -> int:
        return len(self.plan)

    def __iter__(self) -> Iterator[Block]:
        done = self.trainer.fit_loop.batch_idx + 1 if self.trainer else 0  # of this epoch: none, unless a saved state was restored
        for asked, ranked in self.plan[done:]:
            yield self._make(asked, ranked)

    def _make(self, asked: Places, ranked: Places) -> Block:
        pairs = self.pairs
        texts, queries = [pairs.texts[row] for row in ranked], torch.arange(len(ranked))
        candidates = queries
        if asked is not ranked:
            texts = [pairs.askers[query] for query in asked] + texts
            queries, candidates = torch.arange(len(asked)), len(asked) + candidates
        return Block(
            tokens=self.tokenize(texts),
            queries=queries,
            candidates=candidates,
            target=pairs.scores(asked, ranked),
            second_target=pairs.second_seed.scores(asked, ranked) if pairs.second_seed else None,
            coordinates=self.coordinates[ranked],
        )


class DistillationData(LightningDataModule):
    """Training blocks; needs `reload_dataloaders_every_n_epochs=1`, since every epoch has its own plan."""

    def __init__(self, pairs: Pairs, tokenize: Tokenize, recipe: RecipeConfig, seed: int) -> None:
        super().__init__()
        self.pairs, self.tokenize, self.recipe, self.seed = pairs, tokenize, recipe, seed
        self.coordinates = torch.empty(len(pairs.texts), 0)

    def setup(self, stage: str) -> None:
        """Compute the rows' coordinates at the width of the encoder that is to be trained, where a loss asks for them."""
        if self.recipe.needs_coordinates:
            assert self.trainer is not None
            encoder = self.trainer.lightning_module.encoder
            assert isinstance(encoder, SentenceTransformer)
            width = encoder.get_embedding_dimension()
            assert width is not None  # only encoders without pooling have none
            self.coordinates = principal_coordinates(self.pairs.targets, width).coordinates

    def train_dataloader(self) -> Blocks:
        """Return the blocks of the current epoch."""
        pairs, epoch = self.pairs, self.trainer.current_epoch if self.trainer else 0
        num_asking = None if pairs.rows_ask else len(pairs.askers)
        plan = plan_epoch(num_asking, len(pairs.texts), self.recipe, self.seed, epoch)
        return Blocks(pairs, self.coordinates, self.tokenize, plan, self.trainer)
