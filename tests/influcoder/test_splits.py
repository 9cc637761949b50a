from __future__ import annotations

import itertools
import random
from collections import Counter
from typing import Any

import pytest

from influcoder.errors import ConfigError, DataError
from influcoder.splits import SplitConfig, assign_split, check_no_leakage, near_duplicate_groups, shingles

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


def test_leakage_is_refused_with_count_and_first_text() -> None:
    train, judged = make_texts(30), make_texts(30, seed=1)
    check_no_leakage(train, judged, 0.7, "test rows")
    leaking = [*judged, near_copy(train[4]), train[5]]
    with pytest.raises(DataError, match="test rows: 2 of 32 have a near-copy among the distillation's training rows") as caught:
        check_no_leakage(train, leaking, 0.7, "test rows")
    assert repr(near_copy(train[4])[:80]) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_split_passes_its_own_leakage_check() -> None:
    texts = make_texts(100)
    texts += [near_copy(text) for text in texts]
    sides = assign_split(texts, SplitConfig())
    parts = {part: [text for text, side in zip(texts, sides, strict=True) if side == part] for part in ("train", "test")}
    check_no_leakage(parts["train"], parts["test"], SplitConfig().near_duplicate_jaccard, "test rows")


@pytest.mark.parametrize(
    "shares",
    [
        {"validation": 0.0},
        {"test": 0.0},
        {"validation": 0.5, "test": 0.5},
        {"near_duplicate_jaccard": 0.0},
        {"near_duplicate_jaccard": 1.1},
    ],
)
def test_impossible_shares_are_refused(shares: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="split: "):
        SplitConfig(**shares)
