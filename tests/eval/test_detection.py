from __future__ import annotations

from collections.abc import Callable
from itertools import permutations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import auc, average_precision_score, precision_recall_curve, roc_auc_score

from eval import detection
from eval.detection import Curve, curve, curves

Vector = NDArray[np.float64]
Mask = NDArray[np.bool_]
FIGURES: dict[str, Callable[[Curve], Vector]] = {
    "average_precision": Curve.average_precision,
    "trapezoid": Curve.trapezoid,
    "auroc": Curve.auroc,
    "recall_at": lambda found: found.recall_at(0.3),
}
CASES = st.lists(st.tuples(st.integers(-6, 6), st.booleans()), min_size=2, max_size=25)


def labelled(seed: int, size: int, values: int) -> tuple[Vector, Mask]:
    """Return scores of which many are equal, some negative, and what is to be found."""
    rng = np.random.default_rng(seed)
    positive = rng.random(size) < 0.3
    positive[:2] = True, False
    return rng.integers(-values, values, size=size).astype(np.float64), positive


def split(pairs: list[tuple[int, bool]]) -> tuple[Vector, Mask]:
    scores, positive = np.array([pair[0] for pair in pairs], dtype=np.float64), np.array([pair[1] for pair in pairs])
    assume(positive.any() and not positive.all())
    return scores, positive


def whole(scores: NDArray[np.floating], positive: Mask) -> Curve:
    return curve(scores, positive, np.ones((1, len(scores))))


def figures(found: Curve) -> Vector:
    """Return all four, `(4, D)`."""
    return np.stack([figure(found) for figure in FIGURES.values()])


def recall_over_orders(scores: Vector, positive: Mask, k: int) -> float:
    """Return the mean, over all orders that the rows may come in, of the recall of the k best."""
    recalls = []
    for order in permutations(range(len(scores))):
        best = sorted(order, key=lambda place: -scores[place])[:k]  # a stable sort
        recalls.append(positive[best].sum() / positive.sum())
    return float(np.mean(recalls))


