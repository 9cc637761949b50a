"""Several questions answered at once are what each is alone, by one dense product and one sort."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from influcoder.aggregation import aggregate
from influcoder.errors import ConfigError, DataError
from influcoder.examples import Example, content_hash
from influcoder.index import Index, open_index, publish, write_shard
from influcoder.readers import Columns, DataSource
from influcoder.serving.answers import Question, search_questions
from influcoder.serving.batching import Batcher, Busy
from influcoder.serving.config import Limits, ServeConfig
from influcoder.serving.row_texts import RowTexts
from influcoder.text_format import TextFormat
from influcoder.top_k import Side
from tests.influcoder.test_index import fake_encoder, unit_rows


@pytest.fixture
def index(tmp_path: Path) -> Index:
    """500 rows in two shards, of which the last 50 repeat the first: ties."""
    first, second = unit_rows(300, 0), unit_rows(150, 1)
    parts = (first, np.concatenate([second, first[:50]]))
    start = 0
    for shard, part in enumerate(parts):
        write_shard(tmp_path, shard, part, [f"r{row}" for row in range(start, start + len(part))], [None] * len(part))
        start += len(part)
    publish(tmp_path, fake_encoder(), 2)
    return open_index(tmp_path)


def question(k: int, *weights: float, sides: tuple[Side, ...] = ("top", "bottom")) -> Question:
    queries = tuple(Example(id=str(place), context=(), response="a", weight=weight) for place, weight in enumerate(weights))
    return Question(queries=queries, k=k, sides=sides)


def dense_extremes(scores: NDArray[np.float64], k: int, side: Side) -> NDArray[np.int64]:
    return np.argsort(-scores if side == "top" else scores, kind="stable")[:k]


@pytest.mark.parametrize("top", [None, 1, 2])
def test_each_question_is_a_dense_product_and_a_sort(index: Index, top: int | None) -> None:
    questions = [question(7, 1, 0.5, -1, 2), question(30, 1), question(3, -2.0), question(600, 1, 1, sides=("bottom",))]
    vectors = unit_rows(8, 9)
    restored = np.concatenate([shard.restored() for shard in index.shards()]).astype(np.float64)
    found, start = search_questions(index, vectors, questions, top), 0
    for asked, parts in zip(questions, found, strict=True):
        weights = np.array([query.weight for query in asked.queries])
        scores = vectors[start : start + len(weights)].astype(np.float64) @ restored.T
        start += len(weights)
        assert len(parts) == len(weights) + 1 and all(tuple(sides) == asked.sides for sides in parts)
        for wanted, sides in zip([*scores, aggregate(scores, weights, top)], parts, strict=True):
            for side, (given, rows) in sides.items():
                expected = dense_extremes(wanted, asked.k, side)
                np.testing.assert_allclose(given, wanted[expected], atol=1e-5)
                np.testing.assert_allclose(wanted[rows], wanted[expected], atol=1e-5)
                assert len(set(rows.tolist())) == len(expected)


def test_answers_of_a_batch_do_not_depend_on_its_other_questions(index: Index) -> None:
    one, other, vectors = question(5, 1, -1), question(90, 1), unit_rows(3, 9)
    together = search_questions(index, vectors, [one, other], 5)
    for asked, part, answer in ((one, vectors[:2], together[0]), (other, vectors[2:], together[1])):
        (alone,) = search_questions(index, part, [asked], 5)
        for left, right in zip(alone, answer, strict=True):
            for side in asked.sides:
                np.testing.assert_array_equal(left[side][1], right[side][1])
                np.testing.assert_allclose(left[side][0], right[side][0], atol=1e-6)


class Worker:
    """Doubles numbers; holds the first batch until it is let go."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.go, self.begun = threading.Event(), threading.Event()

    def __call__(self, batch: Sequence[int]) -> list[int]:
        self.batches.append(list(batch))
        self.begun.set()
        assert self.go.wait(10)
        if 13 in batch:
            raise ValueError("thirteen")
        return [2 * each for each in batch]


async def begin(batcher: Batcher[int, int], worker: Worker, *numbers: int) -> list[asyncio.Task[int]]:
    tasks = [asyncio.create_task(batcher.ask(numbers[0]))]
    await asyncio.to_thread(worker.begun.wait, 10)
    tasks += [asyncio.create_task(batcher.ask(number)) for number in numbers[1:]]
    await asyncio.sleep(0)
    return tasks


