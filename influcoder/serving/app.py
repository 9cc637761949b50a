"""The routes."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import asdict

from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, PlainTextResponse, Response
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

import influcoder
from influcoder.examples import Example
from influcoder.serving import problems
from influcoder.serving.answers import Answer, Attributor, Question
from influcoder.serving.batching import Batcher, Busy
from influcoder.serving.config import Limits
from influcoder.serving.explorer import explorer
from influcoder.serving.guard import Guard
from influcoder.serving.messages import (
    AttributionAnswer,
    AttributionRequest,
    Health,
    HighlightAnswer,
    HighlightRequest,
    RowText,
    user_turn,
)
from influcoder.serving.metrics import Metrics
from influcoder.serving.occlusion import Highlight, Occlusion
from influcoder.serving.openapi import describe, refusals
from influcoder.serving.problems import Problem
from influcoder.serving.row_texts import RowTexts

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
NO_ROW = {404: "no such row, or a server without texts"}
LATER = {"retry-after": "5"}
ASKED_WRONGLY = {400: "the body is no JSON", 415: "the body is not said to be JSON", 422: "the body is not what is expected"}
Worker = Batcher[Question | Occlusion, Answer | list[Highlight]]
"""what embeds and searches, one batch at a time"""


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

    def work(asked: Sequence[Question | Occlusion]) -> list[Answer | list[Highlight]]:
        answers = attributor.work(asked)
        if queries := sum(each.size for each in asked if isinstance(each, Question)):
            metrics.batch(queries, manifest.num_rows)
        return answers

    batcher = Batcher(work, size=lambda asked: asked.size, max_size=limits.batch_queries, max_waiting=limits.waiting)
    app = _empty_app()
    _add_attribute(app, attributor, batcher, limits)
    _add_rows(app, texts)
    _add_highlights(app, texts, batcher, limits)
    _add_facts(app, attributor, metrics, limits, texts=texts is not None, token=token is not None)
    _add_explorer(app)
    describe(app, limits, token=token is not None)
    return Guard(app=app, limits=limits, token=token, host=host, metrics=metrics, log_requests=log_requests)


def _add_attribute(app: FastAPI, attributor: Attributor, batcher: Worker, limits: Limits) -> None:
    manifest = attributor.index.manifest

    @app.post(
        "/attribute",
        dependencies=[Depends(_expect_json)],
        response_model_exclude_unset=True,
        responses=refusals(ASKED_WRONGLY | {503: "too much waits already"}),
    )
    async def attribute(asked: AttributionRequest) -> AttributionAnswer:
        """Rank the rows of the index by their influence on the queries."""
        found = await _in_time(batcher, asked.question(limits), limits.seconds)
        assert isinstance(found, Answer)  # a question's
        return AttributionAnswer.model_validate(
            {"queries": found.queries, "ranking": found.ranking}
            | {"rows": manifest.num_rows, "index_version": manifest.version, "encoder": manifest.encoder_fingerprint}
        )


def _add_rows(app: FastAPI, texts: RowTexts | None) -> None:
    @app.get("/rows/{row_id:path}", responses=refusals(NO_ROW))
    def row(row_id: str) -> RowText:
        """Return the text of a row, where the server was given the pool."""
        return _find_row(texts, row_id)


def _add_highlights(app: FastAPI, texts: RowTexts | None, batcher: Worker, limits: Limits) -> None:
    @app.post(
        "/highlights",
        dependencies=[Depends(_expect_json)],
        responses=refusals(ASKED_WRONGLY | NO_ROW | {503: "too much waits already"}),
    )
    async def highlights(asked: HighlightRequest) -> HighlightAnswer:
        """Say which words carry a row's scores, by leaving them out: the encoder's view, not the teacher's."""
        queries = asked.examples(limits)
        found = await run_in_threadpool(_find_row, texts, asked.row)
        row = Example(id=found.id, context=user_turn(found.prompt), response=found.response)
        highlighted = await _in_time(batcher, Occlusion(row=row, queries=queries, spans=limits.highlight_spans), limits.seconds)
        assert isinstance(highlighted, list)  # an occlusion's
        return HighlightAnswer.model_validate({"row": found.id, "highlights": [asdict(each) for each in highlighted]})


def _find_row(texts: RowTexts | None, row_id: str) -> RowText:
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

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics_text() -> Response:
        """Return counts for Prometheus."""
        return Response(metrics.text(), media_type=METRICS_TYPE)


def _add_explorer(app: FastAPI) -> None:
    page, policy = explorer()

    @app.get("/", include_in_schema=False)
    async def explore() -> HTMLResponse:
        return HTMLResponse(page, headers={"content-security-policy": policy, "referrer-policy": "no-referrer"})


def _expect_json(request: Request) -> None:
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise Problem(415, "content-type: expected application/json")  # which no page elsewhere can send unasked


def _empty_app() -> FastAPI:
    # docs_url: FastAPI's page fetches scripts from elsewhere
    app = FastAPI(title="influcoder", version=influcoder.__version__, docs_url=None, redoc_url=None)
    app.add_exception_handler(Problem, problems.on_problem)
    app.add_exception_handler(HTTPException, problems.on_http_error)
    app.add_exception_handler(RequestValidationError, problems.on_invalid)
    app.add_exception_handler(Exception, problems.on_failure)
    return app


async def _in_time(batcher: Worker, asked: Question | Occlusion, seconds: float) -> Answer | list[Highlight]:
    try:
        return await asyncio.wait_for(batcher.ask(asked), seconds)
    except Busy:
        raise Problem(503, "too many requests wait already; ask again later", LATER) from None
    except asyncio.TimeoutError:
        raise Problem(503, f"no answer after {seconds:g} s; ask again later, or with fewer queries", LATER) from None
