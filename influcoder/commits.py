"""Files that count only once all of them are on the disk: data first, then the record that vouches for them.

A file is written under a temporary name, flushed to the disk and renamed; the record, with the checksum of each, is written the same
way when all are there. Whatever kills a program between two of these steps leaves files without a record, which count for nothing
and are written again. Folders are flushed too: a rename is in the folder, not in the file.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from influcoder.errors import RunError
from influcoder.runs import sha256_of_file, sync_folder, write_text_atomic

Writer = Callable[[Path], None]
"""writes one file at the path it is given"""


def commit(record: Path, files: Mapping[str, Writer], facts: Mapping[str, Any]) -> dict[str, Any]:
    """Write files beside `record`, then `record` itself: `facts`, and the checksum of each file under `files`; return it.

    Raises:
        RunError: when the disk does not take them; what was committed before is kept.
    """
    folder, checksums = record.parent, {}
    try:
        record.unlink(missing_ok=True)  # of files that are about to be replaced
        for name, write in files.items():
            temporary = folder / f".{name}.writing"
            write(temporary)
            with temporary.open("rb") as stream:
                os.fsync(stream.fileno())
            os.replace(temporary, folder / name)
            checksums[name] = sha256_of_file(folder / name)
        sync_folder(folder)
        content = dict(facts) | {"files": checksums}
        write_text_atomic(record, json.dumps(content) + "\n")
        sync_folder(folder)
    except OSError as error:
        raise RunError(
            f"{record}: cannot be written ({error}); what was committed before is kept; mend that and run the same command again"
        ) from error
    return content


def read_record(record: Path, *, verify: bool = True) -> dict[str, Any] | None:
    """Return a record; None when nothing was committed, or what was is no longer whole and has to be made again.

    Args:
        record: its path.
        verify: read its files and compare their checksums.
    """
    try:
        content: dict[str, Any] = json.loads(record.read_text(encoding="utf-8"))
        if verify:
            check_files(record.parent, content["files"], "")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # a RunError is a ValueError
        return None
    return content


def check_files(folder: Path, checksums: Mapping[str, str], advice: str) -> None:
    """Compare files with their checksums.

    Raises:
        RunError: naming the first that is missing or not the one that was committed.
    """
    for name, expected in checksums.items():
        path = folder / name
        try:
            found = sha256_of_file(path)
        except OSError as error:
            raise RunError(f"{path}: cannot be read ({error}); expected a file that was committed; {advice}") from error
        if found != expected:
            raise RunError(f"{path}: checksum {found[:12]}, expected {expected[:12]}; the file is corrupt; {advice}")
