from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from eval.bootstrap import Resampler
from eval.config import GateConfig
from eval.evaluate import cardinality, check_finite, evaluate
from eval.fidelity import fidelity_metrics
from eval.gates import cardinality_gate, randomised_gate, shuffled_gate, top_cardinality, trained_gate
from eval.judged import Fold, Judged
from eval.methods import MethodGroup, MethodScores, ask_blindly
from influcoder.errors import DataError
from influcoder.examples import Example

Matrix = NDArray[np.float64]
Q, C, T = 10, 60, 3
"""fidelity queries and candidates of a fold; task queries"""
CONFIG = GateConfig()
OFF = GateConfig(trained_share=None, randomised_share=None, cardinality_share=None, shuffled_margin=None)


def make_judged(folds: int) -> Judged:
    rows = np.arange(folds * (Q + C))
    return Judged(
        rows=[Example(id=f"row{place}", context=(), response="x" * (1 + place)) for place in rows],
        folds=tuple(Fold(queries=rows[number::folds][:Q], candidates=rows[number::folds][Q:]) for number in range(folds)),
        task_queries=[Example(id=f"query{place}", context=(), response="words") for place in range(T)],
    )


ONE, TWO = make_judged(1), make_judged(2)


def random_scores(judged: Judged, seed: int) -> Matrix:
    return np.random.default_rng(seed).normal(size=(1, judged.num_asking, len(judged.rows)))


def agreement(scores: Matrix, target: Matrix, judged: Judged) -> float:
    found = fidelity_metrics(MethodScores(asked=scores), target[0], judged, Resampler(5, 0))[0]["per_query_spearman"]
    assert found is not None
    return found.value


def cross_fitted(seed: int) -> Matrix:
    """Return scores as a student of two folds gives them: NaN for rows of another fold than the fidelity query's."""
    asked = random_scores(TWO, seed)
    asked[0, :Q, 1::2] = np.nan
    asked[0, Q : 2 * Q, ::2] = np.nan
    return asked


def test_cardinality_hand_cases() -> None:
    falling = -np.arange(30.0)
    assert top_cardinality(np.stack([falling] * 3), k=5) == 5 / 15, "the same rows"
    assert top_cardinality(np.stack([falling, falling[::-1]]), k=5) == 1, "no row in common"
    assert top_cardinality(np.stack([falling, np.roll(falling, 3)]), k=5) == 8 / 10
    assert top_cardinality(np.stack([falling] * 20), k=5) == 5 / 30, "there are no more rows"
    assert top_cardinality(np.zeros((2, 4)), k=10) == 1, "every row is among the best"
    assert top_cardinality(np.array([[0.0, -0.0, -1], [-0.0, 0, 0]]), k=1) == 1 / 2, "ties keep the row order"


@given(st.integers(0, 1000), st.integers(1, 6), st.integers(1, 12))
def test_cardinality_equals_a_loop(seed: int, queries: int, k: int) -> None:
    scores = np.random.default_rng(seed).integers(-3, 3, size=(queries, 9)).astype(np.float64)
    rows = {place for query in scores for place in sorted(range(9), key=lambda place: (-query[place], place))[:k]}
    assert top_cardinality(scores, k) == len(rows) / min(9, queries * min(k, 9))


def test_cardinality_is_of_fidelity_queries_and_candidates_the_mean_over_folds() -> None:
    scores = MethodScores(asked=cross_fitted(0))
    scores.asked[0, 1:3] = scores.asked[0, 0]
    expected = [
        top_cardinality(scores.asked[0, :Q][:, TWO.folds[0].candidates]),
        top_cardinality(scores.asked[0, Q : 2 * Q][:, TWO.folds[1].candidates]),
    ]
    assert expected[0] < expected[1]
    assert cardinality(scores, TWO) == pytest.approx(np.mean(expected))
    scores.asked[0, Q : 2 * Q] = np.nan
    assert cardinality(MethodScores(asked=scores.asked, folds=(0,)), TWO) == expected[0]


