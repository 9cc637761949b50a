from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import zscore
from sklearn.metrics import auc, average_precision_score, precision_recall_curve, roc_auc_score

from eval.bootstrap import Estimate, Resampler
from eval.judged import Fold, Judged, check_tasks
from eval.methods import MethodScores
from eval.task_metrics import CURVE_SHARES, Found, measure, metric_names
from eval.tasks import Task
from influcoder.errors import DataError
from influcoder.examples import Example

Matrix = NDArray[np.float64]
N, A = 80, 4 + 7
"""judged rows; askers: two fidelity queries a fold, then the queries of all tasks"""
WEIGHTS = np.array([1.0, 1, -1, 1, -1, 1])
NOTHING = np.zeros((0, N), dtype=bool)
CANDIDATES = np.arange(N) % 10 != 7
POSITIVE = CANDIDATES & (np.arange(N) * 7 % 5 == 0)
DETECTION = Task(
    kind="detection", queries=np.array([0, 1, 2, 3, 5, 6]), weights=WEIGHTS, candidates=CANDIDATES, positive=POSITIVE, linked=NOTHING
)
MISLABEL = replace(DETECTION, kind="mislabel", queries=np.zeros(0, dtype=np.int64), weights=np.zeros(0))
ASKED = slice(4, None)


def rows(prefix: str, count: int) -> list[Example]:
    return [Example(id=f"{prefix}{place}", context=(), response="some words") for place in range(count)]


