"""Values against slow ones, and every attack that values alone can meet."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from influcoder.aggregation import aggregate
from influcoder.contributions.canonical_json import BILLION
from influcoder.contributions.ledger import Line, ledger
from influcoder.contributions.resampling import RowScores, draw_counts
from influcoder.contributions.values import Clusters, Ints, Valuation, ValueSettings, evaluate, quantile
from influcoder.errors import ConfigError

QUERIES = 12
WEIGHTS = np.array([1.0] * 9 + [-1.0] * 3)


def as_clusters(first_rows: list[int], copies: Any = "equal", precedence: Ints | None = None) -> Clusters:
    return Clusters.of(np.array(first_rows), copies, precedence)


def apart(count: int) -> list[int]:
    return list(range(count))


def valued(
    scores: NDArray[np.float32],
    owners: list[str],
    first_rows: list[int] | None = None,
    *,
    weights: NDArray[np.float64] = WEIGHTS,
    copies: Any = "equal",
    budget: int = 10**6,
    **settings: Any,
) -> tuple[Valuation, dict[str, Line]]:
    names, contributors = np.unique(owners, return_inverse=True)
    clusters = as_clusters(apart(len(owners)) if first_rows is None else first_rows, copies)
    found = evaluate(scores, weights, contributors, clusters, top=5, settings=ValueSettings(draws=60, **settings))
    return found, {line.contributor: line for line in ledger([str(name) for name in names], contributors, clusters, found, budget)}


def random_scores(rows: int, seed: int = 0) -> NDArray[np.float32]:
    random = np.random.default_rng(seed)
    return np.clip(0.2 + 0.2 * random.normal(size=(QUERIES, rows)), -1, 1).astype(np.float32)


@given(st.integers(0, 1000), st.sampled_from([1, 3, None]))
def test_row_scores_are_the_aggregate_of_the_drawn_queries(seed: int, top: int | None) -> None:
    random = np.random.default_rng(seed)
    scores, weights = random.normal(size=(7, 9)).astype(np.float32), random.choice([-1.0, -0.5, 1.0, 2.0], 7)
    of_rows = RowScores(scores, weights, top)
    np.testing.assert_allclose(of_rows() / BILLION, aggregate(scores, weights, top), atol=1e-8)
    counts = draw_counts(weights, seed, 0)
    drawn = np.repeat(np.arange(7), counts)
    np.testing.assert_allclose(of_rows(counts) / BILLION, aggregate(scores[drawn], weights[drawn], top), atol=1e-8)


def test_draws_resample_both_sides_evenly_and_follow_the_seed() -> None:
    counts = np.stack([draw_counts(WEIGHTS, 0, draw) for draw in range(3000)])
    assert (counts[:, :9].sum(1) == 9).all() and (counts[:, 9:].sum(1) == 3).all()
    np.testing.assert_allclose(counts.mean(0), 1, atol=0.07)
    np.testing.assert_allclose(counts[:, :9].var(0), 8 / 9, atol=0.1)
    np.testing.assert_array_equal(counts[5], draw_counts(WEIGHTS, 0, 5))
    assert (counts[5] != draw_counts(WEIGHTS, 1, 5)).any() and (counts[5] != counts[6]).any()
    # what SHAKE-256 says today it says for ever: a report is verified years later
    assert draw_counts(WEIGHTS, 0, 0).tolist() == FIRST_DRAW


FIRST_DRAW = [2, 3, 1, 0, 1, 1, 0, 1, 0, 0, 3, 0]


@given(st.integers(0, 200))
def test_values_equal_slow_ones(seed: int) -> None:
    random = np.random.default_rng(seed)
    rows = int(random.integers(1, 25))
    scores, owners = random_scores(rows, seed), [f"c{owner}" for owner in random.integers(0, 4, rows)]
    first = [int(random.integers(0, row + 1)) for row in range(rows)]
    first = [first[first[row]] if first[first[row]] == first[row] else row for row in range(rows)]
    first = [row if first[row] != row and first[first[row]] != first[row] else first[row] for row in range(rows)]
    copies = random.choice(["equal", "first"])
    found, lines = valued(scores, owners, first, copies=copies, cap_quantile=0.8)

    of_rows = np.rint(aggregate(scores, WEIGHTS, 5) * BILLION).astype(int)
    np.testing.assert_allclose(found.scores, of_rows, atol=1)
    members: dict[int, list[int]] = defaultdict(list)
    for row in range(rows):
        members[first[row]].append(row)
    means = {
        head: int(found.scores[group[0]] if copies == "first" else sum(found.scores[group].tolist()) // len(group))
        for head, group in members.items()
    }
    cap = sorted(means.values())[int(0.8 * (len(means) - 1))]
    total: Counter[str] = Counter()
    for head, group in members.items():
        value = min(cap, means[head])
        assert int(found.values[group].sum()) == value
        if copies == "first":
            assert int(found.values[group[0]]) == value
        else:
            assert np.ptp(found.values[group]) <= 1
        for row in group:
            assert bool(found.capped[row]) == (means[head] > cap)
            total[owners[row]] += int(found.values[row])
    assert found.cap == cap and {name: line.total for name, line in lines.items()} == {owner: total[owner] for owner in owners}
    for name, line in lines.items():
        mine = [row for row in range(rows) if owners[row] == name]
        assert (line.rows, line.unique_rows) == (len(mine), len({first[row] for row in mine}))
        assert line.positive == sum(max(0, int(found.values[row])) for row in mine) and line.positive + line.negative == line.total
        assert line.low <= line.high


def test_an_interval_holds_what_fresh_queries_give() -> None:
    """The mean over queries of one contributor's rows: the interval's width is that of 1.96 standard errors."""
    random = np.random.default_rng(0)
    scores = (0.1 + 0.2 * random.normal(size=(200, 1))).astype(np.float32)
    settings = ValueSettings(draws=400, cap_quantile=1)
    found = evaluate(scores, np.ones(200), np.zeros(1, np.int64), as_clusters([0]), top=None, settings=settings)
    error = float(scores.std()) / np.sqrt(200)
    assert (found.high[0] - found.low[0]) / BILLION == pytest.approx(2 * 1.96 * error, rel=0.15)
    assert found.low[0] < found.totals[0] < found.high[0]


def test_quantiles_are_values_that_are_there() -> None:
    values = np.array([5, 1, 9, 3], np.int64)
    assert [quantile(values, share) for share in (0.0, 0.34, 0.67, 0.99, 1.0)] == [1, 3, 5, 5, 9]


def test_who_is_first_follows_the_precedence_and_then_the_rows() -> None:
    clusters = as_clusters([0, 1, 0, 1, 0], "first", np.array([7, 2, 3, 2, 3]))
    assert clusters.shared(np.array([100, -50])).tolist() == [0, -50, 100, 0, 0]
    assert as_clusters([0, 1, 0, 1, 0]).shared(np.array([100, -51])).tolist() == [34, -25, 33, -26, 33]


# attacks


def test_copies_make_no_more_value_however_many() -> None:
    """Another wallet submits k copies of a row: the cluster's value, and what everybody else gets, stay to the last digit."""
    scores, owners = random_scores(30), ["ada"] * 10 + ["bo"] * 10 + ["cy"] * 10
    before, lines = valued(scores, owners)
    for k in (1, 2, 7, 50):
        copied = np.concatenate([scores, np.repeat(scores[:, [3]], k, axis=1)], axis=1)
        after, changed = valued(copied, [*owners, *["thief"] * k], [*apart(30), *[3] * k])
        assert int(after.values[[3, *range(30, 30 + k)]].sum()) == int(before.values[3])
        assert changed["ada"].total + changed["thief"].total == lines["ada"].total
        assert [changed[name].total for name in ("bo", "cy")] == [lines[name].total for name in ("bo", "cy")]
        first, kept = valued(copied, [*owners, *["thief"] * k], [*apart(30), *[3] * k], copies="first")
        assert [kept[name].total for name in ("ada", "bo", "cy", "thief")] == [*(lines[name].total for name in ("ada", "bo", "cy")), 0]
        assert kept["thief"].reward == 0 and int(first.values[3]) == int(before.values[3])


