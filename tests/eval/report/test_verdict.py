from __future__ import annotations

from typing import Any

import pytest

from eval.report.standing import among_floors, of_gap, of_intervals, relation, share_of_the_way
from eval.report.truth_verdict import moves_the_model, predicts_retraining, removal_works, truth_verdicts
from eval.report.verdict import eval_verdicts, finds_rows, follows_teacher, gates_held, pays
from tests.eval.report.worlds import figure, gap, gate, make_summary, make_truth

CEILING = {"teacher": None, "teacher_second_seed": 0.8}


def test_above_and_below_leave_the_other_out() -> None:
    assert [of_gap(gap(value)) for value in (0.03, 0.02, 0.01, -0.01, -0.03)] == ["above", "level", "level", "level", "below"]
    assert of_intervals(figure(0.5), figure(0.45)) == "above" and of_intervals(figure(0.45), figure(0.5)) == "below"
    assert of_intervals(figure(0.5), figure(0.47)) == "level", "intervals touch"
    assert relation(figure(0.5), figure(0.47), gap(0.03)) == "above", "the paired gap decides where there is one"
    assert share_of_the_way(0.3, 0.2, 0.6) == pytest.approx(0.25)


def test_floors_stand_best_first() -> None:
    floors = among_floors(figure(0.5), {"low": figure(0.1), "near": figure(0.49), "high": figure(0.6)}, {"near": None})
    assert list(floors.figures) == ["high", "near", "low"] and floors.best == "high"
    assert (floors.above, floors.level) == (("high",), ("near",))
    assert among_floors(figure(0.5), {}, {}).best is None


@pytest.mark.parametrize(
    ("student", "status", "words"),
    [
        (0.9, "yes", "as well as the teacher's own second seed"),
        (0.79, "yes", "as well as the teacher's own second seed"),
        (0.6, "yes", "Yes, most of the way: above every floor, 67 % of the way from the best of them (BM25)"),
        (0.4, "partly", "In part: above every floor, but only 33 % of the way"),
        (0.23, "no", "Hardly: above every floor, but only 5 % of the way"),
        (0.21, "no", "Not shown: it is not apart from BM25."),
        (0.1, "no", "No: BM25 stands above it, without having been taught."),
    ],
)
def test_fidelity_lies_between_the_best_floor_and_the_ceiling(student: float, status: str, words: str) -> None:
    found = follows_teacher(make_summary({**CEILING, "student": student, "random": 0.0, "bm25": 0.2}))
    assert (found.status, words in found.answer) == (status, True), found.answer
    assert ".20 [.18, .22]" in found.reasons[0] and ".80 [.78, .82]" in found.reasons[0]


def test_a_weaker_floor_may_be_the_one_that_is_not_apart() -> None:
    summary = make_summary({**CEILING, "student": 0.4, "bm25": 0.3, "loss": 0.25})
    summary["student_minus"]["loss"]["per_query_spearman"] = gap(0.15, half=0.2)
    assert follows_teacher(summary).answer == "Not shown: it is not apart from loss."
    summary["student_minus"]["bm25"]["per_query_spearman"] = gap(-0.1)
    assert follows_teacher(summary).answer.startswith("No: BM25 stands above it")


def test_without_a_ceiling_nothing_is_said_of_what_could_be_had() -> None:
    found = follows_teacher(make_summary({"teacher": None, "student": 0.4, "bm25": 0.2}))
    assert found.status == "partly" and "for lack of a second seed" in found.answer


def test_without_floors_the_verdict_says_so() -> None:
    found = follows_teacher(make_summary({**CEILING, "student": 0.4}))
    assert found.status == "partly" and "no floor" in found.answer
    assert follows_teacher(make_summary(CEILING)).status == "unknown"


def test_seeds_and_the_residual_are_told() -> None:
    summary = make_summary({**CEILING, "student": 0.4, "bm25": 0.2})
    summary["methods"]["student"]["metrics"]["per_query_spearman"]["seeds"] = [0.38, 0.42]
    assert follows_teacher(summary).reasons[1:] == (
        "What it says of a query beyond each row's own average (residual): .40 [.38, .42].",
        "Seed by seed: .38, .42.",
    )


