from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

import influcoder
from influcoder import cli, onnx_export


@pytest.fixture
def data(tmp_path: Path) -> Path:
    words = ["river", "bread", "code", "stars", "green", "tea", "garden", "slowly", "music", "seven"]
    rows = [
        {"id": f"r{row}", "prompt": words[row % 10], "response": " ".join(words[: 1 + row % 7] + words[row % 3 :])} for row in range(30)
    ]
    (tmp_path / "pool.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "queries.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:3]))
    return tmp_path


def run_main(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["influcoder", *arguments])
    try:
        cli.main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def attribute_arguments(encoder: Path, data: Path) -> list[str]:
    paths = ["--pool.paths", f"[{data / 'pool.jsonl'}]", "--queries.paths", f"[{data / 'queries.jsonl'}]"]
    return ["attribute", "--encoder", str(encoder), *paths, "--output", str(data / "run")]


def test_help_lists_every_command_in_one_line_each(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_main(monkeypatch, "--help") == 0
    lines = capsys.readouterr().out.splitlines()
    commands = ["attribute", "contributions", "export", "push", "serve", "verify"]
    assert [line.split()[0] for line in lines if line.startswith("  ")] == commands


def test_version(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_main(monkeypatch, "--version") == 0
    assert capsys.readouterr().out == f"influcoder {influcoder.__version__}\n"


@pytest.mark.parametrize("command", ["attribute", "export"])
def test_help_of_a_command_shows_its_fields(command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_main(monkeypatch, command, "--help") == 0
    out = capsys.readouterr().out
    assert "--encoder ENCODER" in out and "on_bad_row" in out if command == "attribute" else "--sample.limit" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "command: none; expected attribute, contributions, export, push, serve or verify"),
        (["encode"], "command: encode; expected attribute, contributions, export, push, serve or verify"),
        (["attribute"], "the following arguments are required"),
        (["attribute", "nowhere.yaml"], "nowhere.yaml: no such config file"),
        (["export", "--encoder", "nowhere", "--sample.paths", "[a.jsonl]"], "nowhere/text_format.json: not a readable text format"),
        (["export", "--encoder", "x", "--sample.paths", "[a.jsonl]", "--minimum_spearman", "2"], "minimum_spearman: 2.0; expected"),
    ],
)
def test_a_user_error_is_one_line_and_exit_code_2(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_main(monkeypatch, *arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ") and message in captured.err and captured.err.count("\n") == 1 and captured.out == ""


def test_attribute_by_flags_then_by_its_own_config(
    exported_folder: Path, data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = attribute_arguments(exported_folder, data)
    assert run_main(monkeypatch, *arguments, "--top_k", "4") == 0
    assert f"{data / 'run'}: 30 rows (0 set aside" in capsys.readouterr().out
    assert run_main(monkeypatch, *arguments) == 2
    assert "exists already" in capsys.readouterr().err
    again = data / "again"
    assert run_main(monkeypatch, "attribute", str(data / "run" / "config.yaml"), "--output", str(again)) == 0
    first, second = (pq.read_table(folder / "topk.parquet") for folder in (data / "run", again))
    assert first.num_rows == 2 * 12 and first.equals(second)
    assert (data / "run" / "config.yaml").read_text() != (again / "config.yaml").read_text()


def test_export_says_what_it_found(
    bert_folder: Path, data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def export(folder: Path, texts: list[str], *, variants: tuple[str, ...], minimum_spearman: float) -> dict[str, Any]:
        assert folder == bert_folder and minimum_spearman == 0.5 and variants == ("int8", "bf16")
        assert texts[0] == "Prompt: river\nResponse: river river bread code stars green tea garden slowly music seven"
        variant = {"spearman_mean": 0.99567, "top_overlap": 0.949}
        return {"spearman_mean": 0.75, "spearman_min": 0.5, "queries": 2, "rows": len(texts), "variants": {"int8": variant}}

    monkeypatch.setattr(onnx_export, "export_encoder", export)
    sample = ["--sample.paths", f"[{data / 'pool.jsonl'}]", "--sample.limit", "12"]
    assert (
        run_main(monkeypatch, "export", "--encoder", str(bert_folder), *sample, "--minimum_spearman", "0.5", "--variants", "[int8,bf16]")
        == 0
    )
    assert capsys.readouterr().out.splitlines() == [
        f"{bert_folder}/onnx: accepted; per-query Spearman 0.750000 (least 0.500000) over 2 queries and 12 rows",
        "int8: accepted; per-query Spearman 0.9957, overlap of the first ten 0.95",
    ]


def test_python_m_influcoder_is_the_same_command(exported_folder: Path, data: Path, repository: Path) -> None:
    command = [sys.executable, "-m", "influcoder", *attribute_arguments(exported_folder, data)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=repository, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "30 rows" in done.stdout and "rows/s" in done.stderr
    again = subprocess.run(command, capture_output=True, text=True, cwd=repository, timeout=120)
    assert (again.returncode, again.stdout) == (2, "") and "exists already" in again.stderr
