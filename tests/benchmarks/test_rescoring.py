"""The curves of `benchmarks.rescoring` against loops, and the README against its results."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks import rescoring_table
from benchmarks.rescoring import RESULT, SHARES, WRITTEN, Panel, curves, measure, needed, recall_curves
from eval.bootstrap import Resampler


def first(scores: list[float], count: int) -> set[int]:
    return set(sorted(range(len(scores)), key=lambda row: (-scores[row], row))[:count])


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("values", [2, 1000])
def test_recall_is_that_of_scoring_the_short_list_again(seed: int, values: int) -> None:
    random = np.random.default_rng(seed)
    predicted, target = (random.integers(values, size=(5, 23)).astype(np.float32) for _ in range(2))
    sizes, k = np.array([1, 3, 10, 23]), 4
    alone, together, touched = recall_curves(predicted, target, k, sizes)
    for column, size in enumerate(sizes):
        lists = [first(scores, size) for scores in predicted.tolist()]
        union = set.union(*lists)
        assert touched[column] == len(union) / 23
        for query, (mine, scores) in enumerate(zip(lists, target.tolist(), strict=True)):
            wanted = first(scores, k)
            for found, candidates in ((alone, mine), (together, union)):
                # the teacher's best rows of the short-list, once these are scored again
                rescored = first([score if row in candidates else -1 for row, score in enumerate(scores)], k) & candidates
                assert found[query, column] == len(rescored & wanted) / k


def test_folds_with_queries_of_their_own_stand_side_by_side_and_seeds_are_averaged() -> None:
    random = np.random.default_rng(0)
    target = [random.normal(size=(3, 40)), random.normal(size=(3, 60))]
    blocks = [np.stack([block, -block]) for block in target]  # one seed that is right, one that has everything upside down
    alone, together, touched = curves(blocks, target, alike=False)
    assert alone.shape == together.shape == (6, len(SHARES)) and touched.shape == (len(SHARES),)
    np.testing.assert_allclose(alone[:3, 249], 0.5)  # 10 of 40 rows: all of the ten, or none
    np.testing.assert_allclose(alone[3:, 249], 0.5)
    np.testing.assert_allclose(curves(blocks, target, alike=True)[0][:, 249], 0.5)
    assert curves(blocks, target, alike=True)[0].shape == (3, len(SHARES))
    assert (alone[:, -1] == 1).all() and touched[-1] == 1


def test_the_short_list_that_is_needed_is_the_first_that_reaches_it() -> None:
    recall = np.minimum(1, np.arange(1, 1001) / 500)
    draws = np.stack([np.minimum(1, np.arange(1, 1001) / length) for length in (400, 500, 600)])
    found = needed(recall, draws, rows=200, touched=np.arange(1, 1001) / 1000)
    assert (found["share"], found["rows"], found["touched"]) == (0.475, 95, 0.475)
    assert found["interval"] == pytest.approx(np.quantile([0.38, 0.475, 0.57], [0.025, 0.975]), abs=1e-4) == found["touched_interval"]
    assert "touched" not in needed(recall, draws, rows=200)


def test_a_perfect_student_needs_the_ten_rows_alone() -> None:
    target = [np.random.default_rng(0).normal(size=(20, 100))]
    found = measure(Panel(target, {"student": [target[0][None]]}, folds_ask_alike=False), Resampler(draws=50, seed=0))
    assert found["methods"]["student"]["needed"] == {"share": 0.091, "interval": [0.091, 0.091], "rows": 10}
    assert (found["rows"], found["queries"]) == (100.0, 20) and len(found["shares"]) == len(WRITTEN)
    assert found["methods"]["student"]["alone"][found["shares"].index(0.05)]["value"] == 0.5


def test_the_readme_quotes_the_published_figures(repository: Path) -> None:
    readme = (repository / "README.md").read_text()
    assert rescoring_table.BLOCK.quoted(readme) == rescoring_table.table(repository / RESULT)
