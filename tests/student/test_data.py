from __future__ import annotations

import numpy as np
import pytest
import torch

from student.config import RecipeConfig
from student.data import Block, DistillationData, Tokens, plan_epoch

FULL = RecipeConfig(block_rows=8)
REFERENCE = RecipeConfig(objective="reference", num_queries=3, num_candidates=5)


@pytest.mark.parametrize("recipe", [FULL, REFERENCE])
def test_a_plan_depends_on_seed_and_epoch_alone(recipe: RecipeConfig) -> None:
    def flat(seed: int, epoch: int) -> list[int]:
        return [int(row) for rows, _ in plan_epoch(40, recipe, seed, epoch) for row in rows]

    np.random.seed(1)
    first = flat(0, 2)
    np.random.seed(2)
    assert flat(0, 2) == first
    assert flat(0, 3) != first != flat(1, 2)


@pytest.mark.parametrize(("num_rows", "size"), [(40, 8), (43, 8), (8, 8), (6, 6)])
def test_full_blocks_hold_a_row_at_most_once_an_epoch_and_every_row_in_time(num_rows: int, size: int) -> None:
    seen: set[int] = set()
    for epoch in range(6):
        plan = plan_epoch(num_rows, FULL, 0, epoch)
        rows = [int(row) for found, _ in plan for row in found]
        assert len(rows) == len(set(rows)) == num_rows - num_rows % size
        assert all(len(found) == size and num_queries == 0 for found, num_queries in plan)
        seen |= set(rows)
    assert seen == set(range(num_rows))


def test_reference_blocks_keep_queries_and_candidates_apart() -> None:
    plan = plan_epoch(12, REFERENCE, 0, 0)
    queries = [int(row) for rows, count in plan for row in rows[:count]]
    assert sorted(queries) == list(range(12))
    for rows, count in plan:
        assert (count, len(rows), len(set(rows.tolist()))) == (3, 8, 8)


def test_few_rows_still_make_a_reference_block() -> None:
    (first, *_) = plan_epoch(6, RecipeConfig(objective="reference"), 0, 0)
    rows, count = first
    assert (count, len(rows)) == (3, 6)


@pytest.mark.parametrize("recipe", [FULL, REFERENCE])
def test_targets_are_products_of_the_rows_that_are_tokenised(recipe: RecipeConfig) -> None:
    features = np.random.default_rng(0).normal(size=(24, 4)).astype(np.float32)
    asked: list[list[str]] = []

    def tokenize(texts: list[str]) -> Tokens:
        asked.append(texts)
        return {"input_ids": torch.zeros(len(texts), 1)}

    data = DistillationData([str(row) for row in range(24)], features, tokenize, recipe, seed=3)
    blocks: list[Block] = list(data.train_dataloader())
    assert len(blocks) == len(asked) == len(plan_epoch(24, recipe, 3, 0))
    for block, texts in zip(blocks, asked, strict=True):
        rows = np.array([int(text) for text in texts])
        queries, candidates = rows[block.queries.numpy()], rows[block.candidates.numpy()]
        np.testing.assert_allclose(block.target.numpy(), features[queries] @ features[candidates].T, rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(block.mask.numpy(), queries[:, None] != candidates[None, :])
        assert (block.mask.sum() < block.mask.numel()) == (recipe is FULL)  # only a full block has a row beside itself