def test_what_waits_makes_the_next_batch() -> None:
    async def scenario() -> None:
        worker = Worker()
        batcher = Batcher(worker, size=lambda number: number, max_size=6, max_waiting=4)
        tasks = await begin(batcher, worker, 1, 2, 4, 9, 3)
        with pytest.raises(Busy):
            await batcher.ask(5)
        worker.go.set()
        assert await asyncio.gather(*tasks) == [2, 4, 8, 18, 6]
        assert worker.batches == [[1], [2, 4], [9], [3]], "at most 6 together, one that is larger alone, all in order"
        assert await batcher.ask(5) == 10

    asyncio.run(scenario())


def test_who_gave_up_costs_nothing_and_makes_room() -> None:
    async def scenario() -> None:
        worker = Worker()
        batcher = Batcher(worker, size=lambda number: 1, max_size=6, max_waiting=2)
        tasks = await begin(batcher, worker, 1, 2, 3)
        tasks[1].cancel()
        await asyncio.sleep(0)
        last = asyncio.create_task(batcher.ask(4))
        await asyncio.sleep(0)
        worker.go.set()
        assert list(await asyncio.gather(tasks[0], tasks[2], last)) == [2, 6, 8]
        assert worker.batches == [[1], [3, 4]]

    asyncio.run(scenario())


def test_a_failure_is_told_to_its_batch_alone() -> None:
    async def scenario() -> None:
        worker = Worker()
        batcher = Batcher(worker, size=lambda number: 1, max_size=6, max_waiting=9)
        worker.go.set()
        with pytest.raises(ValueError, match="thirteen"):
            await batcher.ask(13)
        assert await batcher.ask(4) == 8

    asyncio.run(scenario())


def test_texts_are_those_the_encoder_read(tmp_path: Path, index: Index) -> None:
    pool = tmp_path / "pool.jsonl"
    first, copied = (
        '{"id": "r1", "prompt": "abcdef", "response": "uvwxyz", "who": "ada"}',
        '{"prompt": "", "response": "same", "who": null}',
    )
    pool.write_text("\n".join([first, copied, "no json", copied, first]) + "\n")
    source = DataSource(paths=(str(pool),), columns=Columns(contributor="who"))
    texts = RowTexts(source, TextFormat(max_prompt_chars=4, max_response_chars=3))
    assert texts.find("r1") == {"id": "r1", "prompt": "cdef", "response": "uvw", "contributor": "ada"}
    copy = Example(id="", context=(), response="same")
    for row_id in (content_hash(copy.context, copy.response), content_hash(copy.context, copy.response) + "-2"):
        assert texts.find(row_id) == {"id": row_id, "prompt": "", "response": "sam", "contributor": None}
    assert texts.find("r2") is None and texts.find("\ud800") is None
    texts.check_pool(index, "pool")
    pool.write_text('{"id": "x", "prompt": "a", "response": "b"}\n')
    with pytest.raises(DataError, match=r"pool: no row has the id 'r0', nor that of another of the first 100 rows"):
        RowTexts(DataSource(paths=(str(pool),)), TextFormat()).check_pool(index, "pool")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"host": "0.0.0.0"}, r"host: 0\.0\.0\.0 can be reached from other machines"),
        ({"host": "::"}, "can be reached"),
        ({"host": "example.org"}, "can be reached"),
        ({"port": 70000}, "port: 70000"),
        ({"top": 0}, "top: 0"),
    ],
)
def test_settings_that_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ServeConfig(encoder="e", index="i", **settings)  # type: ignore[arg-type]


def test_limits_and_tokens_that_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for limits in ({"k": 0}, {"seconds": 0.0}, {"seconds": float("nan")}, {"queries": 65}):
        with pytest.raises(ConfigError, match=r"^limits\."):
            Limits(**limits)
    config = ServeConfig(encoder="e", index="i", host="0.0.0.0", token_variable="THE_TOKEN")
    for value in ("", "two words", "naïve"):
        monkeypatch.setenv("THE_TOKEN", value)
        with pytest.raises(ConfigError, match=r"\$THE_TOKEN is"):
            config.read_token()
    monkeypatch.setenv("THE_TOKEN", "s3cret")
    assert config.read_token() == "s3cret"
    for host in ("localhost", "127.0.0.1", "127.8.0.1", "::1", "[::1]"):
        assert ServeConfig(encoder="e", index="i", host=host).read_token() is None