@pytest.mark.parametrize("scale", [1e-300, 1e-6, 1.0, 1e150])
@pytest.mark.parametrize("values", [1, 3, 1000])
@pytest.mark.parametrize("seed", range(5))
def test_areas_equal_scikit_learn_with_ties_and_negatives_at_any_scale(seed: int, values: int, scale: float) -> None:
    scores, positive = labelled(seed, 50, values)
    found = whole(scores * scale, positive)
    precision, recall, _ = precision_recall_curve(positive, scores * scale)
    assert found.average_precision() == pytest.approx([average_precision_score(positive, scores * scale)], abs=1e-12)
    assert found.trapezoid() == pytest.approx([auc(recall, precision)], abs=1e-12)
    assert found.auroc() == pytest.approx([roc_auc_score(positive, scores * scale)], abs=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("value", [0.0, -0.1, 1e30])
def test_a_constant_is_worth_the_base_rate(value: float, dtype: type[np.floating]) -> None:
    positive = np.arange(20) < 3
    found = whole(np.full(20, value, dtype), positive)
    assert found.average_precision() == pytest.approx([0.15])
    assert found.auroc() == pytest.approx([0.5])
    for share in (0.0, 0.01, 0.15, 0.5, 1.0):
        assert found.recall_at(share) == pytest.approx([share])


def test_negative_zero_ties_with_zero() -> None:
    scores, positive = np.array([0.0, -0.0, 0.0, -0.0]), np.array([True, False, False, True])
    assert whole(scores, positive).recall.tolist() == [[0, 1]]


def test_what_finds_all_or_the_opposite() -> None:
    positive = np.arange(10) < 2
    best, worst = whole(positive * 1.0, positive), whole(positive * -1.0, positive)
    assert figures(best).ravel() == pytest.approx([1, 1, 1, 1])
    assert best.recall_at(0.1) == pytest.approx([0.5])
    # one group of eight misses, then both hits at a precision of 2 / 10
    assert figures(worst).ravel() == pytest.approx([0.2, 0.1, 0, 0])


@pytest.mark.parametrize("seed", range(6))
def test_recall_equals_that_expected_over_all_orders_of_the_rows(seed: int) -> None:
    scores, positive = labelled(seed, 6, 1 + seed % 3)
    found = whole(scores, positive)
    expected = [recall_over_orders(scores, positive, k) for k in range(7)]
    assert [found.recall_at(k / 6)[0] for k in range(7)] == pytest.approx(expected)
    # half a row more is half of the way to the next
    assert [found.recall_at((k + 0.5) / 6)[0] for k in range(6)] == pytest.approx(np.add(expected[1:], expected[:-1]) / 2)


@pytest.mark.parametrize("values", [1, 3, 1000])
@pytest.mark.parametrize("seed", range(4))
def test_whole_weights_are_repeated_rows_and_zero_weights_rows_left_out(seed: int, values: int) -> None:
    scores, positive = labelled(seed, 30, values)
    weights = np.random.default_rng(seed).integers(0, 4, size=(5, 30))
    weights[:, :2] += 1
    weights[0] = np.arange(30) < 15
    expected = [figures(whole(np.repeat(scores, counts), np.repeat(positive, counts))) for counts in weights]
    np.testing.assert_allclose(figures(curve(scores, positive, weights.astype(np.float32))), np.concatenate(expected, axis=1), atol=1e-12)


def test_the_scale_of_weights_does_not_matter() -> None:
    scores, positive = labelled(0, 40, 8)
    weights = np.random.default_rng(0).random((3, 40))
    np.testing.assert_allclose(figures(curve(scores, positive, 1e-3 * weights)), figures(curve(scores, positive, weights)))


@given(CASES, st.integers(0, 1000))
def test_the_order_of_rows_does_not_matter(pairs: list[tuple[int, bool]], seed: int) -> None:
    scores, positive = split(pairs)
    order = np.random.default_rng(seed).permutation(len(pairs))
    np.testing.assert_allclose(figures(whole(scores[order], positive[order])), figures(whole(scores, positive)), atol=1e-12)


@given(CASES)
def test_only_the_order_of_scores_matters(pairs: list[tuple[int, bool]]) -> None:
    scores, positive = split(pairs)
    expected = figures(whole(scores, positive))
    for moved in (np.exp(scores) - 3, scores**3 + scores, 1e-200 * scores):
        np.testing.assert_array_equal(figures(whole(moved, positive)), expected)


@given(CASES)
def test_auroc_of_the_opposite_is_the_rest(pairs: list[tuple[int, bool]]) -> None:
    scores, positive = split(pairs)
    assert whole(-scores, positive).auroc() == pytest.approx(1 - whole(scores, positive).auroc(), abs=1e-12)
    assert whole(scores, ~positive).auroc() == pytest.approx(1 - whole(scores, positive).auroc(), abs=1e-12)


@given(CASES, st.floats(0, 1), st.floats(0, 1))
def test_recall_grows_with_what_is_inspected_up_to_one(pairs: list[tuple[int, bool]], share: float, other: float) -> None:
    found = whole(*split(pairs))
    assert found.recall_at(min(share, other))[0] <= found.recall_at(max(share, other))[0]
    assert (found.recall_at(0.0)[0], found.recall_at(1.0)[0]) == (0, 1)


@pytest.mark.parametrize(
    ("scores", "positive"),
    [
        ([1.0, np.nan, 0.0], [True, False, False]),
        ([1.0, np.inf, 0.0], [True, False, False]),
        ([1.0, -np.inf, 0.0], [True, False, False]),
        ([1.0, 2.0, 0.0], [True, True, True]),
        ([1.0, 2.0, 0.0], [False, False, False]),
    ],
)
def test_refuses_what_is_no_number_and_rows_of_one_kind(scores: list[float], positive: list[bool]) -> None:
    with pytest.raises(ValueError, match="finite, with at least one positive and one negative"):
        whole(np.array(scores), np.array(positive))


@pytest.mark.parametrize(("cells", "blocks"), [(1, 7), (89, 4), (10_000, 1)])
def test_blocks_of_draws_give_what_the_whole_does(cells: int, blocks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    scores, positive = labelled(1, 40, 5)
    weights = np.random.default_rng(1).integers(1, 5, size=(7, 40)).astype(np.float32)
    monkeypatch.setattr(detection, "MOST_CELLS", cells)
    found = curves(scores, positive, weights)
    assert len(found) == blocks
    joined = np.concatenate([figures(block) for block in found], axis=1)
    np.testing.assert_allclose(joined, figures(curve(scores, positive, weights)), rtol=1e-12)
