"""Every YAML file in configs/ is a config of its stage, and its resolved form can be passed back."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

import pytest

from influcoder.errors import ConfigError
from influcoder.program import parse_config

CLASSES = {
    "teacher": "teacher.config:TeacherConfig",
    "student": "student.config:StudentConfig",
    "eval": "eval.config:EvalConfig",
    "attribution": "influcoder.attribution:AttributionConfig",
    "truth": "eval.truth.config:TruthConfig",
}
"""which config a file holds, by the word its name begins with"""

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
FILES = sorted(path.relative_to(CONFIGS).as_posix() for path in CONFIGS.rglob("*.y*ml") if path.parent.name != "sweeps")
"""sweeps are no configs: tests/student/test_sweep.py"""


def stage_of(name: str) -> str:
    (stage,) = [stage for stage in CLASSES if Path(name).name.startswith(stage)]
    return stage


def config_class(stage: str) -> type[Any]:
    module, _, name = CLASSES[stage].partition(":")
    found: type[Any] = getattr(importlib.import_module(module), name)
    return found


def asked_of(name: str) -> list[str]:
    """Environment variables that a config asks for and has no default for; its comments aside."""
    lines = (line.partition("#")[0] for line in (CONFIGS / name).read_text().splitlines())
    return [variable for line in lines for variable in re.findall(r"\$\{(\w+)\}", line)]


@pytest.mark.parametrize("name", FILES)
def test_the_file_is_a_config_of_its_stage(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = stage_of(name)
    for variable in asked_of(name):
        monkeypatch.setenv(variable, "rows.jsonl")
    found, resolved = parse_config(config_class(stage), [str(CONFIGS / name)], stage)
    (tmp_path / "config.yaml").write_text(resolved)
    again, resolved_again = parse_config(config_class(stage), [str(tmp_path / "config.yaml")], stage)
    assert again == found
    assert resolved_again == resolved


@pytest.mark.parametrize("name", [name for name in FILES if asked_of(name)])
def test_rows_of_ones_own_are_asked_for_by_name(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in asked_of(name):
        monkeypatch.delenv(variable, raising=False)
    with pytest.raises(ConfigError, match=r"\$\{ROWS\}: that environment variable is not set"):
        parse_config(config_class(stage_of(name)), [str(CONFIGS / name)], stage_of(name))


@pytest.mark.parametrize("folder", sorted({path.name for path in CONFIGS.iterdir() if path.is_dir()} - {"sweeps"}))
def test_no_folder_is_empty(folder: str) -> None:
    assert any(name.startswith(f"{folder}/") for name in FILES), f"configs/{folder} holds no YAML file"


@pytest.mark.parametrize("folder", ["demo", "bench", "gpu", "paper"])
def test_the_folder_has_every_stage(folder: str) -> None:
    stages = {stage_of(name) for name in FILES if name.startswith(f"{folder}/")}
    assert stages >= {"teacher", "student", "eval"}