@pytest.mark.parametrize(
    ("figures", "status", "answer"),
    [
        ({"student": 0.9, "teacher": 0.9, "bm25": 0.5}, "yes", "Yes: above every floor, as well as its teacher."),
        ({"student": 0.7, "teacher": 0.9, "bm25": 0.5}, "yes", "Yes: above every floor, but less well than its teacher."),
        ({"student": 0.9, "teacher": 0.7, "bm25": 0.5}, "yes", "Yes: above every floor, and better than its teacher."),
        (
            {"student": 0.7, "teacher": 0.9, "bm25": 0.71, "random": 0.1},
            "partly",
            "It finds them, but less well than its teacher; yet it is not apart from BM25, which needs no teacher.",
        ),
        (
            {"student": 0.7, "teacher": 0.9, "bm25": 0.8, "rep_sim": 0.75},
            "no",
            "Not better than what needs no teacher: BM25 and RepSim (last token) stand above it.",
        ),
        ({"student": 0.11, "teacher": 0.9, "random": 0.1}, "no", "Not shown: it is not apart from random."),
    ],
)
def test_a_task_is_judged_by_floors_first_and_the_teacher_next(figures: dict[str, float | None], status: str, answer: str) -> None:
    found = finds_rows(make_summary(figures, {"poison": figures}), "poison")
    assert (found.status, found.answer) == (status, answer)


def test_a_floor_above_the_teacher_is_named() -> None:
    figures: dict[str, float | None] = {"student": 0.9, "teacher": 0.6, "bm25": 0.7, "rep_sim": 0.61}
    reasons = finds_rows(make_summary(figures, {"poison": figures}), "poison").reasons
    assert reasons[-1] == (
        "BM25, .70 [.68, .72], and 1 more stand above the teacher itself, .60 [.58, .62] (intervals apart): "
        "this task makes no case for influence."
    )
    assert len(finds_rows(make_summary(figures, {"poison": figures | {"bm25": 0.5, "rep_sim": 0.5}}), "poison").reasons) == 1


def test_what_the_student_cannot_say_is_not_asked_of_it() -> None:
    figures: dict[str, float | None] = {"student": None, "teacher": 0.6, "loss": 0.7}
    found = finds_rows(make_summary({"student": 0.3, "bm25": 0.1}, {"wrong": figures}, {"wrong": "mislabel"}), "wrong")
    assert found.status == "unknown" and "Loss, .70" in found.reasons[0]


@pytest.mark.parametrize(
    ("seconds", "even", "status", "words"),
    [
        (3.0, 3704.0, "yes", "Yes: 10 times as fast a row; pays from 3,704 rows on."),
        (20.0, 9000.0, "partly", "Somewhat: 1.50 times"),
        (29.5, 600000.0, "no", "Hardly: 1.02 times as fast a row; pays from 600,000 rows on."),
        (60.0, None, "no", "it takes 2.0 times as long a row, so that it never pays"),
    ],
)
def test_costs_are_weighed(seconds: float, even: float | None, status: str, words: str) -> None:
    summary = make_summary({**CEILING, "student": 0.4})
    summary["methods"]["student"]["cost"] |= {"seconds_per_1000": seconds, "break_even_rows": even}
    found = pays(summary)
    assert (found.status, words in found.answer) == (status, True), found.answer
    summary["methods"]["teacher"]["cost"] = None
    assert pays(summary).status == "unknown"


def test_gates_that_failed_or_were_not_asked_are_named() -> None:
    summary = make_summary({"student": 0.4})
    assert gates_held(summary).status == "yes" and not gates_held(summary).reasons
    summary["gates"] = {"trained": gate(True), "shuffled": gate(False)}
    found = gates_held(summary)
    assert found.status == "no" and found.answer.startswith("No: shuffled failed; nothing else")
    assert found.reasons == (
        "shuffled: 0.500, limit 0.400; above the limit something is wrong.",
        "Not asked: randomised, cardinality.",
    )
    summary["gates"] = {}
    assert gates_held(summary).status == "partly"


def test_every_task_has_a_verdict() -> None:
    figures: dict[str, float | None] = {**CEILING, "student": 0.4, "bm25": 0.2}
    summary = make_summary(figures, {"a": figures, "b": figures}, {"b": "retrieval"})
    assert [found.question.split()[0] for found in eval_verdicts(summary)] == ["Does", "Does", "Does", "Is", "Are"]
    assert len(eval_verdicts(make_summary(figures))) == 3


