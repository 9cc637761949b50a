"""A real server on a free port of this machine, started as a user would, and a client that needs no package."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

from influcoder.attribution import AttributionConfig, attribute
from influcoder.readers import Columns, DataSource
from tests.influcoder.conftest import make_texts

ROOT = Path(__file__).resolve().parents[2]
JSON = {"content-type": "application/json"}
ROWS = 230


def make_served(exported: Path, folder: Path) -> Path:
    """Make an encoder that knows of mu, a pool of odd ids and contributors, and their index in two shards."""
    shutil.copytree(exported, folder / "encoder")
    mu = {"slope": 2.0, "intercept": -0.5, "deviation": 0.25}
    (folder / "encoder" / "fidelity.json").write_text(json.dumps({"validation": {"mu": mu}}))
    texts, names = make_texts(2 * ROWS, seed=3), [None, "ada", "<b>bo</b>"]
    rows = [{"id": f"row {row}/ü?#%", "prompt": texts[row], "response": texts[row + ROWS], "who": names[row % 3]} for row in range(ROWS)]
    (folder / "pool.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "queries.jsonl").write_text(json.dumps({"prompt": "a", "response": "b"}) + "\n")
    pool = DataSource(paths=(str(folder / "pool.jsonl"),), columns=Columns(contributor="who"))
    queries = DataSource(paths=(str(folder / "queries.jsonl"),))
    attribute(
        AttributionConfig(encoder=str(folder / "encoder"), pool=pool, queries=queries, output=str(folder / "run"), top_k=5, shard_rows=128)
    )
    return folder


def base(folder: Path) -> list[str]:
    """Return what every server of `make_served` is started with."""
    return ["--encoder", str(folder / "encoder"), "--index", str(folder / "run" / "index")]


def rows_of(folder: Path) -> list[str]:
    """Return the arguments that give a server its texts."""
    return ["--rows.paths", f"[{folder / 'pool.jsonl'}]", "--rows.columns.contributor", "who"]


@dataclass
class Response:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Server:
    process: subprocess.Popen[str]
    host: str
    port: int
    said: str

    @property
    def address(self) -> str:
        return f"http://{self.host}:{self.port}"

    def send(self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None) -> Response:
        connection = HTTPConnection(self.host, self.port, timeout=20)
        try:
            connection.request(method, path, body, headers or {})
            found = connection.getresponse()
            return Response(found.status, {name.lower(): value for name, value in found.getheaders()}, found.read())
        finally:
            connection.close()

    def ask(self, *queries: dict[str, Any], headers: dict[str, str] | None = None, **settings: Any) -> Response:
        body = json.dumps({"queries": queries, **settings}).encode()
        return self.send("POST", "/attribute", body, JSON | (headers or {}))


@contextlib.contextmanager
def served(*arguments: str | Path, **environment: str) -> Iterator[Server]:
    """Run `influcoder serve` with these arguments on a free port; it is stopped with the block."""
    command = [sys.executable, "-m", "influcoder", "serve", "--port", "0", *map(str, arguments)]
    process = subprocess.Popen(
        command, cwd=ROOT, env=os.environ | environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True
    )
    try:
        assert process.stdout is not None and process.stderr is not None
        said = process.stdout.readline()
        assert said.startswith("http://"), process.stderr.read()
        host, _, port = said.split(": ")[0].removeprefix("http://").rpartition(":")
        yield Server(process, host, int(port), said)
    finally:
        process.terminate()
        try:
            process.communicate(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
