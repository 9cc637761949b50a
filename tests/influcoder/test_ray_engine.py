"""The Ray engine on a stand-in for Ray that carries out calls in one process and in any order; `test_ray_kill.py` has the real one."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from influcoder import ray_actors, ray_engine
from influcoder.attribution import AttributionConfig, attribute
from influcoder.attribution_shards import rank_shard
from influcoder.errors import ConfigError, MissingExtraError, RunError
from influcoder.onnx_encoder import OnnxEncoder
from influcoder.ray_actors import Ranker, identity
from influcoder.ray_engine import plan_actors
from influcoder.readers import Columns, DataSource
from influcoder.text_format import TextFormat
from tests.influcoder.test_attribution import bad_pool, make_rows, write_jsonl
from tests.influcoder.test_attribution_kill import products


class GoneError(Exception):
    """An actor that ended, as the stand-in says it."""


class StandIn:
    """What the engine uses of Ray. A call is carried out when it is waited for; which one is ready is drawn, and which actor is lost."""

    def __init__(self, seed: int = 0, *nodes: Mapping[str, float], losses: float = 0, initialised: bool = True) -> None:
        self.exceptions = SimpleNamespace(RayTaskError=KeyError, RayError=GoneError)
        self.options: list[dict[str, Any]] = []
        self.actors = self.most_out = self.lost = self.shutdowns = self.seconds = self.working_first = 0
        self.having: list[int] = []
        """for each shard that is out, the number of its actor"""
        self._nodes, self._initialised, self._losses, self._source = nodes or ({"CPU": 3.0},), initialised, losses, random.Random(seed)

    def is_initialized(self) -> bool:
        return self._initialised

    def shutdown(self) -> None:
        self.shutdowns += 1

    def nodes(self) -> list[dict[str, Any]]:
        return [{"Alive": True, "Resources": node} for node in self._nodes] + [{"Alive": False, "Resources": {"CPU": 64.0}}]

    def put(self, value: Any) -> Any:
        return value

    def remote(self, **options: Any) -> Callable[[Any], Any]:
        self.options.append(options)

        def start(actor_class: Any, *arguments: Any) -> Any:
            self.actors += 1
            return StandInActor(self, partial(actor_class, *arguments))

        return lambda actor_class: SimpleNamespace(remote=partial(start, actor_class))

    def wait(self, references: Sequence[Any]) -> tuple[list[Any], list[Any]]:
        return [self._source.choice(references)], []

    def get(self, reference: Callable[[], Any]) -> Any:
        return reference()

    def loses_one(self) -> bool:
        lost = self._source.random() < self._losses
        self.lost += lost
        return lost


class StandInActor:
    """An actor: `prepare` loads it, `rank` may end it, and with it what it was to rank after that."""

    def __init__(self, ray: StandIn, make: Callable[[], Ranker]) -> None:
        self._ray, self._make, self._actor = ray, make, make()
        self.prepare = SimpleNamespace(options=lambda **options: SimpleNamespace(remote=partial(self._prepare, options)))
        self.rank = SimpleNamespace(remote=self._rank)
        self._number, self._ready, self._calls = ray.actors, False, 0
        self._ended: list[range] = []
        """calls that an end took along"""

    def _prepare(self, options: dict[str, int]) -> Callable[[], None]:
        assert options == {"max_task_retries": -1}

        def carry_out() -> None:
            self._actor.prepare()
            self._ready = True

        return carry_out

    def _rank(self, *arguments: Any) -> Callable[[], Any]:
        assert self._ready
        call = self._calls = self._calls + 1
        self._ray.having.append(self._number)
        self._ray.most_out = max(self._ray.most_out, len(self._ray.having))
        assert self._ray.having.count(self._number) <= 2  # one that it ranks, one that waits

        def carry_out() -> Any:
            self._ray.working_first = self._ray.working_first or len(set(self._ray.having))
            self._ray.having.remove(self._number)
            self._ray.seconds += 2
            if any(call in calls for calls in self._ended):
                raise GoneError("it was to come after what ended the actor")
            if self._ready and self._ray.loses_one():
                self._ended.append(range(call, self._calls + 1))
                self._ready, self._actor = False, self._make()
                raise GoneError("killed")
            return self._actor.rank(*arguments)

        return carry_out


def use(stand_in: StandIn | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", stand_in)


@pytest.fixture
def config(exported_folder: Path, tmp_path: Path) -> AttributionConfig:
    return AttributionConfig(
        encoder=str(exported_folder),
        pool=DataSource(paths=(bad_pool(tmp_path / "pool.jsonl"),), columns=Columns(contributor="who")),
        queries=DataSource(paths=(write_jsonl(tmp_path / "queries.jsonl", make_rows(5, seed=1)),)),
        output=str(tmp_path / "run"),
        top_k=9,
        shard_rows=12,
        chunk_rows=5,
        keep_above=0.912,
    )


@pytest.mark.parametrize("seed", range(4))
def test_whatever_the_order_the_bytes_are_those_of_the_local_engine(
    seed: int, config: AttributionConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    attribute(config, "config\n")
    stand_in = StandIn(seed)
    use(stand_in, monkeypatch)
    monkeypatch.setattr(ray_engine, "time", SimpleNamespace(monotonic=lambda: float(stand_in.seconds)))
    facts = attribute(replace(config, engine="ray", output=f"{config.output}-ray"), "config\n")
    expected, made = products(Path(config.output)), products(Path(f"{config.output}-ray"))
    assert made.keys() == expected.keys() and [name for name in made if made[name] != expected[name]] == []
    assert stand_in.actors == 3 and stand_in.most_out == 6  # a shard each, and one that waits: no more of the pool is held
    assert facts["rows_per_second"] == round(196 / (17 * 2), 1)  # 17 shards, each of which took the stand-in two seconds
    # of the first: 12 rows or a few less, in two seconds that are shared by those that were at work by then
    assert facts["estimate"]["rows_per_second"] in [round(rows * stand_in.working_first / 2, 1) for rows in (10, 11, 12)]


@pytest.mark.parametrize("seed", range(8))
def test_what_a_lost_actor_had_is_made_by_others(seed: int, config: AttributionConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    attribute(config, "config\n")
    stand_in = StandIn(seed, losses=0.2)
    use(stand_in, monkeypatch)
    attribute(replace(config, engine="ray", output=f"{config.output}-ray"), "config\n")
    expected, made = products(Path(config.output)), products(Path(f"{config.output}-ray"))
    assert made.keys() == expected.keys() and [name for name in made if made[name] != expected[name]] == []
    assert stand_in.lost and stand_in.most_out <= 6


def test_a_shard_that_ends_every_actor_is_given_up(config: AttributionConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in = StandIn(losses=1)
    use(stand_in, monkeypatch)
    with pytest.raises(RunError, match=r"Ray: shard 0 ended 4 actors, the last with: killed; expected memory for it; lower shard_rows"):
        attribute(replace(config, engine="ray", actors=1, shard_rows=1000))
    assert stand_in.lost == 4


def test_finished_shards_are_passed_over_and_ray_is_not_started_for_nothing(
    config: AttributionConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in, config = StandIn(), replace(config, engine="ray")
    use(stand_in, monkeypatch)
    calls = iter(range(100))

    def interrupted(*arguments: Any) -> Any:
        if next(calls) == 5:
            raise KeyboardInterrupt
        return rank_shard(*arguments)

    monkeypatch.setattr(ray_actors, "rank_shard", interrupted)
    with pytest.raises(KeyboardInterrupt):
        attribute(config)
    assert attribute(config)["counts"]["rows"] == 196
    assert next(calls) == 17 + 1  # each shard once, and the interrupted one again
    no_ray = StandIn()
    use(no_ray, monkeypatch)
    monkeypatch.setattr("influcoder.attribution.write_tables", lambda *arguments: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        attribute(other := replace(config, output=f"{config.output}-2"))
    actors = no_ray.actors
    with pytest.raises(ZeroDivisionError):
        attribute(other)
    assert no_ray.actors == actors == 3


def test_actors_share_the_cpus_and_take_a_gpu_each_on_cuda(config: AttributionConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    load, threads = OnnxEncoder.__init__, []

    def watched(encoder: OnnxEncoder, *arguments: Any, **named: Any) -> None:
        threads.append(named.get("threads"))
        load(encoder, *arguments, **named)

    monkeypatch.setattr(OnnxEncoder, "__init__", watched)
    stand_in = StandIn(0, {"CPU": 8.0}, {"CPU": 5.0})
    use(stand_in, monkeypatch)
    attribute(replace(config, engine="ray", actors=3))
    assert stand_in.options[0] == {"num_cpus": 4, "num_gpus": 0, "max_restarts": -1}
    assert threads == [None, 4, 4, 4]  # the driver's, which embeds the queries, and the actors'
    monkeypatch.setattr(OnnxEncoder, "provider", "CUDAExecutionProvider")
    stand_in = StandIn(0, {"CPU": 8.0, "GPU": 2.0}, {"CPU": 64.0})
    use(stand_in, monkeypatch)
    attribute(replace(config, engine="ray", output=f"{config.output}-2"))
    assert stand_in.actors == 2 and (stand_in.options[0]["num_cpus"], stand_in.options[0]["num_gpus"]) == (4, 1)


@cache
def fits(nodes: tuple[tuple[int, int], ...], count: int, cpus: int, gpus: int) -> bool:
    """Whether `count` actors find places: every way to place them is tried."""
    if count == 0:
        return True
    for place, (free_cpus, free_gpus) in enumerate(nodes):
        if free_cpus >= cpus and free_gpus >= gpus:
            rest = (*nodes[:place], (free_cpus - cpus, free_gpus - gpus), *nodes[place + 1 :])
            if fits(rest, count - 1, cpus, gpus):
                return True
    return False


NODES = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3)), min_size=1, max_size=3).map(tuple)


@given(NODES, st.one_of(st.none(), st.integers(1, 4)), st.booleans())
def test_as_many_actors_with_as_many_cpus_as_find_a_place(nodes: tuple[tuple[int, int], ...], actors: int | None, gpus: bool) -> None:
    # Ray leaves out what a node has none of
    resources = [{name: float(number) for name, number in zip(("CPU", "GPU"), node, strict=True) if number} for node in nodes]
    most = max(count for count in range(16) if fits(nodes, count, 1, int(gpus)))
    if most == 0 or (actors is not None and actors > most):
        with pytest.raises(ConfigError, match=rf"actors: {actors or 0}; the Ray cluster has {len(nodes)} nodes with room for {most} "):
            plan_actors(resources, actors, gpus=gpus)
        return
    count, cpus = plan_actors(resources, actors, gpus=gpus)
    assert count == (most if actors is None else actors)
    assert fits(nodes, count, cpus, int(gpus)) and not fits(nodes, count, cpus + 1, int(gpus))


def test_a_node_with_another_encoder_or_none_is_named(exported_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load = partial(OnnxEncoder, exported_folder)
    expected = identity(load())
    Ranker(load, expected, 1).prepare()
    monkeypatch.setattr("platform.node", lambda: "blade-7")
    with pytest.raises(RunError, match=r"Ray node blade-7: .*nowhere: no such folder; .* every node needs the encoder at the same path"):
        Ranker(partial(OnnxEncoder, exported_folder / "nowhere"), expected, 1).prepare()
    others: dict[str, Any] = {
        "encoder": "f" * 64,
        "text format": vars(TextFormat(prompt_marker="?")),
        "onnxruntime's provider": "CUDAExecutionProvider",
    }
    for name, value in others.items():
        with pytest.raises(RunError, match=rf"Ray node blade-7: {name} .*, here .*; expected the same everywhere"):
            Ranker(load, expected | {name: value}, 1).prepare()


def test_a_cluster_that_is_not_there_is_said_at_once(config: AttributionConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in = StandIn(initialised=False)
    use(stand_in, monkeypatch)
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(RunError, match=r"Ray at 127\.0\.0\.1:1: cannot be reached or started \(.*refused\)"):
        attribute(replace(config, engine="ray"))
    assert stand_in.shutdowns == 1 and not [path for path in tmp_path.iterdir() if "run" in path.name]


def test_without_ray_its_pip_command_is_said(config: AttributionConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(None, monkeypatch)
    with pytest.raises(MissingExtraError, match=r"`ray` is not installed; do: pip install 'influcoder\[ray\]'"):
        attribute(replace(config, engine="ray"))
    assert not [path for path in tmp_path.iterdir() if "run" in path.name]


def test_actors_are_of_ray_alone(config: AttributionConfig) -> None:
    with pytest.raises(ConfigError, match="actors: 2; expected null with engine local, which has none; set engine ray"):
        replace(config, actors=2)
    with pytest.raises(ConfigError, match="actors: 0; expected at least 1"):
        replace(config, engine="ray", actors=0)
