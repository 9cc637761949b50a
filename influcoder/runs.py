"""Run directories: made under a temporary name, renamed when complete, refused when anything does not match.

A complete run holds `config.yaml` (resolved, can be passed back) and `run.json` (what made it, from which inputs).
While it is being made it is `.NAME.partial` beside its final place; a reader never sees it half-written.
"""

from __future__ import annotations

import datetime
import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from influcoder.errors import RunError

SCHEMA_VERSION = 1
RECORDED_PACKAGES = (
    "influcoder",
    "numpy",
    "torch",
    "transformers",
    "sentence-transformers",
    "lightning",
    "peft",
    "onnxruntime",
    "onnxruntime-gpu",
)


@dataclass
class Run:
    """A run being made. Write files into `folder`; put what a reader should know into `facts`."""

    folder: Path
    """temporary folder; renamed to its final place when the block ends without error"""
    facts: dict[str, Any] = field(default_factory=dict)
    """goes into run.json: fingerprints of inputs, seeds, figures"""
    worth_resuming: bool = False
    """set by a resumable stage once the folder holds work that an error should not cost"""
    seconds_before: float = 0.0
    """time that a resumed run took before it was killed"""


@contextmanager
def create_run(output: Path, stage: str, config_yaml: str, *, resume: bool = False) -> Iterator[Run]:
    """Make a run directory; commit it by a rename when the block ends.

    Args:
        output: final place; must not exist.
        stage: teacher, student, eval or attribution; readers ask for it.
        config_yaml: the resolved config.
        resume: go on in an unfinished folder when the config is the same, instead of beginning anew. After an error
            the folder is kept if the stage called it worth resuming, so that bad input leaves nothing behind.

    Raises:
        RunError: when `output` exists, or an unfinished run there has another config.
    """
    if output.exists():
        raise RunError(f"{output}: exists already; expected a new place; remove it to redo the {stage} stage, or choose another output")
    partial = partial_folder(output)
    resumed = resume and (partial / "config.yaml").exists()
    if partial.exists() and not resumed:  # killed before it had begun, when there is no config
        shutil.rmtree(partial)
    if resumed:
        _check_same_config(partial, config_yaml)
    else:
        partial.mkdir(parents=True)
        write_text_atomic(partial / "config.yaml", config_yaml)
    run, started = Run(folder=partial, worth_resuming=resumed), time.monotonic()
    try:
        yield run
        record = _describe(stage, run.seconds_before + time.monotonic() - started) | run.facts
        write_text_atomic(partial / "run.json", json.dumps(record, indent=2, ensure_ascii=False) + "\n")
    except BaseException:
        if not run.worth_resuming:
            shutil.rmtree(partial, ignore_errors=True)
        raise
    os.replace(partial, output)
    sync_folder(output.parent)


def partial_folder(output: Path) -> Path:
    """Return the temporary name under which `output` is made."""
    return output.parent / f".{output.name}.partial"


def open_run(folder: Path, stage: str) -> dict[str, Any]:
    """Return a complete run's `run.json`.

    Raises:
        RunError: when the folder is missing, unfinished, unreadable, of another schema, or of another stage.
    """
    path = folder / "run.json"
    if not path.exists():
        if partial_folder(folder).exists():
            raise RunError(
                f"{folder}: unfinished ({partial_folder(folder)} is there); expected a complete {stage} run; run the {stage} stage again"
            )
        what = "is not a complete run (no run.json)" if folder.exists() else "does not exist"
        raise RunError(f"{folder}: {what}; expected a {stage} run; run the {stage} stage first")
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        found = (record.get("stage"), record.get("schema_version"))
    except (OSError, ValueError, AttributeError) as error:  # ValueError: not UTF-8 or not JSON
        raise RunError(f"{path}: not readable ({error}); expected the record of a {stage} run; run the {stage} stage again") from error
    if found != (stage, SCHEMA_VERSION):
        raise RunError(
            f"{path}: stage {found[0]!r}, schema {found[1]!r}; expected stage {stage!r}, schema {SCHEMA_VERSION}; point to a {stage} run"
        )
    return record


def sha256_of_file(path: Path) -> str:
    """Return the hex SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def fingerprint_folder(folder: Path) -> str:
    """Return 16 hex digits that identify a model folder: names and contents of its files, sub-folders apart."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.iterdir() if path.is_file()):
        digest.update(f"{path.name}\0{sha256_of_file(path)}\n".encode())
    return digest.hexdigest()[:16]


def write_text_atomic(path: Path, text: str) -> None:
    """Write `text` so that a reader sees the old file or the new one, never a part, even after a power cut."""
    temporary = path.with_name(f".{path.name}.writing")
    with temporary.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(temporary, path)


def write_json_atomic(path: Path, content: Any) -> None:
    """Write JSON in the same way.

    Raises:
        ValueError: on NaN and infinity, which JSON does not have.
    """
    write_text_atomic(path, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def sync_folder(folder: Path) -> None:
    """Flush a folder to the disk: the names in it, so that a rename outlives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _check_same_config(partial: Path, config_yaml: str) -> None:
    path = partial / "config.yaml"
    before = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    after = config_yaml.splitlines()
    if before != after:
        old = next((line for line in before if line not in after), "(nothing)").strip()
        new = next((line for line in after if line not in before), "(nothing)").strip()
        raise RunError(
            f"{partial}: unfinished work of another config (there `{old}`, now `{new}`); "
            "expected the same config; finish it with its own, or remove that folder"
        )


def _describe(stage: str, seconds: float) -> dict[str, Any]:
    packages = {}
    for name in RECORDED_PACKAGES:
        try:
            packages[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "schema_version": SCHEMA_VERSION,
        "stage": stage,
        "finished_utc": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "seconds": round(seconds, 1),
        "git_commit": git_commit(),
        "hardware": {"machine": platform.machine(), "cpus": os.cpu_count(), "gpus": _gpus(), "python": platform.python_version()},
        "packages": packages,
    }


def _gpus() -> list[str]:
    torch = sys.modules.get("torch")  # a run that did not need torch used no GPU
    return [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())] if torch else []


def git_commit() -> str | None:
    """Return the checkout's commit, with `+changes` when the tree differs from it; None outside a checkout."""
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--abbrev=12", "--dirty=+changes", "--exclude=*"],
            capture_output=True, text=True, timeout=10, cwd=Path(__file__).parent, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip() or None