def make_judged(folds: Sequence[NDArray[np.int64]]) -> Judged:
    """Return judged rows in folds whose fidelity queries, the first two of each, are candidates of tasks like any row."""
    pairs = tuple(Fold(queries=fold[: 4 // len(folds)], candidates=fold[4 // len(folds) :]) for fold in folds)
    return Judged(rows=rows("row", N), folds=pairs, task_queries=rows("query", 7))


ONE = make_judged([np.arange(N)])
TWO = make_judged([np.arange(0, N, 2), np.arange(1, N, 2)])


def random_scores(seed: int, seeds: int = 1) -> Matrix:
    return np.random.default_rng(seed).normal(size=(seeds, A, N)) + np.linspace(0, 1, A)[:, None] * 3


def found_in(task: Task, judged: Judged, asked: Matrix, *, own: Matrix | None = None, top: int = 2, draws: int = 40) -> Found:
    return measure("poison", task, MethodScores(asked=asked, own=own), judged, top=top, resampler=Resampler(draws, 0))


def known(found: Found) -> dict[str, Estimate]:
    return {name: value for name, value in found.metrics.items() if value is not None}


def by_hand(scores: Matrix, top: int = 2) -> dict[str, Matrix]:
    """Aggregate `(6, rows)` scores of the detection queries, less the contrast, in four ways."""

    def best(side: Matrix, count: int) -> Matrix:
        found: Matrix = np.sort(side, axis=0)[::-1][:count].mean(axis=0)
        return found

    wanted, contrast = scores[WEIGHTS > 0], scores[WEIGHTS < 0]
    standard = zscore(scores, axis=1)
    return {
        "top": best(wanted, top) - best(contrast, top),
        "mean": wanted.mean(axis=0) - contrast.mean(axis=0),
        "zmean": standard[WEIGHTS > 0].mean(axis=0) - standard[WEIGHTS < 0].mean(axis=0),
        "max": wanted.max(axis=0) - contrast.max(axis=0),
    }


def detection_truth(values: dict[str, Matrix], positive: NDArray[np.bool_]) -> dict[str, float]:
    """Return scikit-learn's figures of tie-free row scores."""

    def trapezoid(scores: Matrix) -> float:
        precision, recall, _ = precision_recall_curve(positive, scores)
        return float(auc(recall, precision))

    ranked = positive[np.argsort(-values["top"])].cumsum() / positive.sum()

    def recall_at(share: float) -> float:
        return float(np.interp(share * len(positive), np.arange(len(positive) + 1), np.r_[0, ranked]))

    return {
        "auprc": average_precision_score(positive, values["top"]),
        "auprc_trapezoid": trapezoid(values["top"]),
        "auroc": roc_auc_score(positive, values["top"]),
        "recall_at_positives": ranked[positive.sum() - 1],
        "recall_at_1_percent": recall_at(0.01),
        "recall_at_5_percent": recall_at(0.05),
        "recall_at_10_percent": recall_at(0.1),
    } | {
        "auprc_mean": average_precision_score(positive, values["mean"]),
        "auprc_zmean": average_precision_score(positive, values["zmean"]),
        "auprc_max": average_precision_score(positive, values["max"]),
        "auprc_trapezoid_mean": trapezoid(values["mean"]),  # as DATE-LM has it
    }


def candidates_of(judged: Judged) -> list[NDArray[np.int64]]:
    """Return, by fold, the rows that the tasks ask about, fidelity queries too."""
    return [np.array([row for row in fold.rows if CANDIDATES[row]]) for fold in judged.folds]


@pytest.mark.parametrize("judged", [ONE, TWO], ids=["one fold", "two folds"])
@pytest.mark.parametrize("top", [1, 2, 5])
def test_detection_equals_scikit_learn_on_hand_aggregated_scores_averaged_over_folds(judged: Judged, top: int) -> None:
    asked = random_scores(0, seeds=2)
    found = known(found_in(DETECTION, judged, asked, top=top))
    expected = [
        [detection_truth(by_hand(seed[ASKED][DETECTION.queries][:, kept], top), POSITIVE[kept]) for kept in candidates_of(judged)]
        for seed in asked
    ]
    assert tuple(found) == metric_names(DETECTION) == tuple(expected[0][0])
    for name, value in found.items():
        assert value.seeds == pytest.approx([np.mean([fold[name] for fold in seed]) for seed in expected]), name
        assert value.value == pytest.approx(np.mean(value.seeds)), name
        assert value.n == POSITIVE.sum()


@pytest.mark.parametrize("judged", [ONE, TWO], ids=["one fold", "two folds"])
def test_values_are_the_row_scores_that_were_ranked_of_candidates_alone(judged: Judged) -> None:
    asked = random_scores(1, seeds=2)
    values = found_in(DETECTION, judged, asked).values
    assert values is not None and values.shape == (2, N)
    assert np.isnan(values[:, ~CANDIDATES]).all()
    for seed in (0, 1):
        np.testing.assert_allclose(values[seed, CANDIDATES], by_hand(asked[seed, ASKED][DETECTION.queries])["top"][CANDIDATES])


def test_scores_of_rows_that_are_no_candidates_and_of_other_queries_do_not_matter() -> None:
    asked = random_scores(2)
    expected = known(found_in(DETECTION, TWO, asked))
    asked[:, :, ~CANDIDATES] = 1e6
    asked[:, 4 + 4] = -1e6  # no query of the task
    asked[:, :4] = np.nan
    for name, value in known(found_in(DETECTION, TWO, asked)).items():
        assert value.seeds == expected[name].seeds, name
        np.testing.assert_array_equal(value.draws, expected[name].draws)


def test_folds_are_never_compared() -> None:
    asked = random_scores(3)
    expected = known(found_in(DETECTION, TWO, asked))
    for query in DETECTION.queries[WEIGHTS > 0]:
        asked[:, 4 + query, TWO.folds[1].rows] += 1000
    values = found_in(DETECTION, TWO, asked).values
    assert values is not None and np.nanmin(values[:, TWO.folds[1].rows]) > np.nanmax(values[:, TWO.folds[0].rows])
    for name, value in known(found_in(DETECTION, TWO, asked)).items():
        assert value.value == pytest.approx(expected[name].value), name


def test_a_perfect_method_finds_all() -> None:
    asked = np.zeros((1, A, N))
    asked[0, ASKED][DETECTION.queries] = np.where(POSITIVE, 1.0, -1.0) * WEIGHTS[:, None]
    found = known(found_in(DETECTION, TWO, asked))
    assert found["recall_at_1_percent"].value < 1, "fewer rows than there are positives"
    for name in ("auprc", "auprc_trapezoid", "auroc", "recall_at_positives", "auprc_mean", "auprc_zmean", "auprc_max"):
        assert (found[name].value, *found[name].interval) == pytest.approx((1, 1, 1)), name


@pytest.mark.parametrize("judged", [ONE, TWO], ids=["one fold", "two folds"])
def test_query_blind_scores_with_contrast_are_worth_the_base_rate(judged: Judged) -> None:
    blind = np.broadcast_to(np.where(POSITIVE, 3.7, 0.1) + np.random.default_rng(4).normal(size=N), (1, A, N))
    found = known(found_in(DETECTION, judged, blind))
    rate = np.mean([POSITIVE[kept].mean() for kept in candidates_of(judged)])
    for name in ("auprc", "auprc_mean", "auprc_zmean", "auprc_max"):
        assert (found[name].value, *found[name].interval) == pytest.approx((rate, rate, rate)), name
    assert (found["auroc"].value, *found["auroc"].interval) == pytest.approx((0.5, 0.5, 0.5))
    assert found["recall_at_10_percent"].value == pytest.approx(0.1)


def test_intervals_lie_around_the_figures_and_equal_a_loop_over_the_resamples() -> None:
    asked = random_scores(5) + 0.5 * POSITIVE * np.r_[np.zeros(4), WEIGHTS[:4], 0, WEIGHTS[4:]][:, None]
    found = known(found_in(DETECTION, TWO, asked, draws=200))
    for name in ("auprc", "auroc", "recall_at_positives"):
        assert found[name].interval[0] < found[name].value < found[name].interval[1], name
    draws = np.zeros(200)
    for number, kept in enumerate(candidates_of(TWO)):
        counts = Resampler(200, 0).stratified(f"poison:{number}", POSITIVE[kept]).astype(int)
        values = by_hand(asked[0, ASKED][DETECTION.queries][:, kept])["top"]
        draws += [average_precision_score(np.repeat(POSITIVE[kept], count), np.repeat(values, count)) / 2 for count in counts]
    np.testing.assert_allclose(found["auprc"].draws, draws)


@pytest.mark.parametrize("judged", [ONE, TWO], ids=["one fold", "two folds"])
def test_the_recall_curve_is_a_mean_over_folds_and_seeds_and_ends_at_one(judged: Judged) -> None:
    asked = random_scores(6, seeds=2)
    recall = found_in(DETECTION, judged, asked).recall
    assert recall is not None and (np.diff(CURVE_SHARES) > 0).all()
    assert (recall[0], recall[-1], CURVE_SHARES[0], CURVE_SHARES[-1]) == pytest.approx((0, 1, 0, 1))
    assert (np.diff(recall) >= -1e-12).all()
    lines = []
    for kept in candidates_of(judged):
        for seed in asked:
            ranked = POSITIVE[kept][np.argsort(-by_hand(seed[ASKED][DETECTION.queries][:, kept])["top"])]
            lines.append(np.interp(CURVE_SHARES * len(kept), np.arange(len(kept) + 1), np.r_[0, ranked.cumsum() / ranked.sum()]))
    np.testing.assert_allclose(recall, np.mean(lines, axis=0))


def test_mislabel_ranks_rows_by_their_influence_on_themselves() -> None:
    own = np.random.default_rng(7).normal(size=N) ** 2
    found = found_in(MISLABEL, TWO, np.full((1, A, N), np.nan), own=own[None])
    expected = [detection_truth(dict.fromkeys(("top", "mean", "zmean", "max"), own[kept]), POSITIVE[kept]) for kept in candidates_of(TWO)]
    assert tuple(found.metrics) == metric_names(MISLABEL)
    assert "auroc" in found.metrics and "auprc_mean" not in found.metrics
    for name, value in known(found).items():
        assert value.value == pytest.approx(np.mean([fold[name] for fold in expected])), name
    np.testing.assert_array_equal(found.values, np.where(CANDIDATES, own, np.nan)[None])
    assert found.recall is not None and found.recall[-1] == pytest.approx(1)


LINKED = np.zeros((4, N), dtype=bool)
LINKED[0, [0, 1, 2, 5, 8, 20, 33]] = True  # rows in both folds
LINKED[1, [3, 11, 51]] = True  # in the second fold alone
LINKED[3, 40] = True
RETRIEVAL = replace(
    DETECTION,
    kind="retrieval",
    queries=np.array([1, 3, 4, 6]),
    weights=np.ones(4),
    positive=np.zeros(N, dtype=bool),
    linked=LINKED,
    cutoff=3,
)


def retrieval_truth(scores: Matrix, linked: NDArray[np.bool_]) -> tuple[float, float, float]:
    """Return recall at 3, reciprocal rank and average precision of tie-free scores."""
    ordered = linked[np.argsort(-scores)]
    return ordered[:3].sum() / linked.sum(), 1 / (1 + int(ordered.argmax())), average_precision_score(linked, scores)


@pytest.mark.parametrize("judged", [ONE, TWO], ids=["one fold", "two folds"])
def test_retrieval_is_by_query_a_querys_figure_the_mean_over_folds_that_hold_rows_of_it(judged: Judged) -> None:
    asked = random_scores(8, seeds=2)
    found = found_in(RETRIEVAL, judged, asked)
    by_seed = []
    for seed in asked:
        by_query = []
        for query in (0, 1, 3):  # no row answers query 2
            scores = seed[4 + RETRIEVAL.queries[query]]
            kept = [rows for rows in candidates_of(judged) if RETRIEVAL.linked[query, rows].any()]
            by_query.append(np.mean([retrieval_truth(scores[rows], RETRIEVAL.linked[query, rows]) for rows in kept], axis=0))
        by_seed.append(np.mean(by_query, axis=0))
    assert tuple(found.metrics) == metric_names(RETRIEVAL) == ("recall_at_3", "mrr", "map")
    for place, value in enumerate(known(found).values()):
        assert value.seeds == pytest.approx([seed[place] for seed in by_seed])
        assert value.n == 3
    assert found.values is None and found.recall is None


def test_retrieval_resamples_queries() -> None:
    asked = random_scores(9)
    found = known(found_in(RETRIEVAL, ONE, asked, draws=30))["mrr"]
    kept = candidates_of(ONE)[0]
    ranks = [retrieval_truth(asked[0, 4 + RETRIEVAL.queries[query]][kept], RETRIEVAL.linked[query, kept])[1] for query in (0, 1, 3)]
    counts = Resampler(30, 0).counts("poison:queries:0", 4)[:, [0, 1, 3]]
    expected = [np.average(ranks, weights=count) if count.any() else np.mean(ranks) for count in counts]
    np.testing.assert_allclose(found.draws, expected)


@pytest.mark.parametrize("task", [DETECTION, MISLABEL, RETRIEVAL], ids=["detection", "mislabel", "retrieval"])
def test_a_control_of_some_folds_has_no_such_figures(task: Task) -> None:
    scores = MethodScores(asked=random_scores(10), own=np.arange(float(N))[None], folds=(0,))
    assert measure("poison", task, scores, TWO, top=2, resampler=Resampler(5, 0)) == Found(dict.fromkeys(metric_names(task)))


def test_without_influence_of_rows_on_themselves_mislabel_has_no_figures() -> None:
    assert found_in(MISLABEL, TWO, random_scores(11)) == Found(dict.fromkeys(metric_names(MISLABEL)))


@pytest.mark.parametrize(("kept", "count"), [(0, "40 of 40"), (1, "0 of 40")], ids=["all", "none"])
def test_a_fold_with_rows_of_one_kind_is_refused(kept: int, count: str) -> None:
    task = replace(DETECTION, positive=CANDIDATES & (np.arange(N) % 2 == kept))
    with pytest.raises(DataError, match=rf"tasks\.poison: {count} judged rows of fold 0 are positive; expected some and not all") as caught:
        check_tasks(replace(TWO, tasks={"poison": task}))
    assert "\n" not in str(caught.value)
