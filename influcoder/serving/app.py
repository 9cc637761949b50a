"""The routes."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
from collections.abc import Sequence
from importlib import resources
from typing import Any

from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, Response
from fastapi.security import HTTPBearer
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

import influcoder
from influcoder.serving import problems
from influcoder.serving.answers import Answer, Attributor, Question
from influcoder.serving.batching import Batcher, Busy
from influcoder.serving.config import Limits
from influcoder.serving.guard import Guard
from influcoder.serving.messages import AttributionAnswer, AttributionRequest, Health, ProblemBody, RowText
from influcoder.serving.metrics import Metrics
from influcoder.serving.problems import Problem
from influcoder.serving.row_texts import RowTexts

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
LATER = {"retry-after": "5"}


def create_app(
    attributor: Attributor, texts: RowTexts | None, *, limits: Limits, token: str | None, host: str, log_requests: bool = False
) -> ASGIApp:
    """Return the server as an ASGI application.

    Args:
        attributor: what answers.
        texts: of the rows; None when the server has none.
        limits: of a request.
        token: that requests must bring; None asks for none.
        host: that the server listens on.
        log_requests: say each request to the logger `influcoder.serving`.
    """
    metrics = Metrics()
    manifest = attributor.index.manifest

    def answer(questions: Sequence[Question]) -> list[Answer]:
        answers = attributor.answer(questions)
        metrics.batch(sum(len(question.queries) for question in questions), manifest.num_rows)
        return answers

    batcher = Batcher(
        answer, size=lambda question: len(question.queries), max_size=limits.batch_queries, max_waiting=limits.waiting
    )  # fmt: skip
    app = _empty_app()
    _add_attribute(app, attributor, batcher, limits)
    _add_rows(app, texts)
    _add_facts(app, attributor, metrics, limits, texts=texts is not None, token=token is not None)
    _add_explorer(app)
    return Guard(app=app, limits=limits, token=token, host=host, metrics=metrics, log_requests=log_requests)


def _add_attribute(app: FastAPI, attributor: Attributor, batcher: Batcher[Question, Answer], limits: Limits) -> None:
    manifest = attributor.index.manifest

    @app.post(
        "/attribute",
        dependencies=[Depends(_expect_json)],
        response_model_exclude_unset=True,
        responses=_refusals(400, 401, 408, 413, 415, 422, 503),
    )
    async def attribute(asked: AttributionRequest) -> AttributionAnswer:
        """Rank the rows of the index by their influence on the queries."""
        found = await _in_time(batcher, asked.question(limits), limits.seconds)
        return AttributionAnswer.model_validate(
            {"queries": found.queries, "ranking": found.ranking}
            | {"rows": manifest.num_rows, "index_version": manifest.version, "encoder": manifest.encoder_fingerprint}
        )


def _add_rows(app: FastAPI, texts: RowTexts | None) -> None:
    @app.get("/rows/{row_id:path}", responses=_refusals(401, 404))
    def row(row_id: str) -> RowText:
        """Return the text of a row, where the server was given the pool."""
        if texts is None:
            raise Problem(404, "this server was given no texts; start it with --rows.paths '[POOL]' to have them")
        found = texts.find(row_id)
        if found is None:
            raise Problem(404, f"row {row_id!r:.100}: no such row; expected an id that /attribute returned")
        return RowText.model_validate(found)


def _add_facts(app: FastAPI, attributor: Attributor, metrics: Metrics, limits: Limits, *, texts: bool, token: bool) -> None:
    manifest = attributor.index.manifest

    @app.get("/health")
    async def health() -> Health:
        """Say what is served."""
        return Health(
            status="ok", rows=manifest.num_rows, index_version=manifest.version, encoder=manifest.encoder_fingerprint,
            texts=texts, token=token,
            max_queries=limits.queries, max_k=limits.k, max_text_chars=limits.text_chars,
        )  # fmt: skip

    @app.get("/metrics", responses=_refusals(401))
    async def metrics_text() -> Response:
        """Return counts for Prometheus."""
        return Response(metrics.text(), media_type=METRICS_TYPE)


def _add_explorer(app: FastAPI) -> None:
    page, policy = explorer()

    @app.get("/", include_in_schema=False)
    async def explore() -> HTMLResponse:
        return HTMLResponse(page, headers={"content-security-policy": policy, "referrer-policy": "no-referrer"})


def explorer() -> tuple[str, str]:
    """Return the explorer's page, and a policy that lets it run its own script, ask this server, and nothing else."""
    page = resources.files("influcoder.serving").joinpath("explorer.html").read_text(encoding="utf-8")
    scripts = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    hashes = " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" for script in scripts)
    return page, (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; connect-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def _expect_json(request: Request) -> None:
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise Problem(415, "content-type: expected application/json")  # which no page elsewhere can send unasked


def _empty_app() -> FastAPI:
    bearer = Depends(HTTPBearer(auto_error=False, description="where the server asks for a token; the guard checks it"))
    # docs_url: FastAPI's page fetches scripts from elsewhere
    app = FastAPI(title="influcoder", version=influcoder.__version__, docs_url=None, redoc_url=None, dependencies=[bearer])
    app.add_exception_handler(Problem, problems.on_problem)
    app.add_exception_handler(HTTPException, problems.on_http_error)
    app.add_exception_handler(RequestValidationError, problems.on_invalid)
    app.add_exception_handler(Exception, problems.on_failure)
    return app


def _refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    schema = {"schema": ProblemBody.model_json_schema()}
    return {status: {"description": "refused", "content": {problems.MEDIA_TYPE: schema}} for status in statuses}


async def _in_time(batcher: Batcher[Question, Answer], question: Question, seconds: float) -> Answer:
    try:
        return await asyncio.wait_for(batcher.ask(question), seconds)
    except Busy:
        raise Problem(503, "too many requests wait already; ask again later", LATER) from None
    except asyncio.TimeoutError:
        raise Problem(503, f"no answer after {seconds:g} s; ask again later, or with fewer queries", LATER) from None
