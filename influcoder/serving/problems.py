"""Refusals as RFC 9457 wants them: application/problem+json, one line of detail."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

MEDIA_TYPE = "application/problem+json"


class Problem(Exception):
    """A request that gets no answer, and why."""

    def __init__(self, status: int, detail: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(detail)
        self.status, self.detail, self.headers = status, detail, headers

    def response(self) -> JSONResponse:
        """Return it as a response."""
        detail = " ".join(self.detail.split()).encode(errors="replace").decode()  # a name in the request may hold half of a character
        content = {"type": "about:blank", "title": HTTPStatus(self.status).phrase, "status": self.status, "detail": detail}
        return JSONResponse(content, self.status, dict(self.headers or {}), MEDIA_TYPE)


async def on_problem(_: Request, error: Exception) -> JSONResponse:
    """Answer our own refusal."""
    assert isinstance(error, Problem)
    return error.response()


async def on_http_error(_: Request, error: Exception) -> JSONResponse:
    """Answer what the framework refuses: an unknown path, another method, a body that is no text."""
    assert isinstance(error, HTTPException)
    return Problem(error.status_code, str(error.detail), error.headers).response()


async def on_invalid(_: Request, error: Exception) -> JSONResponse:
    """Answer a body that is not what the path expects: 400 when it is no JSON, else 422. What was sent is not repeated."""
    assert isinstance(error, RequestValidationError)
    errors = error.errors()
    first = errors[0]
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    if first["type"] == "json_invalid":
        return Problem(400, f"body: not JSON, {first.get('ctx', {}).get('error', 'malformed')}; expected an object").response()
    where = ".".join(str(part) for part in first["loc"] if part != "body") or "body"
    return Problem(422, f"{where:.200}: {first['msg'].removeprefix('Value error, ')}{more}; see /openapi.json").response()


async def on_failure(_: Request, error: Exception) -> JSONResponse:
    """Answer what is nobody's fault but ours; the log has the rest."""
    return Problem(500, "the server failed; its log says why").response()
