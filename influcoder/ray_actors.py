"""The actors of the Ray engine, and who has which shard: what a lost actor had, others get, until it is back.

Ray's own retries would send a shard to the same actor again: at once while its machine is still being missed, or never when nowhere
has room to start it anew. So a call fails when its actor does, and the shard goes to the next one that is free.
"""

from __future__ import annotations

import os
import platform
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from types import ModuleType
from typing import Any

from influcoder.attribution_shards import RankedShard, Ranking, Shard, rank_shard
from influcoder.errors import InflucoderError, RunError
from influcoder.onnx_encoder import OnnxEncoder

SHARDS_AN_ACTOR = 2
"""one that it ranks, one that waits, so that it never waits for the driver"""
ATTEMPTS = 4
"""actors that a shard may end; then it is taken for the reason"""
Load = Callable[..., OnnxEncoder]
"""makes the encoder where it is called, given `threads`"""


class Ranker:
    """An actor: a process with the encoder in memory."""

    def __init__(self, load: Load, expected: Mapping[str, Any], threads: int) -> None:
        """Load nothing yet: what a constructor raises, Ray reports as the death of an actor."""
        os.environ["RAYON_NUM_THREADS"] = str(threads)  # tokenizers would take every core, in each actor
        self._load, self._expected, self._threads = load, expected, threads
        self._encoder: OnnxEncoder | None = None

    def prepare(self) -> None:
        """Load the encoder when it is not there yet.

        Raises:
            RunError: naming this node, when there is none or another than the driver's.
        """
        if self._encoder is not None:
            return
        node = f"Ray node {platform.node()}"
        try:
            encoder = self._load(threads=self._threads)
        except InflucoderError as error:
            raise RunError(f"{node}: {error} (on that node: every node needs the encoder at the same path)") from error
        for name, found in identity(encoder).items():
            if found != self._expected[name]:
                raise RunError(
                    f"{node}: {name} {found!r:.60}, here {self._expected[name]!r:.60}; expected the same everywhere; mend that node"
                )
        self._encoder = encoder

    def rank(self, settings: Mapping[str, Any], shard: Shard) -> RankedShard:
        """Rank a shard; `settings` are the fields of `Ranking` but the encoder."""
        self.prepare()  # of an actor that was started anew
        assert self._encoder is not None
        return rank_shard(shard, Ranking(encoder=self._encoder, **settings))


def identity(encoder: OnnxEncoder) -> dict[str, Any]:
    """Return what must be the same on all nodes, by its name in messages."""
    return {"encoder": encoder.fingerprint, "text format": asdict(encoder.text_format), "onnxruntime's provider": encoder.provider}


@dataclass(frozen=True)
class Task:
    """A shard that was given out."""

    number: int
    shard: Any
    """in Ray's object store, held for whoever needs it next"""
    attempt: int = 1


class Lost(Exception):
    """An actor ended, its machine is gone, or what it made is."""


class Crew:
    """Actors, and who has which shard. An actor gets none before its encoder is loaded, at the start or when it was lost."""

    def __init__(self, ray: ModuleType, actors: Sequence[Any], settings: Mapping[str, Any]) -> None:
        """Take actors that were just started; `settings` as for `Ranker.rank`."""
        self._ray, self._actors, self._settings = ray, actors, ray.put(settings)
        self._free: deque[int] = deque()
        self._waiting: deque[Task] = deque()
        self._tasks: dict[Any, tuple[Task, int]] = {}
        """what runs and on which actor, by the reference of its result"""
        self._loading: dict[Any, int] = {}
        """actors that are not there, by the reference that will say that they are"""
        for actor in range(len(actors)):
            self._load(actor)

    @property
    def room(self) -> bool:
        """Whether an actor can take another shard."""
        return bool(self._free)

    @property
    def busy(self) -> bool:
        """Whether a shard was given out that has not come back."""
        return bool(self._tasks or self._waiting)

    @property
    def working(self) -> int:
        """Actors that have a shard."""
        return len({actor for _, actor in self._tasks.values()})

    def give(self, number: int, shard: Shard) -> None:
        """Give out a shard; there is room for it."""
        self._waiting.append(Task(number, self._ray.put(shard)))
        self._hand_out()

    def next(self) -> tuple[int, RankedShard] | None:
        """Wait until something happens: return number and result of a shard that came back; None when it was something else.

        Raises:
            RunError: when an actor cannot start, its encoder is missing or another, or a shard ended too many of them.
        """
        reference = self._ray.wait([*self._tasks, *self._loading])[0][0]
        found = None
        if reference in self._loading:
            self._loaded(reference)
        else:
            found = self._came_back(reference)
        self._hand_out()
        return found

    def _load(self, actor: int) -> None:
        # Ray itself tries again until it has started the actor, here or on another node
        self._loading[self._actors[actor].prepare.options(max_task_retries=-1).remote()] = actor

    def _loaded(self, reference: Any) -> None:
        actor = self._loading.pop(reference)
        try:
            self._get(reference)
        except Lost as error:
            raise RunError(f"Ray: an actor cannot start ({error}); expected influcoder on every node of the cluster; mend that") from error
        still = sum(holder == actor for _, holder in self._tasks.values())
        self._free.extend([actor] * (SHARDS_AN_ACTOR - still))

    def _came_back(self, reference: Any) -> tuple[int, RankedShard] | None:
        task, actor = self._tasks.pop(reference)
        there = actor not in self._loading.values()
        try:
            ranked: RankedShard = self._get(reference)
        except Lost as error:
            if task.attempt == ATTEMPTS:
                raise RunError(
                    f"Ray: shard {task.number} ended {ATTEMPTS} actors, the last with: {error}; expected memory for it; "
                    "lower shard_rows or actors, or mend the cluster and run the same command again to go on"
                ) from error
            self._waiting.append(replace(task, attempt=task.attempt + 1))
            if there:
                self._free = deque(other for other in self._free if other != actor)
                self._load(actor)
            return None
        if there:
            self._free.append(actor)
        return task.number, ranked

    def _hand_out(self) -> None:
        while self._waiting and self._free:
            task, actor = self._waiting.popleft(), self._free.popleft()
            self._tasks[self._actors[actor].rank.remote(self._settings, task.shard)] = task, actor

    def _get(self, reference: Any) -> Any:
        try:
            return self._ray.get(reference)
        except self._ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, InflucoderError):
                raise error.cause from None  # our own message, without the actor's traceback
            raise
        except self._ray.exceptions.RayError as error:
            raise Lost(f"{' '.join(str(error).split()):.200}") from error
