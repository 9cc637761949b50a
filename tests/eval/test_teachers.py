from __future__ import annotations

import itertools
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.stats import spearmanr

from eval import teachers
from eval.data import TeacherRun
from eval.judged import Fold, Judged
from eval.methods import Cost
from eval.students import load_students
from eval.teachers import ceiling_scores, mean_training_scores, randomise, teacher_cost, teacher_groups, teacher_scores
from influcoder.errors import RunError
from influcoder.influence.decoder import load_decoder, randomise_weights
from influcoder.influence.gradients import GradientConfig, GradientProjector
from influcoder.influence.representations import losses
from influcoder.influence.tokens import tokenize
from tests.eval.fake_runs import DIM, PARTS, Runs


@pytest.fixture(scope="module")
def judged(teacher: TeacherRun) -> Judged:
    rows = teacher.rows[::-3]
    folds = (
        Fold(queries=np.array([1, 4, 6]), candidates=np.array([0, 2, 3, 5, 7])),
        Fold(queries=np.array([9, 8]), candidates=np.arange(10, 14)),
    )
    return Judged(rows=rows, folds=folds, task_queries=teacher.queries[::-1])


def test_scores_are_cosines_in_the_order_of_the_judged_rows(teacher: TeacherRun, judged: Judged) -> None:
    scores = teacher_scores(teacher, judged, seed=1)
    features = teacher.features(1, "rows")
    stored, asked = features.vectors[::-3], teacher.features(1, "queries").vectors[::-1]
    assert scores.asked.shape == (1, 5 + 5, 14)
    np.testing.assert_allclose(scores.asked[0, :5], stored[[1, 4, 6, 9, 8]] @ stored.T, atol=1e-6)
    np.testing.assert_allclose(scores.asked[0, 5:], asked @ stored.T, atol=1e-3)  # features are float16
    assert scores.own is not None
    np.testing.assert_allclose(scores.own[0], features.norms[::-3].astype(np.float64) ** 2, rtol=1e-6)


def test_without_task_queries_no_scores_are_read(teacher: TeacherRun, judged: Judged, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TeacherRun, "scores", None)  # any use of it fails
    assert teacher_scores(teacher, replace(judged, task_queries=()), seed=0).asked.shape == (1, 5, 14)


def test_scores_of_other_rows_are_refused(teacher: TeacherRun) -> None:
    other = replace(teacher, rows=teacher.rows[::-1])
    with pytest.raises(RunError, match=r"scores belong to other rows: row 1 is .*use the scores of the same data") as caught:
        other.scores(0)
    assert "\n" not in str(caught.value)


def test_the_ceiling_is_every_seed_but_the_first(teacher: TeacherRun, judged: Judged) -> None:
    three = replace(teacher, record=teacher.record | {"seeds": [0, 1, 0]})
    found = ceiling_scores(three, judged).asked
    np.testing.assert_array_equal(found, np.concatenate([teacher_scores(teacher, judged, seed).asked for seed in (1, 0)]))


def test_a_teacher_of_one_seed_has_no_ceiling(teacher: TeacherRun, judged: Judged) -> None:
    target = teacher_scores(teacher, judged, 0)
    cost = Cost(seconds_per_1000=1.0, bytes_per_row=2.0)
    single = replace(teacher, record=teacher.record | {"seeds": [0]})
    names = [[name for group in teacher_groups(each, judged, target, cost) for name in group.compute()] for each in (teacher, single)]
    assert names == [["teacher", "teacher_second_seed"], ["teacher"]]
    assert all(scores.cost is cost for group in teacher_groups(teacher, judged, target, cost) for scores in group.compute().values())


def test_mean_scores_are_of_a_runs_training_rows_over_training_queries(teacher: TeacherRun, finished_runs: Runs) -> None:
    (run,) = load_students([str(finished_runs.folder / "student")], teacher).first
    rows, mean = mean_training_scores(teacher, run)
    count = PARTS.count("train")
    vectors = teacher.features(0, "rows").vectors[:count]
    assert rows == teacher.rows[:count]
    np.testing.assert_allclose(mean, (vectors @ vectors.T).mean(axis=0), atol=1e-6)


