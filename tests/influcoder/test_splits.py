from __future__ import annotations

import itertools
import random
from collections import Counter
from typing import Any

import pytest

from influcoder.errors import ConfigError
from influcoder.splits import Part, SplitConfig, assign_split, near_duplicate_groups, shingles

WORDS = [
    f"{head}{tail}" for head in ("ba", "do", "ki", "lu", "me", "na", "po", "ru", "sa", "ti") for tail in ("lan", "mor", "ret", "sun", "vik")
]


def make_texts(count: int, seed: int = 0) -> list[str]:
    source = random.Random(seed)
    return [" ".join(source.choices(WORDS, k=30)) for _ in range(count)]


def near_copy(text: str, place: int = 12) -> str:
    words = text.split()
    return " ".join([*words[:place], "changed", *words[place + 1 :]])


def jaccard(first: str, second: str) -> float:
    return len(shingles(first) & shingles(second)) / len(shingles(first) | shingles(second))


def assert_apart(texts: list[str], sides: list[Part]) -> None:
    """Every group of near-copies stands on one side."""
    groups = near_duplicate_groups(texts, SplitConfig().near_duplicate_jaccard)
    assert len(set(groups)) < len(texts), "there are near-copies to keep together"
    assert len(set(zip(groups, sides, strict=True))) == len(set(groups))


def test_shingles_are_lower_case_word_triples() -> None:
    assert shingles("The cat  SAT down") == {"the cat sat", "cat sat down"}
    assert shingles("Two words") == {"two words"}
    assert shingles("") == {""}


def test_groups_are_those_of_the_exact_jaccard() -> None:
    """The slow truth: every pair compared, components by repeated merging."""
    texts = make_texts(40)
    texts += [near_copy(text) for text in texts[:15]] + [near_copy(near_copy(text), 20) for text in texts[:5]]
    random.Random(1).shuffle(texts)
    expected = list(range(len(texts)))
    for first, second in itertools.combinations(range(len(texts)), 2):
        if jaccard(texts[first], texts[second]) >= 0.7:
            low, high = sorted((expected[first], expected[second]))
            expected = [low if group == high else group for group in expected]
    assert near_duplicate_groups(texts, 0.7) == expected
    assert len(set(expected)) == 40


def test_a_chain_of_near_copies_is_one_group() -> None:
    chain = make_texts(1)
    for place in (3, 10, 17, 24):
        chain.append(near_copy(chain[-1], place))
    assert jaccard(chain[0], chain[-1]) < 0.7 <= jaccard(chain[0], chain[1])
    assert set(near_duplicate_groups(chain, 0.7)) == {0}
    assert len(set(near_duplicate_groups(chain, 1.0))) == 5


def test_near_copies_share_a_side() -> None:
    texts = make_texts(150)
    sides = assign_split([*texts, *(near_copy(text) for text in texts), *texts], SplitConfig())
    assert sides[:150] == sides[150:300] == sides[300:]
    assert set(sides) == {"train", "validation", "test"}


def test_row_order_does_not_matter() -> None:
    texts = make_texts(100)
    texts += [near_copy(text) for text in texts[:50]]
    sides = dict(zip(texts, assign_split(texts, SplitConfig()), strict=True))
    turned = random.Random(2).sample(texts, len(texts))
    assert dict(zip(turned, assign_split(turned, SplitConfig()), strict=True)) == sides


def test_other_rows_do_not_move_a_row() -> None:
    texts = make_texts(100)
    assert assign_split(texts[:60], SplitConfig()) == assign_split(texts, SplitConfig())[:60]


def test_shares_are_about_right() -> None:
    counts = Counter(assign_split(make_texts(1000), SplitConfig(validation=0.1, test=0.25)))
    # four standard deviations of a binomial count
    assert abs(counts["test"] - 250) < 4 * (1000 * 0.25 * 0.75) ** 0.5
    assert abs(counts["validation"] - 100) < 4 * (1000 * 0.1 * 0.9) ** 0.5