@pytest.mark.parametrize(
    ("lds", "status", "words"),
    [
        ({"student": 0.4, "teacher": 0.5, "bm25": 0.1}, "yes", "Yes: the student is above every floor, with 67 % of the noise ceiling."),
        ({"student": 0.2, "teacher": 0.5, "bm25": 0.1}, "partly", "In part: the student is above every floor, with 33 %"),
        ({"student": 0.11, "teacher": 0.5, "bm25": 0.1}, "no", "Not shown: it is not apart from BM25."),
        ({"student": 0.1, "teacher": 0.5, "bm25": 0.3}, "no", "No: BM25 stands above it"),
        ({"student": 0.01, "bm25": -0.3}, "no", "Not shown: it is not apart from 0."),
        ({"teacher": 0.4, "bm25": 0.1}, "yes", "the teacher is above every floor"),
    ],
)
def test_retraining_is_predicted_between_floors_and_noise(lds: dict[str, float], status: str, words: str) -> None:
    found = predicts_retraining(make_truth(lds)["lds"])
    assert (found.status, words in found.answer) == (status, True), found.answer


def test_paired_leads_decide_over_intervals_in_lds() -> None:
    truth = make_truth({"student": 0.4, "bm25": 0.39})
    assert predicts_retraining(truth["lds"]).status == "no"
    truth["lds"]["methods"]["bm25"]["student_minus"] = gap(0.01, half=0.005)
    assert predicts_retraining(truth["lds"]).status == "yes"
    truth["lds"]["ceiling"] = None
    assert predicts_retraining(truth["lds"]).status == "partly"


@pytest.mark.parametrize(
    ("left", "status", "words"),
    [
        ({"student": 0.1, "bm25": 0.4}, "yes", "undoes more of it (67 % of the way) than what any floor flags"),
        ({"student": 0.1, "bm25": 0.12}, "partly", "It goes (67 % of the way), yet it is not apart from what BM25 flags."),
        ({"student": 0.2, "bm25": 0.1}, "no", "what BM25 flags undoes more of it"),
        ({"student": 0.48, "bm25": 0.5}, "no", "not apart from what it was"),
        ({"student": 0.7, "bm25": 0.5}, "no", "not apart from what it was"),
    ],
)
def test_removal_works_when_it_goes_towards_the_clean_model(left: dict[str, float], status: str, words: str) -> None:
    found = removal_works("poison", make_truth(removal=left)["removal"]["poison"])
    assert (found.status, words in found.answer) == (status, True), found.answer


def test_the_clean_model_says_which_way_is_better() -> None:
    block = make_truth(removal={"student": 0.7, "bm25": 0.5})["removal"]["poison"] | {"clean": figure(0.9)}
    assert removal_works("poison", block).status == "yes" and "(50 % of the way)" in removal_works("poison", block).answer
    assert removal_works("poison", block | {"clean": None}).status == "no", "without one, less is better"


@pytest.mark.parametrize(
    ("top", "bottom", "floor", "status"),
    [(0.3, -0.1, 0.1, "yes"), (0.3, 0.29, 0.1, "no"), (0.01, -0.3, -0.1, "no"), (0.3, -0.1, 0.31, "partly"), (0.3, -0.1, 0.5, "partly")],
)
def test_a_step_on_the_top_rows_is_held_against_the_bottom_rows_and_floors(top: float, bottom: float, floor: float, status: str) -> None:
    methods: dict[str, Any] = {
        "student": {"role": "student", "top": figure(top), "bottom": figure(bottom)},
        "bm25": {"role": "floor", "top": figure(floor), "bottom": figure(0.0)},
    }
    assert moves_the_model({"k": 10, "methods": methods}).status == status


def test_blocks_that_are_missing_have_no_verdict() -> None:
    assert truth_verdicts(make_truth()) == []
    assert len(truth_verdicts(make_truth({"student": 0.4}, {"student": 0.1}))) == 2
    assert predicts_retraining(make_truth({"bm25": 0.4})["lds"]).status == "unknown"