@pytest.mark.parametrize(("count", "measured"), [(4, 4), (1000, 14)])
def test_cost_is_that_of_the_rows_whose_gradients_were_taken(
    teacher: TeacherRun, judged: Judged, monkeypatch: pytest.MonkeyPatch, count: int, measured: int
) -> None:
    ticks = itertools.count(0.0, 3.0)
    monkeypatch.setattr(teachers, "time", SimpleNamespace(perf_counter=lambda: next(ticks)))  # the work takes one tick
    cost = teacher_cost(teacher, judged, teacher.decoder_config("cpu"), count)
    assert cost.seconds_per_1000 == pytest.approx(3000 / measured)
    assert (cost.bytes_per_row, cost.setup_seconds) == (2 * DIM + 4, 0)


def test_random_weights_agreement_and_losses_equal_a_loop_over_rows(teacher: TeacherRun, judged: Judged) -> None:
    target = np.random.default_rng(0).normal(size=(judged.num_asking, len(judged.rows)))
    decoder = load_decoder(teacher.decoder_config("cpu"), [], seed=0)
    randomise_weights(decoder, seed=1)
    projector = GradientProjector(decoder, GradientConfig(rank=4, dim=DIM, factors="random"), [0])
    gradients = np.array([projector.project(tokenize([row], decoder))[0, 0].numpy() for row in judged.rows])
    cosines = gradients @ gradients.T / np.outer(np.linalg.norm(gradients, axis=1), np.linalg.norm(gradients, axis=1))
    fold = judged.folds[0]
    for queries, asking in ((2, [0, 1]), (40, [0, 1, 2])):
        rhos = [spearmanr(cosines[fold.queries[place], fold.candidates], target[place, fold.candidates]).statistic for place in asking]
        found = randomise(teacher, judged, target, teacher.decoder_config("cpu"), queries)
        assert found.agreement == pytest.approx(np.mean(rhos), abs=1e-6)
        asked = tokenize([judged.rows[place] for place in (*fold.queries[:queries], *fold.candidates)], decoder)
        before = load_decoder(teacher.decoder_config("cpu"), [], seed=0)
        for mean, weights in ((found.random_loss, decoder), (found.loss, before)):
            assert mean == pytest.approx(np.mean([float(losses(weights, [row], 64)) for row in asked]), abs=1e-5)


def test_random_weights_are_asked_about_eight_candidates_a_query(teacher: TeacherRun) -> None:
    fold = Fold(queries=np.array([0, 1]), candidates=np.arange(2, 40))
    judged = Judged(rows=teacher.rows, folds=(fold,))
    target = np.random.default_rng(0).normal(size=(2, 40))
    config = teacher.decoder_config("cpu")
    first = randomise(teacher, judged, target, config, 1).agreement
    beyond = target.copy()
    beyond[1], beyond[0, 10:] = 0.0, 0.0
    assert randomise(teacher, judged, beyond, config, 1).agreement == first
    beyond[0, 9] = 100.0
    assert randomise(teacher, judged, beyond, config, 1).agreement != first


def test_the_decoder_is_loaded_as_the_teacher_had_it(teacher: TeacherRun) -> None:
    facts = {"decoder_chat_template": "{{ 1 }}", "decoder_dtype": "bfloat16", "decoder_adapter": "folder", "decoder_path": "name/hub"}
    config = replace(teacher, record=teacher.record | facts).decoder_config("cpu")
    assert (config.path, config.adapter, config.dtype, config.chat_template) == ("name/hub", "folder", "bfloat16", "{{ 1 }}")
    assert teacher.decoder_config("cpu").path == str(teacher.folder / "decoder")
