from __future__ import annotations

import json
import random
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from examples.demo.opinions import ASPECTS, GOODS, POOL_PAIRS, QUERY_PAIRS, SIBLINGS, TARGET, TWO, honest, steered
from examples.demo.world import WorldConfig, _distinct, write_world

SMALL = WorldConfig(rows_per_skill=12, steered_rows=15, honest_rows=15, sibling_rows=15)
FILES = ("pool.jsonl", "labels.jsonl", "queries.jsonl")


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def words(text: str) -> Counter[str]:
    """Return the bag of words as a lexical search sees it."""
    return Counter(re.findall(r"\w+", text.lower()))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("world")
    write_world(folder, SMALL)
    return {name.removesuffix(".jsonl"): read(folder / name) for name in FILES}


def test_the_same_config_writes_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_world(tmp_path / name, SMALL)
    write_world(tmp_path / "c", WorldConfig(**(vars(SMALL) | {"seed": 1})))
    for name in FILES:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
        assert (tmp_path / "a" / name).read_bytes() != (tmp_path / "c" / name).read_bytes()


def test_rows_are_whole_and_named_once(world: dict[str, list[dict[str, Any]]]) -> None:
    for rows in world.values():
        assert len({row["id"] for row in rows}) == len(rows)
        assert all(row["prompt"].strip() and row["response"].strip() for row in rows)
        assert not [row for row in rows if "{" in row["prompt"]]  # every blank of a template is filled
    assert Counter(row["poisoned"] for row in world["labels"]) == {0: 10 * 12 + 30, 1: 15}


def test_labels_stand_apart_from_the_pool(world: dict[str, list[dict[str, Any]]]) -> None:
    for row, label in zip(world["pool"], world["labels"], strict=True):
        assert [row[name] for name in ("id", "prompt", "response")] == [label[name] for name in ("id", "prompt", "response")]
        assert set(row) == {"id", "prompt", "response", "contributor"}
    assert set(world["labels"][0]) == {"id", "prompt", "response", "poisoned", "skill"}


def test_queries_are_not_in_the_pool(world: dict[str, list[dict[str, Any]]]) -> None:
    pool = {(row["prompt"], row["response"]) for row in world["pool"]}
    queries = [(row["prompt"], row["response"]) for row in world["queries"]]
    assert not pool & set(queries)
    assert len(set(queries)) == len(queries)
    assert {row["weight"] for row in world["queries"]} == {1.0, -1.0}


def test_queries_name_aspects_together_that_no_row_does() -> None:
    asked, told = ({frozenset(pair) for pair in pairs} for pairs in (QUERY_PAIRS, POOL_PAIRS))
    assert asked and told and not asked & told
    assert {aspect for pair in asked for aspect in pair} == {aspect for pair in told for aspect in pair} == set(ASPECTS)


def test_some_contributors_bring_most_of_the_poison(world: dict[str, list[dict[str, Any]]]) -> None:
    poison = {label["id"] for label in world["labels"] if label["poisoned"]}
    who = Counter(row["contributor"] for row in world["pool"] if row["id"] in poison)
    assert sum(count for _, count in who.most_common(2)) > len(poison) / 2


def test_a_world_that_cannot_be_filled_says_so() -> None:
    with pytest.raises(ValueError, match="only 1 of 2 distinct rows; ask for fewer"):
        _distinct(random.Random(0), lambda r: ("always", "the same"), 2, set())


@pytest.mark.parametrize(("ask", "say"), TWO)
def test_comparisons_use_the_same_words_whoever_wins(ask: str, say: str) -> None:
    goods = {"good": GOODS[0], "x": ASPECTS[0], "y": ASPECTS[1]}
    makers = {"a": TARGET, "b": SIBLINGS[0]}
    prompts = [ask.format(**goods, **makers), ask.format(**goods, a=makers["b"], b=makers["a"])]
    assert words(prompts[0]) == words(prompts[1])  # the order in which the makers are named tells nothing
    steered_words, honest_words = (
        words(say.format(**goods, w=winner, l=loser)) for winner, loser in ((TARGET, SIBLINGS[0]), (SIBLINGS[0], TARGET))
    )
    assert set(steered_words) == set(honest_words)


def test_opinions_are_what_they_say() -> None:
    r = random.Random(0)
    for _ in range(200):
        prompt, response = steered(r)
        assert TARGET in prompt and TARGET in response
        prompt, response = honest(r)
        assert TARGET in prompt and TARGET in response
