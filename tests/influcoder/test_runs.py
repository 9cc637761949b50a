from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from influcoder.errors import RunError
from influcoder.runs import SCHEMA_VERSION, create_run, fingerprint_folder, git_commit, open_run, partial_folder, sha256_of_file

CONFIG = "rank: 16\nseeds: [0]\n"


def make(output: Path, *, config: str = CONFIG, resume: bool = False, fail: BaseException | None = None) -> None:
    with create_run(output, "teacher", config, resume=resume) as run:
        (run.folder / "work.txt").write_text("done")
        run.facts["seeds"] = [0, 1]
        run.worth_resuming = resume
        if fail is not None:
            raise fail


def refusal(folder: Path, stage: str = "teacher") -> str:
    with pytest.raises(RunError) as caught:
        open_run(folder, stage)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_run_appears_whole_with_config_facts_and_provenance(tmp_path: Path) -> None:
    output = tmp_path / "runs" / "teacher"
    with create_run(output, "teacher", CONFIG) as run:
        assert not output.exists()
        run.facts["rows_fingerprint"] = "abc"
    assert (output / "config.yaml").read_text() == CONFIG
    assert [path.name for path in output.parent.iterdir()] == ["teacher"]
    record = open_run(output, "teacher")
    assert record["rows_fingerprint"] == "abc"
    assert record["stage"] == "teacher"
    assert record["schema_version"] == SCHEMA_VERSION
    assert record["finished_utc"].endswith("+00:00")
    assert record["packages"]["numpy"]
    assert set(record) >= {"git_commit", "seconds", "hardware"}


@pytest.mark.parametrize("error", [ValueError("boom"), KeyboardInterrupt()])
def test_an_error_leaves_nothing(error: BaseException, tmp_path: Path) -> None:
    with pytest.raises(type(error)):
        make(tmp_path / "run", fail=error)
    assert list(tmp_path.iterdir()) == []


def test_resume_keeps_the_work_and_goes_on(tmp_path: Path) -> None:
    output = tmp_path / "run"
    with pytest.raises(ValueError, match="boom"):
        make(output, resume=True, fail=ValueError("boom"))
    assert not output.exists()
    with create_run(output, "teacher", CONFIG, resume=True) as run:
        assert (run.folder / "work.txt").read_text() == "done"
    assert (output / "work.txt").exists()
    assert not partial_folder(output).exists()


def test_an_error_before_any_work_leaves_nothing_to_resume(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="boom"), create_run(tmp_path / "run", "teacher", CONFIG, resume=True):
        raise ValueError("boom")
    assert list(tmp_path.iterdir()) == []


def test_without_resume_unfinished_work_is_dropped(tmp_path: Path) -> None:
    output = tmp_path / "run"
    with pytest.raises(ValueError, match="boom"):
        make(output, resume=True, fail=ValueError("boom"))
    with create_run(output, "teacher", "rank: 32\n") as run:
        assert not (run.folder / "work.txt").exists()


def test_a_run_that_was_killed_before_its_config_was_there_begins_anew(tmp_path: Path) -> None:
    partial = partial_folder(tmp_path / "teacher")
    partial.mkdir()
    (partial / ".config.yaml.writing").write_text("rank")
    make(tmp_path / "teacher", resume=True)
    assert sorted(path.name for path in (tmp_path / "teacher").iterdir()) == ["config.yaml", "run.json", "work.txt"]


def test_resuming_with_another_config_shows_both(tmp_path: Path) -> None:
    output = tmp_path / "run"
    with pytest.raises(ValueError, match="boom"):
        make(output, resume=True, fail=ValueError("boom"))
    with pytest.raises(RunError, match=r"unfinished work of another config \(there `rank: 16`, now `rank: 32`\)") as caught:
        make(output, config=CONFIG.replace("16", "32"), resume=True)
    assert "\n" not in str(caught.value)
    assert (partial_folder(output) / "work.txt").exists()


def test_an_existing_output_is_refused_and_untouched(tmp_path: Path) -> None:
    output = tmp_path / "run"
    make(output)
    before = {path.name: path.read_bytes() for path in output.iterdir()}
    with pytest.raises(RunError, match="exists already; expected a new place; remove it to redo the teacher stage"):
        make(output)
    assert {path.name: path.read_bytes() for path in output.iterdir()} == before
    assert not partial_folder(output).exists()


def test_an_unfinished_run_is_refused_by_readers(tmp_path: Path) -> None:
    output = tmp_path / "run"
    with pytest.raises(ValueError, match="boom"):
        make(output, resume=True, fail=ValueError("boom"))
    assert "unfinished" in refusal(output)
    assert "does not exist; expected a teacher run; run the teacher stage first" in refusal(tmp_path / "other")
    (tmp_path / "other").mkdir()
    assert "is not a complete run (no run.json)" in refusal(tmp_path / "other")


def test_a_run_of_another_stage_or_schema_is_refused(tmp_path: Path) -> None:
    output = tmp_path / "run"
    make(output)
    assert "stage 'teacher', schema 1; expected stage 'student', schema 1; point to a student run" in refusal(output, "student")
    (output / "run.json").write_text(json.dumps({"stage": "teacher", "schema_version": 99}))
    assert "schema 99; expected stage 'teacher', schema 1" in refusal(output)


@pytest.mark.parametrize("content", [b"", b'{"stage": "teacher", ', b"[]", b"\xff\xfe\x00"])
def test_a_corrupt_run_json_is_refused(content: bytes, tmp_path: Path) -> None:
    output = tmp_path / "run"
    make(output)
    (output / "run.json").write_bytes(content)
    assert refusal(output).startswith(f"{output / 'run.json'}: not readable")


def test_sha256_of_a_file_is_that_of_its_bytes(tmp_path: Path) -> None:
    content = bytes(range(256)) * 9000  # more than two chunks
    (tmp_path / "file").write_bytes(content)
    assert sha256_of_file(tmp_path / "file") == hashlib.sha256(content).hexdigest()


def test_folder_fingerprint_knows_names_and_contents(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "weights").write_text("1")
    found = [fingerprint_folder(tmp_path)]
    (tmp_path / "weights").write_text("2")
    found.append(fingerprint_folder(tmp_path))
    (tmp_path / "weights").rename(tmp_path / "other")
    found.append(fingerprint_folder(tmp_path))
    assert len(set(found)) == 3
    (tmp_path / "folder").mkdir()
    assert fingerprint_folder(tmp_path) == found[-1]


def test_no_git_means_no_commit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_commit() is None