def test_a_worse_near_copy_takes_nothing_from_the_first() -> None:
    scores = random_scores(30)
    worse = scores[:, [3]]
    worse[:9] -= 0.5
    copied, owners = np.concatenate([scores, worse], axis=1), ["ada"] * 30
    _, lines = valued(scores, owners)
    _, spoilt = valued(copied, [*owners, "thief"], [*apart(30), 3])
    _, kept = valued(copied, [*owners, "thief"], [*apart(30), 3], copies="first")
    assert kept["ada"] == lines["ada"] and kept["thief"].total == 0
    assert spoilt["ada"].total + spoilt["thief"].total < lines["ada"].total, "where copies share alike, the mean goes down"


def test_splitting_an_identity_makes_no_more_value() -> None:
    scores = random_scores(60)
    whole, split = ["ada"] * 30 + ["bo"] * 30, [f"ada{row % 5}" for row in range(30)] + ["bo"] * 30
    _, one = valued(scores, whole)
    _, five = valued(scores, split)
    parts = [five[f"ada{part}"] for part in range(5)]
    assert sum(line.total for line in parts) == one["ada"].total
    assert sum(line.low for line in parts) <= one["ada"].low, "five lower bounds are no better than one"
    assert sum(line.reward for line in parts) <= one["ada"].reward + 5
    # what rows are worth is the same; it is the interval that is wider for each part, so taking identities apart costs
    _, narrow = valued(scores, split, confidence=1e-6)
    _, single = valued(scores, whole, confidence=1e-6)
    assert sum(narrow[f"ada{part}"].reward for part in range(5)) == pytest.approx(single["ada"].reward, rel=0.1)


