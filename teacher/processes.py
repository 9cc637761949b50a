"""Several processes of one teacher job: rank r takes every r-th shard; nothing is exchanged but files.

    torchrun --nproc_per_node 2 -m teacher CONFIG.yaml

Rank 0 reads, fine-tunes and finishes; the others wait at the two barriers and take shards in between.
"""

from __future__ import annotations

import datetime
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist

from influcoder.errors import RunError

PATIENCE = datetime.timedelta(days=7)
"""how long a rank waits for another: as long as a fine-tuning or the slowest shard may take"""


@dataclass(frozen=True)
class Processes:
    """Which process this is."""

    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether this one does what is done once."""
        return self.rank == 0

    def barrier(self) -> None:
        """Wait until every process is here.

        Raises:
            RunError: when another one has ended.
        """
        if self.count == 1:
            return
        try:
            dist.barrier()
        except RuntimeError as error:  # gloo has no class of its own
            raise RunError(
                f"process {self.rank} of {self.count}: another one ended ({error}); expected all at the end; see what it said, "
                "and run the same command again to go on, with as many processes as you like"
            ) from error

    def takes(self, shard: int) -> bool:
        """Return whether a shard is this process's."""
        return shard % self.count == self.rank


@contextmanager
def join_processes() -> Iterator[Processes]:
    """Join the processes that torchrun started; alone without it. Each takes the GPU of its local rank, when there are any."""
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield Processes()
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    dist.init_process_group("gloo", timeout=PATIENCE)
    try:
        yield Processes(dist.get_rank(), count)
    finally:
        dist.destroy_process_group()
