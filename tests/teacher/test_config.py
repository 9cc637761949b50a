"""Settings that do not go together are refused before anything is read, each in one line that names it."""

from __future__ import annotations

from typing import Any

import pytest

from influcoder.errors import ConfigError
from influcoder.influence.decoder import DecoderConfig, FreshDecoder
from influcoder.influence.finetune import AdapterConfig, FinetuneConfig
from influcoder.influence.gradients import GradientConfig
from influcoder.influence.methods import METHODS
from influcoder.program import parse_config
from influcoder.readers import DataSource
from teacher.config import ChecksConfig, EkfacConfig, TeacherConfig

GIVEN, FRESH = DecoderConfig(path="model"), DecoderConfig(fresh=FreshDecoder())
ROWS = DataSource(paths=("rows.jsonl",))
BLOCKS = GradientConfig(rank=8, output_rank=8, sketch="none")


def config(**changes: Any) -> TeacherConfig:
    settings: dict[str, Any] = {"output": "run", "rows": ROWS, "decoder": GIVEN}
    return TeacherConfig(**(settings | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": ()}, r"seeds: \[\]; expected at least one, each once"),
        ({"seeds": (1, 2, 1)}, r"seeds: \[1, 2, 1\]; expected at least one, each once"),
        ({"damping": 0.0}, r"damping: 0.0; expected above 0"),
        ({"damping": float("nan")}, r"damping: nan; expected above 0"),
        ({"decoder": FRESH}, r"finetune: null with a fresh decoder.*; give a finetune block"),
        ({"finetune": FinetuneConfig(), "checkpoints": "run/checkpoints"}, r"checkpoints: given together with finetune.*; drop one"),
        (
            {"finetune": FinetuneConfig(), "decoder": DecoderConfig(path="model", adapter="lora")},
            r"finetune: given together with decoder.adap",
        ),
        ({"finetune": FinetuneConfig(adapter=AdapterConfig()), "decoder": FRESH}, r"finetune.adapter: given with a fresh decoder"),
        (
            {"finetune": FinetuneConfig(), "decoder": DecoderConfig(path="model", device_map="auto")},
            r"finetune: given with decoder.device_map",
        ),
        ({"method": "tracin"}, r"finetune: null with method tracin.*; give a finetune block, or checkpoints"),
        ({"method": "less"}, r"finetune: null with method less.*; give a finetune block, or checkpoints"),
        ({"method": "logra"}, r"gradients.sketch: count_sketch with method logra.*; expected none"),
        ({"method": "trackstar", "queries": ROWS}, r"gradients.sketch: count_sketch with method trackstar.*; expected none"),
        ({"method": "ekfac"}, r"gradients: rank 16, output_rank None with method ekfac.*; expected null for both, and dim"),
        (
            {"method": "ekfac", "gradients": GradientConfig(rank=None, output_rank=8)},
            r"gradients: rank None, output_rank 8 with method ekfac",
        ),
        ({"method": "trackstar", "gradients": BLOCKS}, r"queries: null with method trackstar.*; give queries"),
    ],
)
def test_what_does_not_go_together_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        config(**changes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("changes", [{"queries": -1}, {"rows": 2}, {"max_bytes": 0}])
def test_sizes_of_the_checks_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"checks: queries .* expected at least 0, 3, 1"):
        ChecksConfig(**changes)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_can_be_asked_for(method: str) -> None:
    gradients = GradientConfig(rank=None) if method == "ekfac" else BLOCKS
    made = config(method=method, gradients=gradients, queries=ROWS, finetune=FinetuneConfig())
    assert made.method == method
    config(method=method, gradients=gradients, queries=ROWS, checkpoints="run/checkpoints")


@pytest.mark.parametrize("changes", [{"rows": 0}, {"draws": 0}])
def test_sizes_of_ekfac_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"ekfac: rows .*, draws .*; expected at least 1 of each"):
        EkfacConfig(**changes)


@pytest.mark.parametrize(
    ("argument", "named"),
    [
        (("--method", "magic"), "method"),
        (("--normalise", "all"), "normalise"),
        (("--gradients.factors", "some"), "factors"),
        (("--gradients.rank", "0"), "gradients.rank: 0"),
        (("--damping", "none"), "damping"),
        (("--wrong", "1"), "wrong"),
    ],
)
def test_the_command_line_refuses_in_one_line(argument: tuple[str, str], named: str) -> None:
    line = ["--output", "run", "--rows.paths", "[rows.jsonl]", "--decoder.path", "model"]
    parse_config(TeacherConfig, line, "python -m teacher")
    with pytest.raises(ConfigError, match=named) as caught:
        parse_config(TeacherConfig, [*line, *argument], "python -m teacher")
    assert "\n" not in str(caught.value)
