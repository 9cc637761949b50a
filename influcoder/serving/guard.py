"""What stands before every route: host, token, size and speed of the body; and what is counted and logged behind it.

A body is read whole before the application sees the request, so that a slow sender holds a coroutine and nothing else.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import time
from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from influcoder.serving.config import LOOPBACK_NAMES, Limits
from influcoder.serving.metrics import Metrics
from influcoder.serving.problems import Problem

logger = logging.getLogger("influcoder.serving")
PATHS = ("/", "/attribute", "/highlights", "/health", "/metrics", "/openapi.json")
OPEN_PATHS = ("/", "/health")
"""need no token: a page that holds nothing, and what a load balancer asks"""
DRAINED = 16
"""times the limit of a body: what is read and thrown away, since who is still sending does not read a refusal"""


@dataclass(frozen=True, kw_only=True)
class Guard:
    """ASGI middleware."""

    app: ASGIApp
    limits: Limits
    token: str | None
    host: str
    """that the server listens on"""
    metrics: Metrics
    log_requests: bool

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or answer it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, status = time.monotonic(), 500

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", []), (b"x-content-type-options", b"nosniff"), (b"cache-control", b"no-store")]
            await send(message)

        try:
            try:
                self._check_sender(scope)
                body = await self._read(scope, receive)
            except Problem as problem:
                await problem.response()(scope, receive, counted)
            else:
                if body is None:
                    status = 499  # the client went away; nobody is there to answer
                else:
                    await self.app(scope, _replay(body, receive), counted)
        finally:
            self._count(path_label(scope["path"]), status, time.monotonic() - started)

    def _check_sender(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        if self.token is None:
            name = headers.get("host", "").rpartition(":")[0] if _has_port(headers.get("host", "")) else headers.get("host", "")
            if name not in (*LOOPBACK_NAMES, self.host):  # a page elsewhere may have its own name resolved to this machine
                raise Problem(421, f"host {name!r:.80}; expected {', '.join(LOOPBACK_NAMES)}; other names need a token", CLOSE)
        elif scope["path"] not in OPEN_PATHS:
            scheme, _, given = headers.get("authorization", "").partition(" ")
            if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), self.token.encode()):
                detail = "no valid token; expected a header: Authorization: Bearer TOKEN"
                raise Problem(401, detail, {"www-authenticate": "Bearer", **CLOSE})

    async def _read(self, scope: Scope, receive: Receive) -> bytes | None:
        limit, seconds = self.limits.body_bytes, self.limits.seconds
        refusal = Problem(413, f"body: more than {limit} bytes; expected at most that; ask with fewer or shorter queries", CLOSE)
        if _length(scope) > DRAINED * limit:
            raise refusal
        try:
            size, body = await asyncio.wait_for(_receive_body(receive, limit), seconds)
        except asyncio.TimeoutError:
            raise Problem(408, f"body: not there after {seconds:g} s; send it faster", CLOSE) from None
        if size > limit:
            raise refusal
        return body

    def _count(self, path: str, status: int, seconds: float) -> None:
        self.metrics.request(path, status, seconds)
        if self.log_requests:
            now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            logger.info(json.dumps({"time": now, "path": path, "status": status, "seconds": round(seconds, 4)}))


CLOSE = {"connection": "close"}
"""of a request whose body may not have been read"""


def path_label(path: str) -> str:
    """Return a path as it is counted: few labels, whatever is asked for."""
    return path if path in PATHS else "/rows/{id}" if path.startswith("/rows/") else "other"


async def _receive_body(receive: Receive, limit: int) -> tuple[int, bytes | None]:
    """Return the size of a body, which is exact up to the limit, and the body; None when the client went away."""
    size, parts = 0, []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return 0, None
        part = message.get("body", b"")
        size += len(part)
        if size <= limit:
            parts.append(part)
        else:
            parts.clear()
        if not message.get("more_body", False) or size > DRAINED * limit:
            return size, b"".join(parts)


def _replay(body: bytes, receive: Receive) -> Receive:
    sent = False

    async def replayed() -> Message:
        nonlocal sent
        if sent:
            return await receive()
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replayed


def _length(scope: Scope) -> int:
    given = Headers(scope=scope).get("content-length", "0")
    return int(given) if given.isdecimal() and len(given) < 20 else 0


def _has_port(host: str) -> bool:
    return ":" in host.rpartition("]")[2]
