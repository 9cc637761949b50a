"""Starts `python -m STAGE CONFIG` (or another program, with its arguments) as often as a test wants without the seconds of importing torch: a process that forks itself.

Each run is a process of its own, which a test may kill. The server speaks JSON lines: arguments and environment in, pid out; on
"wait", the exit status.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONPATH": str(ROOT)}
LLAMA = "transformers.models.llama.modeling_llama"
LATE = {
    "teacher": ("teacher.stage", LLAMA),
    "student": ("student.stage", "transformers.models.bert.modeling_bert"),
    "examples.hf_finetune": ("examples.hf_finetune", "transformers.integrations", LLAMA),
    "examples.lightning_finetune": ("examples.lightning_finetune", LLAMA),
}
"""what a program imports while it runs"""


class ForkServer:
    """What a test talks to."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def start(self, config: Path, environment: Mapping[str, str] | None = None, arguments: Sequence[str] | None = None) -> int:
        """Start a run whose output goes to `CONFIG.log`; return its pid. Its arguments are the config unless others are given."""
        given = [str(config)] if arguments is None else list(arguments)
        return int(self._ask({"start": given, "environment": dict(environment or {}), "log": f"{config}.log"}))

    def start_ranks(self, config: Path, count: int) -> list[int]:
        """Start a run in as many processes as torchrun would; return their pids, the first one's first."""
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            port = listener.getsockname()[1]
        shared = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        return [self.start(config, shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)}) for rank in range(count)]

    def wait(self, pid: int) -> int:
        """Return the exit code, negative for a signal."""
        return int(self._ask({"wait": pid}))

    def ended(self, pid: int) -> bool:
        """Return whether it has ended by itself."""
        return bool(self._ask({"ended": pid}))

    def run(self, config: Path, arguments: Sequence[str] | None = None) -> None:
        """Run to the end, which must be a good one."""
        code = self.wait(self.start(config, arguments=arguments))
        assert code == 0, Path(f"{config}.log").read_text()

    def _ask(self, question: Any) -> Any:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(question) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())


@contextmanager
def fork_server(stage: str) -> Iterator[ForkServer]:
    """Serve runs of a stage while the block runs."""
    command = [sys.executable, "-m", "tests.fork_server", stage]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=os.environ | ENVIRONMENT
    ) as process:
        try:
            yield ForkServer(process)
        finally:
            process.kill()


def kill(pid: int) -> None:
    """End a process as a power cut would."""
    os.kill(pid, signal.SIGKILL)


def _serve(stage: str) -> None:
    for module in ("lightning.pytorch", *LATE[stage]):
        importlib.import_module(module)
    for line in sys.stdin:
        question = json.loads(line)
        if "ended" in question:
            answer = int(os.waitid(os.P_PID, question["ended"], os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None)
        elif "wait" in question:
            answer = os.waitstatus_to_exitcode(os.waitpid(question["wait"], 0)[1])
        else:
            answer = os.fork()
            if answer == 0:
                _become(stage, question["start"], question["environment"], question["log"])
        sys.stdout.write(f"{answer}\n")
        sys.stdout.flush()


def _become(stage: str, arguments: Sequence[str], environment: Mapping[str, str], log: str) -> None:
    from influcoder.program import run_program

    stream = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(stream, 1)
    os.dup2(stream, 2)
    os.environ.update(environment)
    sys.argv = [stage, *arguments]
    code: Any = 0
    try:
        program = importlib.import_module(stage)
        run_program((program if hasattr(program, "main") else importlib.import_module(f"{stage}.__main__")).main)
    except SystemExit as ending:
        code = ending.code
    except BaseException:
        import traceback

        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(int(code or 0))


if __name__ == "__main__":
    _serve(sys.argv[1])
