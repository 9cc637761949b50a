"""The README cannot drift: its Python runs, its commands exist, it names every config and folder."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from eval.config import EvalConfig
from examples.demo.__main__ import STEPS
from influcoder.onnx_export import export_encoder
from influcoder.program import parse_config
from influcoder.text_format import TextFormat, save_text_format
from student.config import FreshEncoder
from student.encoder import make_fresh_encoder, save_encoder

WORDS = "the lamp by Velmora is better than that of Tarkesh because its price and noise are good".split()


@pytest.fixture(scope="session")
def readme(repository: Path) -> str:
    return (repository / "README.md").read_text()


def blocks(readme: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", readme, re.DOTALL)


def test_the_five_lines_run(readme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = blocks(readme, "python")
    texts = [" ".join(WORDS[start : start + 4]) for start in range(12)]
    for name in ("pool", "queries"):
        lines = [json.dumps({"id": f"{name}-{place}", "prompt": text, "response": text}) for place, text in enumerate(texts)]
        path = tmp_path / f"runs/demo/data/{name}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(lines))
    encoder = tmp_path / "runs/demo/student/encoder"
    tiny = FreshEncoder(hidden_size=16, layers=1, heads=2, intermediate_size=16, vocab_size=300)
    save_encoder(make_fresh_encoder(tiny, texts, 32), encoder)
    save_text_format(encoder, TextFormat())
    export_encoder(encoder, texts)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(code, names)
    assert getattr(names["scores"], "shape", None) == (12, 12)


def test_every_config_and_folder_is_named(readme: str, repository: Path) -> None:
    for path in sorted((repository / "configs").rglob("*.yaml")):
        assert f"({path.relative_to(repository)})" in readme, f"README does not link {path.relative_to(repository)}"
    for folder in ("influcoder", "teacher", "student", "eval", "configs", "examples", "benchmarks", "docs", "tests"):
        assert (repository / folder).is_dir() and f"\n{folder}/" in readme


def test_links_lead_somewhere(repository: Path) -> None:
    for name in ("README.md", "ARCHITECTURE.md", "CHANGELOG.md", "docs/LOG.md"):
        page = repository / name
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            assert target.startswith("http") or (page.parent / target).exists(), f"{name}: {target} is not there"


def test_every_make_target_named_exists(readme: str, repository: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (repository / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"\bmake ([a-z][a-z-]*[a-z])\b", readme))
    assert {"demo", "test"} <= named <= targets


def test_every_command_named_exists(readme: str, repository: Path) -> None:
    shell = "\n".join(blocks(readme, "sh"))
    for module in re.findall(r"python -m ([\w.]+)", shell):
        place = repository / module.replace(".", "/")
        assert (place / "__main__.py").exists() or place.with_suffix(".py").exists(), module
    for command in re.findall(r"^influcoder (\w+)", shell, re.MULTILINE):
        assert f'"{command}"' in (repository / "influcoder" / "cli.py").read_text()


def test_the_eval_config_shown_is_one(readme: str, tmp_path: Path) -> None:
    (shown,) = blocks(readme, "yaml")
    path = tmp_path / "eval.yaml"
    path.write_text(shown)
    config, _ = parse_config(EvalConfig, [str(path)], "eval")
    assert list(config.tasks) == ["poison"] and len(config.student) == 2


def test_the_demo_runs_the_configs_of_its_folder(repository: Path) -> None:
    used = {word for _, _, command in STEPS for word in command if word.endswith(".yaml")}
    assert used == {str(path.relative_to(repository)) for path in (repository / "configs" / "demo").glob("*.yaml")}
