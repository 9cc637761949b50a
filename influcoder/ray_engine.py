"""Shards of an attribution ranked by Ray, on one machine or on a cluster; the bytes are those of the local engine.

An actor (`ray_actors.py`) is a process that loaded the encoder once and turns rows into a `RankedShard`. It touches no file of the run:
the driver alone reads the pool, gives out whole shards, and commits what comes back, with the functions that the local engine calls.
So nodes share no storage but the encoder, a lost actor costs the shards it had, which are ranked again and are the same, and an actor
that outlives its driver can spoil nothing. At most two shards an actor are out, whatever the size of the pool.

Same bytes need the same kind of processor and the same onnxruntime on all nodes; that they have the same encoder and provider is checked.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from itertools import chain
from pathlib import Path
from types import ModuleType
from typing import Any

from influcoder.attribution_shards import Made, Ranking, Shard, commit_shard
from influcoder.errors import ConfigError, RunError, require
from influcoder.onnx_encoder import OnnxEncoder
from influcoder.ray_actors import Crew, Load, Ranker, identity


def make_on_ray(
    load: Load,
    actors: int | None,
    folder: Path,
    shards: Iterable[tuple[int, Shard]],
    ranking: Ranking,
    advance: Callable[[int], object],
) -> Made:
    """Rank numbered shards by actors and commit them as they come back, in any order.

    Args:
        load: makes the encoder.
        actors: how many; None takes one a GPU when the encoder runs on CUDA, else one a CPU.
        folder: of the run.
        shards: with their numbers.
        ranking: the driver's.
        advance: told of rows as they are committed.

    Yields:
        Number, commit record, and its share of the time: that is split among the shards being ranked, and adds up to all of it.

    Raises:
        RunError: when Ray cannot be reached, a node has another encoder or none, or a shard ends its process again and again.
        ConfigError: when the cluster has fewer CPUs or GPUs than actors.
    """
    ray, shards = require("ray", "ray"), iter(shards)
    first = next(shards, None)
    if first is None:
        return
    with _session(ray):
        settings = {field.name: getattr(ranking, field.name) for field in fields(ranking) if field.name != "encoder"}
        crew, counted = Crew(ray, _start_actors(ray, load, actors, ranking.encoder), settings), 0.0
        while not crew.room:
            crew.next()
        started = time.monotonic()

        def landed() -> Made:
            nonlocal counted
            working = crew.working
            if (found := crew.next()) is not None:
                record = commit_shard(folder, *found)
                advance(record["rows"])
                seconds = (time.monotonic() - started - counted) / working
                counted += seconds
                yield found[0], record, seconds

        for number, shard in chain([first], shards):
            while not crew.room:
                yield from landed()
            crew.give(number, shard)
        while crew.busy:
            yield from landed()


def plan_actors(nodes: Sequence[Mapping[str, float]], actors: int | None, *, gpus: bool) -> tuple[int, int]:
    """Return how many actors there will be, and how many CPUs each may have so that all of them find a node.

    Args:
        nodes: Ray's resources of each node.
        actors: as configured.
        gpus: each takes a GPU.

    Raises:
        ConfigError: when there is no place for so many.
    """

    def places(cpus: int) -> int:
        return sum(int(min(node.get("CPU", 0) // cpus, node.get("GPU", 0) if gpus else float("inf"))) for node in nodes)

    count = places(1) if actors is None else actors
    if not 1 <= count <= places(1):
        raise ConfigError(
            f"actors: {count}; the Ray cluster has {len(nodes)} nodes with room for {places(1)} (one a {'GPU' if gpus else 'CPU'}); "
            "expected 1 to that many; lower it, or add nodes"
        )
    return count, max(cpus for cpus in range(1, 1 + int(max(node.get("CPU", 0) for node in nodes))) if places(cpus) >= count)


@contextmanager
def _session(ray: ModuleType) -> Iterator[None]:
    """Connect to the cluster that RAY_ADDRESS names, or start Ray on this machine, and leave nothing of it behind."""
    if ray.is_initialized():  # by the caller, whose it stays
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is to be sent anywhere
    address = os.environ.get("RAY_ADDRESS", "")
    try:
        try:
            _check_reachable(address)
            ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
        except Exception as error:  # Ray raises plain Exception, too
            raise RunError(
                f"Ray at {address or 'this machine'}: cannot be reached or started ({error}); expected RAY_ADDRESS to name a cluster that "
                "runs, with RAY_AUTH_MODE=token when it is guarded by one, or neither for this machine; see `ray status`"
            ) from error
        yield
    finally:
        ray.shutdown()


def _check_reachable(address: str) -> None:
    host, _, port = address.rpartition(":")
    if port.isdigit():  # Ray itself would try for a quarter of an hour
        socket.create_connection((host.removeprefix("ray://"), int(port)), timeout=10).close()


def _start_actors(ray: ModuleType, load: Load, actors: int | None, encoder: OnnxEncoder) -> list[Any]:
    gpus = encoder.provider == "CUDAExecutionProvider"
    count, cpus = plan_actors([node["Resources"] for node in ray.nodes() if node["Alive"]], actors, gpus=gpus)
    actor = ray.remote(num_cpus=cpus, num_gpus=int(gpus), max_restarts=-1)(Ranker)
    return [actor.remote(load, identity(encoder), cpus) for _ in range(count)]
