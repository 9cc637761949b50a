"""Attributes a pool on a running Ray cluster again and again while actors and drivers end themselves, then lets each run be finished.

    python -m tests.influcoder.killed_ray CONFIG FOLDER COUNT

CONFIG is JSON as for `killed_attribution.py`. FOLDER/whole is made by the local engine without a kill; in FOLDER/point-K two actors end
themselves, each at a seeded call of the encoder (in the middle of a shard), and of every second point the driver does, too, at a seeded
step on the disk. Prints how many kills of either kind each point saw.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding

from influcoder import attribution
from influcoder.onnx_encoder import OnnxEncoder
from tests.influcoder.killed_attribution import attribute_in_child


class KillingEncoder(OnnxEncoder):
    """Ends its process at given calls, which are counted over all actors; a driver's does not."""

    def __init__(self, *arguments: Any, kills: Sequence[int], calls: Path, threads: int | None = None, **named: Any) -> None:
        super().__init__(*arguments, threads=threads, **named)
        self._kills, self._calls = (kills if threads else []), calls

    def embed(self, encodings: Sequence[Encoding]) -> NDArray[np.float32]:
        if self._kills:
            with self._calls.open("ab", buffering=0) as stream:
                stream.write(b".")
                call = stream.tell()
            if call in self._kills:
                os.kill(os.getpid(), signal.SIGKILL)
        return super().embed(encodings)


def main() -> None:
    config, folder, count = json.loads(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    source = random.Random(0)
    steps = attribute_in_child(config, folder / "whole", None)
    assert steps is not None
    seen = []
    for point in range(count):
        kills, calls, drivers = sorted(source.sample(range(2, 11), 2)), folder / f"calls-{point}", 0
        vars(attribution)["OnnxEncoder"] = partial(KillingEncoder, kills=kills, calls=calls)  # the children's
        for step in [source.randint(1, steps), None] if point % 2 else [None]:
            drivers += attribute_in_child(config | {"engine": "ray"}, folder / f"point-{point}", step) is None
        seen.append({"actors": sum(kill <= calls.stat().st_size for kill in kills), "drivers": drivers})
    sys.stdout.write(json.dumps(seen))


if __name__ == "__main__":
    main()