@pytest.mark.parametrize("judged", [ONE, TWO], ids=["one fold", "two folds"])
def test_cardinality_gate_passes_a_noisy_student_and_catches_one_that_sees_no_query(judged: Judged) -> None:
    target = random_scores(judged, 1)
    wanted = cardinality(MethodScores(asked=target), judged)
    honest = cardinality_gate(cardinality(MethodScores(asked=target + random_scores(judged, 2)), judged), wanted, CONFIG)
    assert honest is not None and honest.passed
    blind = MethodScores(asked=ask_blindly(judged, np.random.default_rng(3).normal(size=len(judged.rows))))
    caught = cardinality_gate(cardinality(blind, judged), wanted, CONFIG)
    assert caught is not None and not caught.passed
    assert (caught.value, caught.limit) == pytest.approx((10 / C, wanted / 4))
    # the same order for every query, at levels and scales of its own
    levels = MethodScores(asked=blind.asked * np.linspace(1, 2, judged.num_asking)[:, None] + np.arange(judged.num_asking)[:, None])
    assert cardinality(levels, judged) == cardinality(blind, judged)


def test_randomised_gate_passes_unlike_rankings_and_catches_a_target_that_needs_no_training() -> None:
    target = random_scores(ONE, 4)
    ceiling = agreement(target + 0.1 * random_scores(ONE, 5), target, ONE)
    honest = randomised_gate(agreement(random_scores(ONE, 6), target, ONE), ceiling, CONFIG)
    assert honest is not None and honest.passed
    caught = randomised_gate(agreement(target + 0.5 * random_scores(ONE, 7), target, ONE), ceiling, CONFIG)
    assert caught is not None and not caught.passed
    assert caught.value > caught.limit == pytest.approx(ceiling / 2)


def test_trained_gate_passes_a_decoder_that_predicts_and_catches_random_weights() -> None:
    honest, caught = trained_gate(3.3, 9.0, CONFIG), trained_gate(8.9, 9.0, CONFIG)
    assert honest is not None and honest.passed and honest.limit == pytest.approx(7.2)
    assert caught is not None and not caught.passed and caught.name == "trained"


def test_shuffled_gate_passes_what_learnt_nothing_and_catches_a_judge_that_leaks() -> None:
    target = random_scores(ONE, 8)
    floors = {"random": agreement(random_scores(ONE, 9), target, ONE), "bm25": agreement(target + 3 * random_scores(ONE, 10), target, ONE)}
    assert floors["bm25"] > floors["random"]
    honest = shuffled_gate(agreement(random_scores(ONE, 11), target, ONE), floors, CONFIG)
    assert honest is not None and honest.passed
    assert honest.limit == pytest.approx(floors["bm25"] + 0.05) and "bm25" in honest.meaning
    caught = shuffled_gate(agreement(target + random_scores(ONE, 12), target, ONE), floors, CONFIG)
    assert caught is not None and not caught.passed


@pytest.mark.parametrize(("value", "passed"), [(0.5, (True, True, True)), (0.51, (False, True, False)), (0.49, (True, False, True))])
def test_a_limit_itself_passes(value: float, passed: tuple[bool, bool, bool]) -> None:
    config = GateConfig(randomised_share=0.5, cardinality_share=0.5, shuffled_margin=0.25)
    gates = randomised_gate(value, 1.0, config), cardinality_gate(value, 1.0, config), shuffled_gate(value, {"bm25": 0.25}, config)
    assert tuple(gate is not None and gate.passed for gate in gates) == passed
    assert [gate.name for gate in gates if gate is not None] == ["randomised", "cardinality", "shuffled"]


