"""Requests drawn from the OpenAPI document, sound and broken: every answer is one that the document promises, and none is a failure."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from influcoder.calibration import load_mu_scale
from influcoder.index import open_index
from influcoder.onnx_encoder import OnnxEncoder
from influcoder.readers import Columns, DataSource
from influcoder.serving.answers import Attributor
from influcoder.serving.config import Limits
from influcoder.serving.row_texts import RowTexts
from tests.influcoder.serving_process import ROWS, make_served

for module in ("fastapi", "uvicorn", "prometheus_client"):
    pytest.importorskip(module, reason="the server's packages are not installed; do: pip install 'influcoder[serve]'")

LIMITS = Limits(k=7, queries=3, text_chars=60, body_bytes=5000, batch_queries=3)
TOKEN = "s3cret"
IDS = st.text(max_size=20) | st.integers(0, ROWS - 1).map(lambda row: f"row {row}/ü?#%")
Schema = dict[str, Any]


class Api:
    """A server in this process, and its document."""

    def __init__(self, folder: Path, token: str | None, *, texts: bool) -> None:
        from influcoder.serving.app import create_app  # needs what may not be installed

        encoder = OnnxEncoder(folder / "encoder")
        attributor = Attributor(
            encoder=encoder, index=open_index(folder / "run" / "index", encoder), mu_scale=load_mu_scale(folder / "encoder"), top=5
        )
        pool = DataSource(paths=(str(folder / "pool.jsonl"),), columns=Columns(contributor="who"))
        found = RowTexts(pool, encoder.text_format) if texts else None
        self.app: Any = create_app(attributor, found, limits=LIMITS, token=token, host="127.0.0.1")
        self.token = token
        self.document = self.send("GET", "/openapi.json", self.headers())[2]

    def headers(self) -> dict[str, str]:
        return {"host": "localhost", "content-type": "application/json"} | ({"authorization": f"Bearer {self.token}"} if self.token else {})

    def send(self, method: str, path: str, headers: dict[str, str], body: bytes = b"") -> tuple[int, str, Any]:
        """Return status, media type, and content."""
        sent: list[Any] = []
        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "scheme": "http", "path": path,
            "raw_path": quote(path).encode(), "query_string": b"", "root_path": "",
            "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
        }  # fmt: skip

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: Any) -> None:
            sent.append(message)

        asyncio.run(self.app(scope, receive, send))
        answered = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
        content = b"".join(message.get("body", b"") for message in sent[1:])
        media_type = answered["content-type"].partition(";")[0]
        return sent[0]["status"], media_type, json.loads(content) if "json" in media_type else content.decode()

    def of(self, schema: Schema) -> Schema:
        """Return a schema, followed where it refers to another."""
        if "$ref" not in schema:
            return schema
        found: Schema = self.document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
        return found

    def check(self, method: str, path: str, label: str, headers: dict[str, str], body: bytes = b"") -> int:
        """Send a request, compare its answer with the document, and return the status."""
        status, media_type, content = self.send(method, path, headers, body)
        said = (method, path, headers, body, status, content)
        promised = self.document["paths"][label][method.lower()]["responses"]
        assert status < 500 and str(status) in promised and media_type in promised[str(status)]["content"], said
        assert self.conforms(content, promised[str(status)]["content"][media_type]["schema"]), said
        return status

    def conforms(self, value: Any, schema: Schema) -> bool:
        """Return whether a value is of a schema, as far as this document's own words go."""
        schema = self.of(schema)
        if "anyOf" in schema:
            return any(self.conforms(value, each) for each in schema["anyOf"])
        if value != schema.get("const", value) or value not in schema.get("enum", [value]):
            return False
        if schema.get("type") == "object":
            known, needed = schema["properties"], schema.get("required", [])
            return (
                isinstance(value, dict)
                and all(name in value for name in needed)
                and all(name in known and self.conforms(each, known[name]) for name, each in value.items())
            )
        if schema.get("type") == "array":
            return isinstance(value, list) and all(self.conforms(each, schema["items"]) for each in value)
        kinds: dict[str, Any] = {"string": str, "integer": int, "number": (int, float), "boolean": bool, "null": type(None)}
        return isinstance(value, kinds[schema["type"]]) and (schema["type"] == "boolean" or not isinstance(value, bool))