def test_an_odd_row_is_cut_to_what_the_best_hundredth_is_worth() -> None:
    """A junk row whose score is a hundred times that of any other, and a whole wallet of its copies."""
    scores = random_scores(300)
    owners = [f"c{row % 10}" for row in range(300)]
    junk = np.full((QUERIES, 1), 30, np.float32)
    honest, _ = valued(scores, owners, weights=np.ones(QUERIES))
    for k in (1, 20):
        odd = np.concatenate([scores, np.repeat(junk, k, axis=1)], axis=1)
        found, lines = valued(odd, [*owners, *["junk"] * k], [*apart(300), *[300] * k], weights=np.ones(QUERIES))
        assert found.capped[300:].all() and int(found.values[300:].sum()) == found.cap
        assert found.cap <= int(np.sort(honest.scores)[-3]), "no more than the rows of the top hundredth"
        assert lines["junk"].reward < 10**6 / 150
    loose, paid = valued(odd, [*owners, *["junk"] * 20], [*apart(300), *[300] * 20], weights=np.ones(QUERIES), cap_quantile=1.0)
    assert not loose.capped.any() and paid["junk"].reward > 10**6 / 10, "without the cap it would take the budget"


def test_poison_toward_the_public_queries_is_not_paid_once_harm_is_asked_too() -> None:
    """Known poison raises the public queries' scores and, more, those of a second target: queries of weight -1."""
    random = np.random.default_rng(0)
    honest = np.concatenate([random.normal(0.3, 0.05, (9, 40)), random.normal(0.05, 0.05, (3, 40))])
    poison = np.concatenate([random.normal(0.6, 0.05, (9, 10)), random.normal(0.9, 0.05, (3, 10))])
    scores = np.concatenate([honest, poison], axis=1).astype(np.float32)
    owners = [f"c{row % 4}" for row in range(40)] + ["poisoner"] * 10
    _, fooled = valued(scores[:9], owners, weights=np.ones(9))
    assert fooled["poisoner"].reward > max(fooled[f"c{place}"].reward for place in range(4)), "the public queries alone are fooled"
    _, lines = valued(scores, owners)
    assert lines["poisoner"].reward == 0 and lines["poisoner"].high < 0 and lines["poisoner"].status == "negative"
    assert all(lines[f"c{place}"].status == "paid" for place in range(4))


def test_negative_values_are_listed_and_not_paid_and_never_cut() -> None:
    scores = random_scores(40)
    scores[:9, 30:] = -0.9
    scores[9:, 30:] = 0.9
    found, lines = valued(scores, ["ada"] * 30 + ["bad"] * 10)
    assert lines["bad"].total == int(found.scores[30:].sum()) < 0 and lines["bad"].reward == 0 and lines["bad"].status == "negative"
    assert lines["bad"].negative == lines["bad"].total and lines["ada"].reward == 10**6


def test_luck_of_the_queries_is_not_paid() -> None:
    """A contributor that one query of twelve happens to love has an interval that reaches zero; a steady one of the same total is paid."""
    scores = np.zeros((QUERIES, 3), np.float32)
    scores[:, 0], scores[:, 2] = 0.05, 0.02
    scores[:, 1] = -0.06
    scores[4, 1] = 0.9
    weights = np.ones(QUERIES)
    names, contributors = ["steady", "lucky", "other"], np.arange(3)
    settings = ValueSettings(draws=200, cap_quantile=1)
    found = evaluate(scores, weights, contributors, as_clusters([0, 1, 2]), top=None, settings=settings)
    lines = dict(zip(names, ledger(names, contributors, as_clusters([0, 1, 2]), found, 100), strict=True))
    assert lines["lucky"].total > 0 > lines["lucky"].low and lines["lucky"].status == "uncertain" and lines["lucky"].reward == 0
    assert (lines["steady"].reward, lines["other"].reward) == (71, 29)


def test_where_nobody_is_above_zero_nothing_is_paid() -> None:
    _, lines = valued(-np.abs(random_scores(20)), ["ada"] * 10 + ["bo"] * 10, weights=np.ones(QUERIES))
    assert [line.reward for line in lines.values()] == [0, 0] and {line.status for line in lines.values()} == {"negative"}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"near_duplicate_jaccard": 0.0}, r"near_duplicate_jaccard 0\.0"),
        ({"near_duplicate_cosine": 1.5}, r"near_duplicate_cosine 1\.5"),
        ({"cap_quantile": 0.0}, r"cap_quantile 0\.0"),
        ({"draws": 5}, "draws 5"),
        ({"confidence": 1.0}, r"confidence 1\.0"),
        ({"commit_column": "when"}, "only with copies: first"),
    ],
)
def test_settings_out_of_range_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ValueSettings(**wrong)
