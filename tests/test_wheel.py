"""The wheel, installed into a clean environment and used from another directory."""

from __future__ import annotations

import os
import shutil
import site
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


def run(*command: str | Path, folder: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy so that no build folder is left in the checkout."""
    copy, built = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for name in ("influcoder", "teacher", "student", "eval", "tests"):  # the last four must stay out
        shutil.copytree(repository / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(repository / name, copy)
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", built, folder=copy)
    (found,) = built.glob("influcoder-*-py3-none-any.whl")
    return found


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh venv with the wheel; its dependencies are lent by path, since a test has no network."""
    folder = tmp_path_factory.mktemp("clean") / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", folder, folder=folder.parent)
    run(
        sys.executable, "-m", "pip", "--python", folder / "bin" / "python", "install", "--no-deps", "--no-index", "--quiet", wheel,
        folder=folder.parent,
    )  # fmt: skip
    (packages,) = (folder / "lib").glob("python3*/site-packages")
    # a path added by a .pth has its own .pth files ignored, so an editable install over there stays out of sight
    (packages / "dependencies.pth").write_text("\n".join(site.getsitepackages()) + "\n")
    return folder


def test_the_wheel_holds_the_library_alone(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.partition("/")[0] for name in names} == {"influcoder", "influcoder-0.1.0.dist-info"}
    assert {
        "influcoder/contributions/page.html",
        "influcoder/serving/explorer.html",
        "influcoder/py.typed",
        "influcoder/influence/gradients.py",
        "influcoder-0.1.0.dist-info/licenses/LICENSE",
    } <= set(names)


def test_the_installed_library_is_the_wheels(environment: Path, tmp_path: Path) -> None:
    code = "import sys, influcoder; print(influcoder.__file__, influcoder.__version__, 'torch' in sys.modules)"
    file, version, torch = run(environment / "bin" / "python", "-c", code, folder=tmp_path).split()
    assert Path(file).is_relative_to(environment)
    assert (version, torch) == ("0.1.0", "False")


def test_the_stages_are_not_installed(environment: Path, tmp_path: Path) -> None:
    code = "import importlib.util as util; print([bool(util.find_spec(name)) for name in ('influcoder', 'teacher', 'student', 'eval')])"
    assert run(environment / "bin" / "python", "-c", code, folder=tmp_path) == "[True, False, False, False]\n"


def test_the_command_runs(environment: Path, tmp_path: Path) -> None:
    command = environment / "bin" / "influcoder"
    assert run(command, "--version", folder=tmp_path) == "influcoder 0.1.0\n"
    assert "characters of response kept" not in run(command, "--help", folder=tmp_path)
    assert "--pool.columns.prompt" in run(command, "attribute", "--help", folder=tmp_path)


def test_the_library_reads_and_renders_rows(environment: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"prompt": "Name a sea.", "response": "The North Sea."}\n')
    code = """
from influcoder.readers import DataSource, read_examples
from influcoder.text_format import TextFormat, render
print([render(row, TextFormat()) for row in read_examples(DataSource(paths=("rows.jsonl",)))])
"""
    printed = run(environment / "bin" / "python", "-c", code, folder=tmp_path)
    assert printed == "['Prompt: Name a sea.\\nResponse: The North Sea.']\n"
