"""configs/sweeps holds files of `wandb sweep`: what their agent would run is a command of the student."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from influcoder.program import make_parser, parse_config
from student.config import StudentConfig
from student.dashboard import metric_name
from student.module import MONITOR

SWEEPS = sorted((Path(__file__).resolve().parents[2] / "configs" / "sweeps").glob("*.yaml"))


def values_of(parameter: dict[str, Any]) -> list[Any]:
    """Return the values that a parameter can take; of a range, its ends."""
    (found,) = ([parameter["value"]] if "value" in parameter else parameter.get("values", [parameter.get("min"), parameter.get("max")]),)
    assert None not in found, parameter
    return list(found)


def commands_of(sweep: dict[str, Any]) -> list[list[str]]:
    """Return the agent's command for each value of each parameter, the others at their first; its macros filled in."""
    first = {name: values_of(parameter)[0] for name, parameter in sweep["parameters"].items()}
    runs = [first | {name: value} for name, parameter in sweep["parameters"].items() for value in values_of(parameter)]
    macros = {"${env}": ["/usr/bin/env"], "${interpreter}": ["python"]}
    return [
        [word for part in sweep["command"] for word in (macros | {"${args}": [f"--{k}={v}" for k, v in run.items()]}).get(part, [part])]
        for run in runs
    ]


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_every_run_of_a_sweep_parses(path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(repository)
    monkeypatch.setenv("WANDB_RUN_ID", "abc123")
    sweep = yaml.safe_load(path.read_text())
    assert sweep["metric"] == {"name": metric_name("student"), "goal": "maximize"} or sweep["metric"]["name"] == MONITOR
    options = {name for action in make_parser(StudentConfig, "student")._actions for name in action.option_strings}
    missing = [name for name in sweep["parameters"] if f"--{name}" not in options]
    assert not missing, f"no options of the student: {missing}"
    for command in commands_of(sweep):
        assert command[:4] == ["/usr/bin/env", "python", "-m", "student"] and not any("${args" in word for word in command)
        config, _ = parse_config(StudentConfig, command[4:], "student")
        assert config.output.endswith("/abc123"), "each run has a folder of its own"
        assert config.trainer["logger"] == {"class_path": "lightning.pytorch.loggers.WandbLogger"}
        for given in (word.removeprefix("--").split("=") for word in command if word.startswith("--") and "trainer" not in word):
            found: Any = config
            for part in given[0].split("."):
                found = getattr(found, part)
            assert found == type(found)(given[1].replace("${WANDB_RUN_ID}", "abc123")), given


def test_there_is_a_sweep() -> None:
    assert SWEEPS
