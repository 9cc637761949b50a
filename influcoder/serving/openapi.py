"""What /openapi.json says beyond the routes: what the guard refuses, what the limits are, and whether a token is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI

from influcoder.serving.config import Limits
from influcoder.serving.guard import OPEN_PATHS
from influcoder.serving.messages import ProblemBody
from influcoder.serving.problems import MEDIA_TYPE

PROBLEM = {"$ref": "#/components/schemas/ProblemBody"}


def refusals(reasons: Mapping[int, str]) -> dict[int | str, dict[str, Any]]:
    """Return statuses that a route answers besides 200, and why, as FastAPI takes them."""
    return {status: {"description": reason, "content": {MEDIA_TYPE: {"schema": PROBLEM}}} for status, reason in reasons.items()}


def describe(app: FastAPI, limits: Limits, *, token: bool) -> None:
    """Complete the document that the application serves; call it when all routes are there."""
    document = app.openapi()  # kept by the application, which serves this very object
    schemas = document["components"]["schemas"]
    for name in ("HTTPValidationError", "ValidationError"):  # FastAPI's own words for a refusal, which `problems.py` replaces
        schemas.pop(name, None)
    schemas["ProblemBody"] = ProblemBody.model_json_schema()
    for path, operations in document["paths"].items():
        for operation in operations.values():
            _add_refusals(operation, token=token and path not in OPEN_PATHS, names=not token)
    if token:
        document["components"]["securitySchemes"] = {"bearer": {"type": "http", "scheme": "bearer"}}
    _add_limits(schemas, limits)


def _add_refusals(operation: dict[str, Any], *, token: bool, names: bool) -> None:
    reasons = {408: "the body did not arrive in time", 413: "the body is too large"}
    if names:
        reasons[421] = "the host is not a name of this machine"
    if token:
        reasons[401] = "no valid token"
        operation["security"] = [{"bearer": []}]
    found = {status: each for status, each in operation["responses"].items() if "HTTPValidationError" not in str(each)}
    found |= {str(status): each for status, each in refusals(reasons).items()}
    operation["responses"] = dict(sorted(found.items()))


def _add_limits(schemas: dict[str, Any], limits: Limits) -> None:
    for name in ("prompt", "response"):
        schemas["Query"]["properties"][name]["maxLength"] = limits.text_chars
    for name in ("AttributionRequest", "HighlightRequest"):
        schemas[name]["properties"]["queries"]["maxItems"] = limits.queries
    asked = schemas["AttributionRequest"]["properties"]
    asked["k"] |= {"maximum": limits.k, "default": min(asked["k"]["default"], limits.k)}
