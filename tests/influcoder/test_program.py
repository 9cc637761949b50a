from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from influcoder.errors import ConfigError
from influcoder.program import Setting, parse_config, run_program


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """How to step."""

    lr: float = 1e-3
    """step size of the optimizer"""
    name: Literal["adam", "sgd"] = "adam"
    """which optimizer"""
    label: str = ""
    """what to call it"""

    def __post_init__(self) -> None:
        if self.lr <= 0:
            raise ConfigError(f"optimizer.lr: {self.lr}; expected a positive number")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """A program for tests."""

    output: Path
    """where the run goes"""
    paths: tuple[str, ...] = ()
    """files to read"""
    seeds: list[int] = field(default_factory=lambda: [0])
    """seeds of the projection"""
    note: str | None = "none"
    """a word to the reader"""
    stages: tuple[Optimizer, ...] = ()
    """more of them"""
    optimizer: Optimizer = field(default_factory=Optimizer)
    """how to step"""
    trainer: dict[str, Setting] = field(default_factory=dict)
    """passed on"""


def parse(*arguments: str) -> Settings:
    return parse_config(Settings, arguments, "settings")[0]


def refusal(*arguments: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text("output: runs/x\nseeds: [1, 2]\noptimizer:\n  lr: 1e-5\n")
    return path


def test_yaml_becomes_the_dataclass(config: Path) -> None:
    expected = Settings(output=Path("runs/x"), seeds=[1, 2], optimizer=Optimizer(lr=1e-5))
    assert parse(str(config)) == expected
    assert parse("--config", str(config)) == expected


def test_1e_5_is_a_number(config: Path) -> None:
    """YAML 1.1 calls it a string."""
    found = parse(str(config)).optimizer.lr
    assert isinstance(found, float)
    assert found == 0.00001
    assert parse("--output=x", "--optimizer.lr=1e-5").optimizer.lr == 1e-5


def test_dotted_overrides_win_over_the_file(config: Path) -> None:
    found = parse(str(config), "--optimizer.lr", "0.5", "--optimizer.name=sgd", "--seeds", "[7]", "--paths", '["a", "b"]')
    assert found.optimizer == Optimizer(lr=0.5, name="sgd")
    assert found.seeds == [7]
    assert found.paths == ("a", "b")
    assert found.output == Path("runs/x")


@pytest.mark.parametrize(
    ("yaml", "words"),
    [
        ("output: x\noptimiser:\n  lr: 1\n", ["optimiser"]),
        ("output: x\noptimizer:\n  momentum: 1\n", ["momentum"]),
        ("output: x\nseeds: many\n", ["seeds", "many"]),
        ("output: x\noptimizer:\n  lr: fast\n", ["lr", "fast"]),
        ("output: x\noptimizer:\n  name: lion\n", ["name", "lion", "adam"]),
        ("output: x\noptimizer:\n  lr: -1\n", ["optimizer.lr: -1", "expected a positive number"]),
        ("seeds: [1]\n", ["output"]),
        ("output: x\noptimizer: 3\n", ["optimizer: 3; expected a section of settings"]),
        ("output: x\noptimizer:\n", ["optimizer: None; expected a section of settings"]),
        ("output: x\noptimizer: pool.jsonl\n", ["optimizer", "pool.jsonl"]),
        ("output: x\nseeds: [1\n", ["line 2"]),
        ("- output\n", ["output"]),
        ("", ["config"]),
    ],
)
def test_a_wrong_config_is_one_line_that_names_the_key(yaml: str, words: list[str], tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(yaml)
    line = refusal(str(path))
    assert all(word in line for word in words), line
    assert str(path) in line or line.startswith("optimizer.lr: -1"), line


def test_wrong_arguments_are_one_line() -> None:
    assert "absent.yaml: no such config file; expected a YAML file" in refusal("absent.yaml")
    assert "--speed" in refusal("--output=x", "--speed=1")
    assert "lr" in refusal("--output=x", "--optimizer.lr=fast")


def test_environment_variables_are_put_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SETTINGS_ROOT", "/somewhere")
    monkeypatch.delenv("SETTINGS_ABSENT", raising=False)
    path = tmp_path / "config.yaml"
    path.write_text(
        'output: "${SETTINGS_ROOT}/run"\npaths: ["${SETTINGS_ABSENT:-../data}/a", "${SETTINGS_ROOT:-../data}/b"]\n'
        'note: "${SETTINGS_ABSENT:-}"\n'
        'optimizer: {label: "${SETTINGS_ROOT}"}\nstages: [{label: "in ${SETTINGS_ROOT}"}]\n'
    )
    found, resolved = parse_config(Settings, [str(path)], "settings")
    assert found.output == Path("/somewhere/run")
    assert found.paths == ("../data/a", "/somewhere/b")
    assert found.note == ""
    assert (found.optimizer.label, found.stages[0].label) == ("/somewhere", "in /somewhere")
    assert "${" not in resolved
    path.write_text('output: "${SETTINGS_ABSENT}/run"\n')
    assert "${SETTINGS_ABSENT}: that environment variable is not set; set it, or write ${SETTINGS_ABSENT:-default}" in refusal(str(path))


def test_the_resolved_config_can_be_passed_back(config: Path, tmp_path: Path) -> None:
    overrides = ["--optimizer.name=sgd", '--paths=["a"]', "--note=null", '--stages=[{"lr": 2}]']
    found, resolved = parse_config(Settings, [str(config), *overrides], "settings")
    assert found.note is None
    assert found.stages == (Optimizer(lr=2.0),)
    (tmp_path / "resolved.yaml").write_text(resolved)
    again, resolved_again = parse_config(Settings, [str(tmp_path / "resolved.yaml")], "settings")
    assert again == found
    assert resolved_again == resolved


class Counted:
    """Not to be made by parsing a config that names it."""

    made = 0

    def __init__(self, size: int = 3) -> None:
        Counted.made += 1


def test_settings_that_are_passed_on_stay_as_they_are_written(config: Path, tmp_path: Path) -> None:
    named = f"{{class_path: {__name__}.Counted}}"
    given = {
        "logger": named,
        "callbacks": f"[{named}]",
        "devices": "[0, 1]",
        "max_time": "00:00:03:00",
        "max_steps": "2",
        "precision": "16-mixed",
    }
    found, resolved = parse_config(Settings, [str(config), *(f"--trainer.{name}={value}" for name, value in given.items())], "settings")
    mapping = {"class_path": f"{__name__}.Counted"}
    passed = {
        "logger": mapping,
        "callbacks": [mapping],
        "devices": [0, 1],
        "max_time": "00:00:03:00",
        "max_steps": 2,
        "precision": "16-mixed",
    }
    assert found.trainer == passed and Counted.made == 0
    (tmp_path / "resolved.yaml").write_text(resolved)
    assert parse(str(tmp_path / "resolved.yaml")).trainer == passed


def test_help_holds_the_docstrings_of_the_fields(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse("--help")
    assert caught.value.code == 0
    printed = " ".join(capsys.readouterr().out.split())
    for words in ("A program for tests.", "where the run goes", "seeds of the projection", "step size of the optimizer"):
        assert words in printed


def test_print_config_can_be_passed_back(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse(str(config), "--print_config")
    assert caught.value.code == 0
    (tmp_path / "printed.yaml").write_text(capsys.readouterr().out)
    assert parse(str(tmp_path / "printed.yaml")) == parse(str(config))


PROGRAM = """
import sys
from pathlib import Path
from influcoder.program import Setting, parse_config, run_program
from influcoder.text_format import TextFormat

def main(arguments):
    if arguments == ["bug"]:
        raise ZeroDivisionError("ours")
    config, _ = parse_config(TextFormat, arguments, "program")
    print(config.max_prompt_chars)

run_program(main)
"""


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", PROGRAM, *arguments], capture_output=True, text=True, check=False)


def test_a_users_error_is_one_line_and_exit_code_2(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(repository)
    good = run("--max_prompt_chars=7")
    assert (good.returncode, good.stdout, good.stderr) == (0, "7\n", "")
    bad = run("--max_prompt_chars=0")
    assert (bad.returncode, bad.stdout) == (2, "")
    assert bad.stderr.startswith("error: text: max_prompt_chars 0")
    assert bad.stderr.count("\n") == 1


def test_our_own_bugs_keep_their_traceback(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(repository)
    bug = run("bug")
    assert bug.returncode == 1
    assert "Traceback" in bug.stderr
    assert "ZeroDivisionError: ours" in bug.stderr


def test_an_interrupt_is_one_line_and_exit_code_130(capsys: pytest.CaptureFixture[str]) -> None:
    def main(arguments: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as caught:
        run_program(main)
    assert caught.value.code == 130
    assert capsys.readouterr().err == "interrupted; run the same command again to go on\n"
