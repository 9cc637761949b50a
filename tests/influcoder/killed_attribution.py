"""Attributes a pool again and again in processes that end themselves at the n-th step on the disk, then lets each be finished.

    python -m tests.influcoder.killed_attribution CONFIG FOLDER COUNT

CONFIG is JSON: encoder, pool, queries and settings, those of a second stage under `rescore`. FOLDER/whole is made without a kill, FOLDER/point-K with kills at seeded random
steps (a run that goes on has fewer, and may end before the second kill). A step is a flush, a rename, a link or a removal: there is one before and one after every moment that could matter. Prints
the steps of the whole run and, by point, where it was killed.
"""

from __future__ import annotations

import importlib
import json
import os
import random
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from influcoder.attribution import AttributionConfig, attribute
from influcoder.readers import Columns, DataSource
from influcoder.rescoring_teacher import Rescore

STEPS = ("fsync", "replace", "link", "unlink", "rmdir")


def main() -> None:
    config, folder, count = json.loads(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    if "rescore" in config:
        importlib.import_module("influcoder.influence.teacher_features")  # torch: seconds that no child need wait for
    source = random.Random(0)
    killed: list[list[int]] = []
    steps = attribute_in_child(config, folder / "whole", None)
    assert steps is not None
    for point in range(count):
        killed.append([])
        # up to three kills one after the other; every fourth point is near the end, where files are put together and removed
        for _ in range(1 + (point + 1) % 3):
            step = steps - source.randint(0, 12) if point % 4 == 0 else source.randint(1, steps)
            killed[-1].append(step)
            if attribute_in_child(config, folder / f"point-{point}", step) is not None:
                break
        else:
            attribute_in_child(config, folder / f"point-{point}", None)
    sys.stdout.write(json.dumps({"steps": steps, "killed": killed}))


def attribute_in_child(config: dict[str, Any], folder: Path, step: int | None) -> int | None:
    """Make FOLDER/run in a process of its own; return its number of steps, None when it was killed at `step`."""
    folder.mkdir(parents=True, exist_ok=True)
    child = os.fork()
    if child == 0:
        count = 0

        def counted(call: Callable[..., Any]) -> Callable[..., Any]:
            def counting(*arguments: Any, **named: Any) -> Any:
                nonlocal count
                count += 1
                if count == step:
                    os.kill(os.getpid(), signal.SIGKILL)
                return call(*arguments, **named)

            return counting

        os.chdir(folder)
        os.fsync = lambda fd: None  # a process that is killed loses nothing of what it wrote, and disks are slow
        for name in STEPS:
            setattr(os, name, counted(getattr(os, name)))
        sources: dict[str, Any] = {
            name: DataSource(paths=(config.pop(name),), columns=Columns(contributor="who")) for name in ("pool", "queries")
        }
        if "rescore" in config:
            sources["rescore"] = Rescore(**config.pop("rescore"))
        os.dup2(os.open("log", os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
        attribute(AttributionConfig(**config, **sources, output="run"))
        Path("steps").write_text(str(count))
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status == -signal.SIGKILL:
        return None
    if status:
        raise SystemExit((folder / "log").read_text())
    return int((folder / "steps").read_text())


if __name__ == "__main__":
    main()