def test_limits_of_null_switch_gates_off_and_without_a_control_there_is_no_gate_for_it() -> None:
    assert trained_gate(9.0, 9.0, OFF) is None
    assert randomised_gate(1.0, 0.1, OFF) is None
    assert cardinality_gate(0.0, 1.0, OFF) is None
    assert shuffled_gate(1.0, {"random": 0.0}, OFF) is None
    assert shuffled_gate(None, {"random": 0.0}, CONFIG) is None


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    ("asker", "row", "named"),
    [
        (3, 50, r"row 'row50' for query 4 of fold 0"),  # a candidate of fold 0, whose rows are even
        (Q + 3, 51, r"row 'row51' for query 4 of fold 1"),
        (Q, 1, r"row 'row1' for query 1 of fold 1"),  # the row that asks
        (2 * Q + 1, 50, rf"row 'row50' for query {Q + 2} of fold 0"),  # task queries stand after the fold's own
        (2 * Q + 1, 51, rf"row 'row51' for query {Q + 2} of fold 1"),
    ],
)
def test_a_score_that_is_no_number_is_refused_with_method_row_and_query(asker: int, row: int, named: str, value: float) -> None:
    asked = np.concatenate([cross_fitted(13), cross_fitted(14)])
    check_finite("mine", MethodScores(asked=asked), TWO)
    asked[1, asker, row] = value
    with pytest.raises(DataError, match=rf"^method mine: its score of {named} is not finite; expected numbers") as caught:
        check_finite("mine", MethodScores(asked=asked), TWO)
    assert "\n" not in str(caught.value)


def test_scores_across_folds_are_not_asked_for() -> None:
    assert np.isnan(cross_fitted(15)).any()
    check_finite("mine", MethodScores(asked=cross_fitted(15)), TWO)
    single = cross_fitted(16)
    single[0, Q : 2 * Q] = np.nan
    single[0, 2 * Q :, 1::2] = np.nan
    check_finite("control", MethodScores(asked=single, folds=(0,)), TWO)
    with pytest.raises(DataError, match="method control: its score of row 'row1' for query 1 of fold 1"):
        check_finite("control", MethodScores(asked=single), TWO)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_influence_on_itself_that_is_no_number_is_refused_with_method_and_row(value: float) -> None:
    own = np.ones((2, len(ONE.rows)))
    check_finite("mine", MethodScores(asked=random_scores(ONE, 17), own=own), ONE)
    own[1, 7] = value
    with pytest.raises(DataError, match="method mine: its own score of row 'row7' is not finite"):
        check_finite("mine", MethodScores(asked=random_scores(ONE, 17), own=own), ONE)


def test_evaluation_refuses_such_a_method_before_it_is_measured() -> None:
    target = random_scores(ONE, 18)
    bad = target.copy()
    bad[0, 2, 30] = np.nan
    groups = [MethodGroup(name="student", role="student", compute=lambda: {"student": MethodScores(asked=bad)})]
    with pytest.raises(DataError, match="method student: its score of row 'row30' for query 3 of fold 0"):
        evaluate(ONE, target[0], groups, top=2, resampler=Resampler(5, 0))


def test_evaluation_counts_what_gates_need() -> None:
    target = random_scores(ONE, 19)
    blind = ask_blindly(ONE, np.zeros(len(ONE.rows)))
    groups = [
        MethodGroup(name="teacher", role="teacher", compute=lambda: {"teacher": MethodScores(asked=target)}),
        MethodGroup(name="floor", role="floor", compute=lambda: {"blind": MethodScores(asked=blind), "same": MethodScores(asked=target)}),
    ]
    teacher, floor, same = evaluate(ONE, target[0], groups, top=2, resampler=Resampler(5, 0))
    assert [result.name for result in (teacher, floor, same)] == ["teacher", "blind", "same"]
    assert (floor.cardinality, floor.constant_queries) == pytest.approx((10 / C, Q))
    assert (teacher.cardinality, teacher.constant_queries) == (cardinality(MethodScores(asked=target), ONE), 0)
    assert teacher.per_query is None and set(teacher.metrics.values()) == {None}, "its fidelity to itself says nothing"
    rho = same.metrics["per_query_spearman"]
    assert rho is not None and rho.value == pytest.approx(1)
