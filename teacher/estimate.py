"""What a run will take, said before it begins and compared when it is done."""

from __future__ import annotations

import errno
import hashlib
import os
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import torch
from numpy.typing import NDArray
from safetensors.numpy import save

from influcoder.errors import RunError
from influcoder.influence.batch_budget import Budget, project_rows
from influcoder.influence.gradients import GradientProjector
from influcoder.influence.tokens import TokenizedRow, token_batches

TRIALS = 3
"""batches that are timed: the heaviest first, then two of the middle"""


@dataclass(frozen=True)
class Estimate:
    """Of the gradients of all sides and checkpoints."""

    seconds: float
    peak_bytes: int
    """of the process (CPU) or the GPU"""
    disk_bytes: int

    def __str__(self) -> str:
        return f"{_duration(self.seconds)}, {self.peak_bytes / 1e9:.1f} GB of memory, {self.disk_bytes / 1e9:.2f} GB of disk"


def estimate(
    projector: GradientProjector, rows: Sequence[TokenizedRow], passes: float, bytes_a_row: int, folder: Path, budget: Budget
) -> Estimate:
    """Time a few batches; the heaviest comes first and finds out whether memory suffices.

    Args:
        projector: of one checkpoint.
        rows: whose gradients are to be taken, all sides.
        passes: over the rows by this process: checkpoints / processes.
        bytes_a_row: of all that is on disk at once.
        folder: of the run.
        budget: of a batch; lowered here when it is too much.

    Raises:
        RunError: when the disk has not enough room.
    """
    disk, free = len(rows) * bytes_a_row, shutil.disk_usage(folder).free
    lacking = disk - used_bytes(folder)  # an interrupted run has part of it already
    if lacking > free:
        raise RunError(
            f"{folder}: {lacking / 1e9:.3g} GB of features to write, {free / 1e9:.3g} GB free; expected room; free some, or lower gradients.dim"
        )
    batches = sorted(token_batches(rows, budget.max_batch_tokens), key=lambda batch: _padded(rows, batch))
    project_rows(projector, [rows[place] for place in batches[-1]], budget)
    middle = batches[len(batches) // 2 :][: TRIALS - 1]
    started = time.perf_counter()
    for batch in middle:
        _write_once(folder, project_rows(projector, [rows[place] for place in batch], budget))
    rate = sum(_padded(rows, batch) for batch in middle) / (time.perf_counter() - started)
    total = sum(_padded(rows, batch) for batch in batches)
    return Estimate(seconds=total * passes / rate, peak_bytes=peak_memory(), disk_bytes=disk)


def _write_once(folder: Path, gradients: NDArray[np.float32]) -> None:
    """Do to a batch what becomes of every shard: halve the type, write, sync, hash. A fast GPU waits for this."""
    for gradient in gradients:
        content = save({"features": gradient.astype(np.float16)})
        with tempfile.TemporaryFile(dir=folder) as stream:  # nameless: other processes do the same here, and a kill leaves nothing
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        hashlib.sha256(content).digest()


def peak_memory() -> int:
    """Return the most bytes that the process, or the GPU, held so far."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def used_bytes(folder: Path) -> int:
    """Return the bytes of a run's stores."""
    return sum(path.stat().st_size for name in ("features", "gradients") for path in (folder / name).rglob("*.safetensors"))


def compare(before: Estimate, after: Estimate) -> dict[str, Any]:
    """Print the estimate beside what it took; return both for the record."""
    print(f"gradients took {after}; estimated {before}")
    return {"estimated": asdict(before), "actual": asdict(after)}


@contextmanager
def full_disk_as_error(output: Path) -> Iterator[None]:
    """Turn every library's words for a full disk into one line.

    Raises:
        RunError: when the disk fills up in the block.
    """
    try:
        yield
    except (OSError, safetensors.SafetensorError) as error:
        if getattr(error, "errno", None) not in (errno.ENOSPC, errno.EDQUOT) and "os error 28" not in str(error):
            raise
        raise RunError(
            f"{output}: cannot be written ({error}); what was committed before is kept; free some space and run the same command again"
        ) from error


def _padded(rows: Sequence[TokenizedRow], batch: Sequence[int]) -> int:
    return len(batch) * max(len(rows[place].input_ids) for place in batch)


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
