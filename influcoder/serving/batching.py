"""Work on what came meanwhile: whatever waits while a batch is in the worker's hands makes the next batch.

An idle server answers at once, a busy one in batches as large as its load, and there is no delay to choose.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

Asked = TypeVar("Asked")
Answered = TypeVar("Answered")


class Busy(Exception):
    """Too many questions wait already."""


class Batcher(Generic[Asked, Answered]):
    """Answers questions in batches, one batch at a time, in a thread beside the event loop it is called from."""

    def __init__(
        self, work: Callable[[Sequence[Asked]], Sequence[Answered]], *, size: Callable[[Asked], int], max_size: int, max_waiting: int
    ) -> None:
        """Make a batcher.

        Args:
            work: answers a batch, in order.
            size: how much of a batch a question takes.
            max_size: of a batch; a question that is larger by itself is a batch of its own.
            max_waiting: questions that may wait.
        """
        self._work, self._size, self._max_size, self._max_waiting = work, size, max_size, max_waiting
        self._waiting: deque[tuple[Asked, asyncio.Future[Answered]]] = deque()
        self._worker: asyncio.Task[None] | None = None

    async def ask(self, question: Asked) -> Answered:
        """Return the answer to a question; one that is cancelled before its batch began costs nothing.

        Raises:
            Busy: when too many wait.
        """
        if len(self._waiting) >= self._max_waiting:
            self._waiting = deque(each for each in self._waiting if not each[1].done())
            if len(self._waiting) >= self._max_waiting:
                raise Busy
        future: asyncio.Future[Answered] = asyncio.get_running_loop().create_future()
        self._waiting.append((question, future))
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work_off())
        return await future

    async def _work_off(self) -> None:
        while batch := self._next_batch():
            try:
                answers = await asyncio.to_thread(self._work, [question for question, _ in batch])
            except Exception as error:
                for _, future in batch:
                    if not future.done():
                        future.set_exception(error)
            else:
                for (_, future), answer in zip(batch, answers, strict=True):
                    if not future.done():
                        future.set_result(answer)

    def _next_batch(self) -> list[tuple[Asked, asyncio.Future[Answered]]]:
        batch: list[tuple[Asked, asyncio.Future[Answered]]] = []
        total = 0
        while self._waiting:
            question, future = self._waiting[0]
            if not future.done():
                total += self._size(question)
                if batch and total > self._max_size:
                    break
                batch.append((question, future))
            self._waiting.popleft()
        return batch