def test_the_seed_changes_the_split() -> None:
    texts = make_texts(100)
    first, second = (assign_split(texts, SplitConfig(seed=seed)) for seed in (0, 1))
    assert first == assign_split(texts, SplitConfig(seed=0))
    assert sum(one != other for one, other in zip(first, second, strict=True)) > 20


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (SplitConfig(), "train train train train train train train test train train"),
        (
            SplitConfig(validation=0.3, test=0.3, seed=5),
            "test train train validation test test validation validation train test",
        ),
    ],
)
def test_the_sides_of_one_split_stay_what_they_are(config: SplitConfig, expected: str) -> None:
    """Finished runs were split so: another answer would make their test rows training rows of the next run."""
    texts = ["a red cat", "the old stone bridge", "bread and butter", "two words", "a long walk by the sea"]
    texts += ["", "glass", "rain over the hills", "seven small lamps", "an open door"]
    assert assign_split(texts, config) == expected.split()


def every_fold(texts: list[str], folds: int, **changes: Any) -> list[list[Part]]:
    return [assign_split(texts, SplitConfig(folds=folds, fold=fold, **changes)) for fold in range(folds)]


@pytest.mark.parametrize(("folds", "seed"), [(2, 0), (3, 1), (5, 0), (10, 2)])
def test_every_text_is_test_in_exactly_one_fold_and_there_not_train(folds: int, seed: int) -> None:
    texts = make_texts(150)
    runs = every_fold([*texts, *(near_copy(text) for text in texts)], folds, seed=seed)
    for sides in zip(*runs, strict=True):
        counts = Counter(sides)
        assert counts["test"] == 1
        # the choice of validation does not depend on the fold: a text is train in every other run, or in none
        assert {counts["train"], counts["validation"]} == {folds - 1, 0}
    assert all({"train", "validation", "test"} == set(sides) for sides in runs)


@pytest.mark.parametrize("folds", [2, 4])
def test_near_copies_share_a_side_in_every_fold(folds: int) -> None:
    texts = make_texts(100)
    texts += [near_copy(text) for text in texts]
    for sides in every_fold(texts, folds):
        assert sides[:100] == sides[100:]
        assert_apart(texts, sides)


def test_row_order_and_other_rows_do_not_move_a_row_between_folds() -> None:
    texts = make_texts(80)
    texts += [near_copy(text) for text in texts[:40]]
    turned = random.Random(2).sample(texts, len(texts))
    for first, second, more in zip(every_fold(texts, 3), every_fold(turned, 3), every_fold([*texts, *make_texts(30, 1)], 3), strict=True):
        assert dict(zip(turned, second, strict=True)) == dict(zip(texts, first, strict=True))
        assert more[: len(texts)] == first


def test_folds_are_about_equal_and_so_is_validation_in_each() -> None:
    """`test` plays no part; validation is a share of what is not test, and not one end of the places that folds cut."""
    runs = every_fold(make_texts(1000), 4, validation=0.2, test=0.01)
    for fold, sides in enumerate(runs):
        assert abs(sides.count("test") - 250) < 4 * (1000 * 0.25 * 0.75) ** 0.5
        inside = [side for side, own in zip(runs[(fold + 1) % 4], sides, strict=True) if own == "test"]
        assert abs(inside.count("validation") - 0.2 * len(inside)) < 4 * (len(inside) * 0.2 * 0.8) ** 0.5


def test_the_seed_changes_folds_and_validation() -> None:
    texts = make_texts(200)
    first, second = (every_fold(texts, 4, validation=0.4, seed=seed) for seed in (0, 1))
    for part in ("test", "validation"):
        assert sum((one == part) != (other == part) for one, other in zip(first[0], second[0], strict=True)) > 20


def test_no_near_copy_is_on_two_sides() -> None:
    texts = make_texts(100)
    texts += [near_copy(text) for text in texts]
    sides = assign_split(texts, SplitConfig())
    assert_apart(texts, sides)


@pytest.mark.parametrize(
    "shares",
    [
        {"validation": 0.0},
        {"test": 0.0},
        {"validation": 0.5, "test": 0.5},
        {"near_duplicate_jaccard": 0.0},
        {"near_duplicate_jaccard": 1.1},
        {"test": 0.0, "folds": 4},
        {"folds": 1},
        {"folds": 0},
        {"folds": -3},
        {"fold": 1},
        {"fold": -1},
        {"folds": 4, "fold": 4},
        {"folds": 4, "fold": -1},
    ],
)
def test_impossible_shares_are_refused(shares: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"split: .*; expected ") as caught:
        SplitConfig(**shares)
    assert "\n" not in str(caught.value)