@pytest.fixture(scope="module")
def folder(exported_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_served(exported_folder, tmp_path_factory.mktemp("described"))


@pytest.fixture(scope="module", params=["open", "guarded", "no texts"])
def api(folder: Path, request: pytest.FixtureRequest) -> Api:
    return Api(folder, TOKEN if request.param == "guarded" else None, texts=request.param != "no texts")


def sound(api: Api, schema: Schema) -> st.SearchStrategy[Any]:
    """Draw what a schema allows."""
    schema = api.of(schema)
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    if schema["type"] == "object":
        fields = {name: sound(api, each) for name, each in schema["properties"].items()}
        needed = schema.get("required", [])
        return st.fixed_dictionaries(
            {name: fields[name] for name in needed}, optional={name: each for name, each in fields.items() if name not in needed}
        )
    if schema["type"] == "array":
        return st.lists(sound(api, schema["items"]), min_size=schema.get("minItems", 0), max_size=schema["maxItems"])
    if schema["type"] == "string" and "maxLength" not in schema:  # the one text without an end is a row's id
        return IDS
    if schema["type"] == "string":
        texts = st.text(min_size=schema.get("minLength", 0), max_size=schema["maxLength"])
        return texts.filter(lambda text: re.search(schema.get("pattern", ""), text))
    low, high = schema["minimum"], schema["maximum"]
    if schema["type"] == "integer":
        return st.integers(low, high) | st.integers(low, high).map(float)
    return st.floats(low, high).filter(lambda number: number != schema.get("not", {}).get("const"))


def wrong(schema: Schema) -> list[Any]:
    """Return values that a schema of a text, a number or a list does not allow."""
    if "enum" in schema:
        return ["left", 1, None]
    if schema["type"] == "string":
        too_long = ["a" * (schema["maxLength"] + 1)] if "maxLength" in schema else []
        return [5, None, ["a"], *too_long, *([" \n\x1c\x85"] if "pattern" in schema else [])]
    if schema["type"] == "array":
        return [{}, "a", None, *([[]] if schema.get("minItems") else [])]
    bounds = [schema["minimum"] - 1, schema["maximum"] * 2, *([schema["not"]["const"]] if "not" in schema else [])]
    return ["1", None, [], True, float("inf"), float("nan"), *bounds, *([2.5] if schema["type"] == "integer" else [])]


@st.composite
def broken(draw: st.DrawFn, api: Api, schema: Schema) -> Any:
    """Draw what a schema does not allow, at one place."""
    schema = api.of(schema)
    if schema.get("type") == "object":
        value, name = draw(sound(api, schema)), draw(st.sampled_from(sorted(schema["properties"])))
        damage = draw(st.sampled_from(["inside", "missing", "unknown", "no object"]))
        if damage == "no object":
            return draw(st.sampled_from([3, None, "a", []]))
        if damage == "unknown":
            return value | {draw(st.text().filter(lambda text: text not in schema["properties"])): 1}
        if damage == "missing" and schema.get("required"):
            return {key: each for key, each in value.items() if key != schema["required"][0]}
        return value | {name: draw(broken(api, schema["properties"][name]))}
    if schema.get("type") == "array" and draw(st.booleans()):
        items = draw(sound(api, schema))
        if draw(st.booleans()):
            return [draw(sound(api, schema["items"]))] * (schema["maxItems"] + 1)
        return [*items[1:], draw(broken(api, schema["items"]))]
    return draw(st.sampled_from(wrong(schema)))


def bodies(api: Api) -> dict[str, Schema]:
    """Return the schema of each body by path."""
    found = {path: each["post"]["requestBody"] for path, each in api.document["paths"].items() if "post" in each}
    return {path: each["content"]["application/json"]["schema"] for path, each in found.items()}


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_what_the_document_allows_is_answered(api: Api, data: st.DataObject) -> None:
    path, schema = data.draw(st.sampled_from(sorted(bodies(api).items())))
    body = json.dumps(data.draw(sound(api, schema)), ensure_ascii=data.draw(st.booleans())).encode()
    assert api.check("POST", path, path, api.headers(), body) in ((200, 404) if path == "/highlights" else (200,))


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_what_it_does_not_allow_is_refused(api: Api, data: st.DataObject) -> None:
    path, schema = data.draw(st.sampled_from(sorted(bodies(api).items())))
    kinds = st.sampled_from(["schema", "bytes", "cut"])
    kind, body = data.draw(kinds), json.dumps(data.draw(broken(api, schema))).encode()
    if kind == "bytes":
        body = data.draw(st.binary())
    if kind == "cut":
        body = body[: data.draw(st.integers(0, len(body) - 1))]
    assert api.check("POST", path, path, api.headers(), body) in (400, 422)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_other_headers_and_rows(api: Api, data: st.DataObject) -> None:
    headers = api.headers() | data.draw(
        st.sampled_from(
            [{}, {"authorization": "Bearer no"}, {"authorization": ""}, {"host": "evil.example"}, {"content-type": "text/plain"}]
        )
    )
    body = b'{"queries": [{"response": "tea"}]}'
    assert api.check("POST", "/attribute", "/attribute", headers, body) in (200, 401, 415, 421)
    assert api.check("GET", f"/rows/{data.draw(IDS)}", "/rows/{row_id}", headers) in (200, 401, 404, 421)
    for path in ("/health", "/metrics"):
        assert api.check("GET", path, path, headers) in (200, 401, 421)


def test_the_document_says_who_is_let_in_and_what_is_too_much(api: Api) -> None:
    for path, operations in api.document["paths"].items():
        for operation in operations.values():
            assert ("security" in operation) == (api.token is not None and path != "/health")
            assert ("401" in operation["responses"]) == ("security" in operation)
            assert ("421" in operation["responses"]) == (api.token is None)
    asked = api.document["components"]["schemas"]["AttributionRequest"]["properties"]
    assert (asked["queries"]["maxItems"], asked["k"]["maximum"], asked["k"]["default"]) == (3, 7, 7)
    _, _, answer = api.send("POST", "/attribute", api.headers(), b'{"queries": [{"response": "tea"}]}')
    assert len(answer["queries"][0]["top"]) == 7, "who names no k gets the document's default"
