"""A real server on loopback: its scores, its refusals, its counts, its end."""

from __future__ import annotations

import json
import signal
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from influcoder.aggregation import aggregate
from influcoder.embed_batch import embed_rows
from influcoder.examples import Example, Turn
from influcoder.index import open_index
from influcoder.index_search import search
from influcoder.onnx_encoder import OnnxEncoder
from tests.influcoder.conftest import make_texts
from tests.influcoder.serving_process import JSON, ROWS, Response, Server, base, make_served, rows_of, served

for module in ("fastapi", "uvicorn", "prometheus_client"):
    pytest.importorskip(module, reason="the server's packages are not installed; do: pip install 'influcoder[serve]'")

QUERY = {"prompt": "river bread", "response": "green tea prints seven stars"}
PROBLEM = "application/problem+json"


@pytest.fixture(scope="module")
def folder(exported_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder, a pool and its index."""
    return make_served(exported_folder, tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    """Texts, no token."""
    with served(*base(folder), *rows_of(folder)) as running:
        yield running


@pytest.fixture(scope="module")
def guarded(folder: Path) -> Iterator[Server]:
    """A token, narrow limits, a log, no texts."""
    limits = [
        "--limits.body_bytes",
        "2000",
        "--limits.queries",
        "2",
        "--limits.k",
        "20",
        "--limits.text_chars",
        "100",
        "--limits.seconds",
        "2",
    ]
    with served(*base(folder), *limits, "--token_variable", "THE_TOKEN", "--log_requests", "true", THE_TOKEN="s3cret") as running:
        yield running


def refused(response: Response, status: int, detail: str) -> None:
    assert (response.status, response.headers["content-type"]) == (status, PROBLEM), response.body
    assert response.json["status"] == status and response.json["type"] == "about:blank"
    assert detail in response.json["detail"] and "\n" not in response.json["detail"]


def test_scores_are_those_of_a_search(server: Server, folder: Path) -> None:
    encoder = OnnxEncoder(folder / "encoder")
    index = open_index(folder / "run" / "index", encoder)
    given: list[dict[str, Any]] = [QUERY, {"response": "music über naïve 東京"}, {"prompt": "code", "response": "slowly", "weight": -1}]
    answer = server.ask(*given, k=7)
    assert answer.status == 200 and answer.headers["content-type"] == "application/json", answer.body
    assert {name: answer.json[name] for name in ("rows", "index_version", "encoder")} == {
        "rows": ROWS, "index_version": 1, "encoder": encoder.fingerprint,
    }  # fmt: skip
    examples = [
        Example(id="q", context=(Turn(role="user", content=q["prompt"]),) if "prompt" in q else (), response=q["response"]) for q in given
    ]
    vectors, _ = embed_rows(encoder, examples)
    found = search(index, vectors, 7)
    for side, rows, scores in (("top", found.top_rows, found.top_scores), ("bottom", found.bottom_rows, found.bottom_scores)):
        names = index.look_up(rows.ravel()).to_pylist()
        for query in range(3):
            listed = answer.json["queries"][query][side]
            assert [{"id": row["id"], "contributor": row["contributor"]} for row in listed] == names[7 * query : 7 * query + 7]
            assert [row["rank"] for row in listed] == list(range(1, 8))
            np.testing.assert_allclose([row["score"] for row in listed], scores[query], atol=1e-5)
            for row in listed:
                mu, half = -0.5 + 2 * row["score"], 1.959963984540054 * 0.25
                assert (row["mu"], row["mu_lower"], row["mu_upper"]) == pytest.approx((mu, mu - half, mu + half))
                assert row["distinguishable"] == (abs(mu) > half)
    restored = np.concatenate([shard.restored() for shard in index.shards()])
    total = aggregate(vectors @ restored.T, np.array([1.0, 1.0, -1.0]))
    for side, order in (("top", np.argsort(-total, kind="stable")), ("bottom", np.argsort(total, kind="stable"))):
        listed = answer.json["ranking"][side]
        places = [int(row["id"].split()[1].partition("/")[0]) for row in listed]
        np.testing.assert_allclose(total[places], total[order[:7]], atol=1e-5)
        assert len(set(places)) == 7
        np.testing.assert_allclose([row["score"] for row in listed], total[order[:7]], atol=1e-5)
        assert "mu" not in listed[0]


def test_one_side_is_returned_where_one_is_asked_for(server: Server) -> None:
    both = server.ask(QUERY, k=3).json
    for side in ("top", "bottom"):
        one = server.ask(QUERY, k=3, side=side).json
        assert one["queries"] == [{side: both["queries"][0][side]}] and one["ranking"] == {side: both["ranking"][side]}
    assert len(server.ask(QUERY).json["queries"][0]["top"]) == 10


def test_a_row_has_a_text_where_the_server_was_given_the_pool(server: Server, guarded: Server) -> None:
    pool_id = "/rows/row%207%2F%C3%BC%3F%23%25"
    found = server.send("GET", pool_id)
    assert found.status == 200 and found.json["id"] == "row 7/ü?#%" and found.json["contributor"] == "ada"
    texts = make_texts(2 * ROWS, seed=3)
    assert (found.json["prompt"], found.json["response"]) == (texts[7][-120:], texts[7 + ROWS][:400])
    refused(server.send("GET", "/rows/nobody"), 404, "row 'nobody': no such row")
    refused(guarded.send("GET", pool_id, headers={"authorization": "Bearer s3cret"}), 404, "given no texts; start it with --rows.paths")


def test_words_carry_what_the_score_loses_without_them(server: Server, folder: Path) -> None:
    encoder, row = OnnxEncoder(folder / "encoder"), server.send("GET", "/rows/row%207%2F%C3%BC%3F%23%25").json
    queries = [QUERY, {"response": "  music  slowly\nnaïve \U0001f600 "}]
    answer = server.send("POST", "/highlights", json.dumps({"row": row["id"], "queries": queries}).encode(), JSON)
    assert answer.status == 200 and answer.json["row"] == row["id"], answer.body

    def vector(prompt: str | None, response: str) -> Any:
        return encoder.encode([f"Prompt: {prompt}\nResponse: {response}" if prompt else f"Response: {response}"])[0]

    for query, found in zip(queries, answer.json["highlights"], strict=True):
        asking, asked = vector(query.get("prompt"), query["response"]), vector(row["prompt"], row["response"])
        assert found["score"] == pytest.approx(asking @ asked, abs=1e-5)
        sides = (
            (found["row"], row["response"], row["prompt"], asking, 32),
            (found["query"], query["response"], query.get("prompt"), asked, 16),
        )
        for spans, response, prompt, other, limit in sides:
            texts = [span["text"] for span in spans]
            assert "".join(texts) == response and len(texts) == min(limit, len(response.split()))
            for place, span in enumerate(spans):
                without = "".join(texts[:place] + texts[place + 1 :])
                assert span["change"] == pytest.approx(found["score"] - vector(prompt, without) @ other, abs=2e-5)
    for side in ("row", "query"):
        changes = [span["change"] for found in answer.json["highlights"] for span in found[side]]
        assert max(map(abs, changes)) > 1e-3, "some word carries something"


def test_highlights_are_refused_where_there_is_no_text(server: Server, guarded: Server) -> None:
    body = json.dumps({"row": "nobody", "queries": [QUERY]}).encode()
    refused(server.send("POST", "/highlights", body, JSON), 404, "row 'nobody': no such row")
    refused(guarded.send("POST", "/highlights", body, JSON | {"authorization": "Bearer s3cret"}), 404, "given no texts")
    refused(guarded.send("POST", "/highlights", body, JSON), 401, "no valid token")
    many = json.dumps({"row": "nobody", "queries": [QUERY] * 17}).encode()
    refused(server.send("POST", "/highlights", many, JSON), 422, "queries: 17; expected at most 16")


@pytest.mark.parametrize(
    ("body", "status", "detail"),
    [
        (b"{", 400, "not JSON"),
        (b"", 422, "Field required"),
        (b"\xff\xfe{}", 400, ""),
        (b"[" * 100_000, 400, ""),
        (b'{"queries": [], "k": ' + b"9" * 5000 + b"}", 400, ""),
        (b"[1]", 422, "valid dictionary"),
        (b"{}", 422, "queries: Field required"),
        (b'{"queries": []}', 422, "queries: List should have at least 1 item"),
        (b'{"queries": [{"response": "a", "prompt": 3}]}', 422, "queries.0.prompt: Input should be a valid string"),
        (b'{"queries": [{"response": "  "}]}', 422, "queries.0.response: expected text"),
        (b'{"queries": [{"response": "\\ud800"}]}', 422, "queries.0.response: expected whole characters"),
        (b'{"queries": [{"response": "a", "prompt": "\\udc00"}]}', 422, "queries.0.prompt: expected whole characters"),
        (b'{"queries": [{"response": "a"}], "\\ud800\\n": 1}', 422, "body: Input should be a valid string"),
        (b'{"queries": [{"response": "a", "weight": 1e300}]}', 422, "queries.0.weight"),
        (b'{"queries": [{"response": "a", "weight": "1"}]}', 422, "queries.0.weight"),
        (b'{"queries": [{"response": "a", "weight": 0}]}', 422, "other than 0"),
        (b'{"queries": [{"response": "a", "weight": NaN}]}', 422, "queries.0.weight"),
        (b'{"queries": [{"response": "a", "weight": 1e999}]}', 422, "queries.0.weight"),
        (b'{"queries": [{"response": "a", "respons": "b"}]}', 422, "queries.0.respons: Extra inputs"),
        (b'{"queries": [{"response": "a"}], "k": 2.5}', 422, "k: "),
        (b'{"queries": [{"response": "a"}], "k": true}', 422, "k: "),
        (b'{"queries": [{"response": "a"}], "k": 0}', 422, "k: "),
        (b'{"queries": [{"response": "a"}], "k": 101}', 422, "k: 101; expected at most 100"),
        (b'{"queries": [{"response": "a"}], "side": "left"}', 422, "side: "),
        (json.dumps({"queries": [QUERY] * 17}).encode(), 422, "queries: 17; expected at most 16"),
        (json.dumps({"queries": [{"response": "a" * 20_001}]}).encode(), 422, "queries.0.response: 20001 characters"),
        (b" " * (1 << 20) + b"{}", 413, "body: more than 1048576 bytes"),
    ],
)
def test_bad_input_is_refused_in_one_line(server: Server, body: bytes, status: int, detail: str) -> None:
    refused(server.send("POST", "/attribute", body, JSON), status, detail)


def test_what_was_sent_is_not_repeated(server: Server) -> None:
    answer = server.send("POST", "/attribute", b'{"queries": [{"response": ["my secret"]}]}', JSON)
    assert answer.status == 422 and b"secret" not in answer.body


def test_other_paths_methods_and_types_are_refused(server: Server) -> None:
    refused(server.send("GET", "/nowhere"), 404, "Not Found")
    refused(server.send("GET", "/docs"), 404, "Not Found")
    refused(server.send("GET", "/attribute"), 405, "Method Not Allowed")
    refused(server.send("DELETE", "/rows/a"), 405, "Method Not Allowed")
    body = json.dumps({"queries": [QUERY]}).encode()
    for kind in ({}, {"content-type": "text/plain"}, {"content-type": "application/x-www-form-urlencoded"}):
        refused(server.send("POST", "/attribute", body, kind), 415, "expected application/json")


def test_without_a_token_only_this_machines_names_are_answered(server: Server) -> None:
    for host in ("evil.example", "evil.example:80", "localhost.evil.example", ""):
        refused(server.send("GET", "/rows/a", headers={"host": host}), 421, "other names need a token")
    for host in ("localhost", "127.0.0.1:1", "[::1]:80"):
        assert server.send("GET", "/health", headers={"host": host}).status == 200


def test_a_token_is_asked_for(guarded: Server) -> None:
    for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "Basic s3cret"}, {"authorization": "Bearer s3cret2"}):
        answer = guarded.ask(QUERY, headers=headers)
        refused(answer, 401, "no valid token")
        assert answer.headers["www-authenticate"] == "Bearer"
        for path in ("/rows/a", "/metrics", "/openapi.json", "/nowhere"):
            refused(guarded.send("GET", path, headers=headers), 401, "no valid token")
    assert guarded.ask(QUERY, k=20, headers={"authorization": "bearer s3cret", "host": "any.example"}).status == 200
    assert guarded.send("GET", "/health").json["token"] and guarded.send("GET", "/").status == 200


def test_limits_are_those_of_the_config(guarded: Server) -> None:
    token = {"authorization": "Bearer s3cret"}
    refused(guarded.ask(QUERY, QUERY, QUERY, headers=token), 422, "queries: 3; expected at most 2")
    refused(guarded.ask(QUERY, k=21, headers=token), 422, "k: 21; expected at most 20")
    refused(guarded.ask({"response": "a" * 101}, headers=token), 422, "queries.0.response: 101 characters; expected at most 100")
    refused(guarded.ask({"response": "a" * 2000}, headers=token), 413, "body: more than 2000 bytes")
    refused(guarded.send("POST", "/attribute", b"a" * 300_000, JSON | token), 413, "body: more than 2000 bytes")


def test_a_chunked_body_has_the_same_limit(guarded: Server) -> None:
    with socket.create_connection((guarded.host, guarded.port), timeout=10) as client:
        head = "POST /attribute HTTP/1.1\r\nhost: a\r\nauthorization: Bearer s3cret\r\ncontent-type: application/json\r\n"
        client.sendall(f"{head}transfer-encoding: chunked\r\n\r\n".encode() + b"3e8\r\n" + b"a" * 1000 + b"\r\n")
        client.sendall(2 * (b"3e8\r\n" + b"a" * 1000 + b"\r\n") + b"0\r\n\r\n")
        assert client.recv(1000).startswith(b"HTTP/1.1 413 ")


def test_slow_clients_are_cut_off_and_stop_nobody(guarded: Server) -> None:
    head = b"POST /attribute HTTP/1.1\r\nhost: a\r\nauthorization: Bearer s3cret\r\ncontent-type: application/json\r\ncontent-length: 1000\r\n\r\n"
    slow = [socket.create_connection((guarded.host, guarded.port), timeout=20) for _ in range(40)]
    try:
        for client in slow:
            client.sendall(head + b"{")
        with ThreadPoolExecutor(8) as clients:
            answers = list(clients.map(lambda _: guarded.ask(QUERY, headers={"authorization": "Bearer s3cret"}), range(16)))
        assert [answer.status for answer in answers] == [200] * 16
        for client in slow:
            assert client.recv(1000).startswith(b"HTTP/1.1 408 ")
    finally:
        for client in slow:
            client.close()


def test_many_at_once_get_the_answers_that_each_gets_alone(server: Server) -> None:
    queries = [{"response": text} for text in make_texts(12, seed=5)]
    alone = [server.ask(query, k=8).json["queries"][0] for query in queries]
    with ThreadPoolExecutor(12) as clients:
        together = [answer.json["queries"][0] for answer in clients.map(lambda query: server.ask(query, k=4), queries)]
    for one, other in zip(alone, together, strict=True):
        for side in ("top", "bottom"):
            scores = {row["id"]: row["score"] for row in one[side]}
            np.testing.assert_allclose([row["score"] for row in other[side]], list(scores.values())[:4], atol=1e-5)
            np.testing.assert_allclose([row["score"] for row in other[side]], [scores[row["id"]] for row in other[side]], atol=1e-5)


def metric(server: Server, line: str, headers: dict[str, str] | None = None) -> float:
    text = server.send("GET", "/metrics", headers=headers).body.decode()
    return sum(float(each.rpartition(" ")[2]) for each in text.splitlines() if each.startswith(line + " "))


def test_metrics_count(server: Server) -> None:
    names = {
        'influcoder_requests_total{path="/attribute",status="200"}': 2,
        'influcoder_requests_total{path="/attribute",status="422"}': 1,
        'influcoder_requests_total{path="/rows/{id}",status="404"}': 2,
        'influcoder_requests_total{path="other",status="404"}': 1,
        'influcoder_request_seconds_count{path="/attribute"}': 3,
        "influcoder_rows_scanned_total": 3 * ROWS,
        "influcoder_batch_queries_sum": 3,
    }
    before = {name: metric(server, name) for name in names}
    server.ask(QUERY)
    server.ask(QUERY, QUERY)
    server.ask(k=3)
    for path in ("/rows/x", "/rows/y", "/z"):
        server.send("GET", path)
    assert {name: metric(server, name) - before[name] for name in names} == names
    assert metric(server, "process_resident_memory_bytes") > 1e6


def test_openapi_describes_what_is_served(server: Server) -> None:
    found = server.send("GET", "/openapi.json").json
    assert set(found["paths"]) == {"/attribute", "/highlights", "/rows/{row_id}", "/health", "/metrics"}
    answers = found["paths"]["/attribute"]["post"]["responses"]
    assert set(answers) == {"200", "400", "408", "413", "415", "421", "422", "503"}
    assert all(list(answer["content"]) == [PROBLEM] for status, answer in answers.items() if status != "200")
    health = server.send("GET", "/health").json
    assert health["rows"] == ROWS and health["texts"] and not health["token"] and health["max_k"] == 100


def test_a_request_in_progress_is_answered_before_the_server_ends(folder: Path) -> None:
    with served(*base(folder), "--log_requests", "true") as running:
        body = json.dumps({"queries": [QUERY]}).encode()
        head = f"POST /attribute HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        with socket.create_connection((running.host, running.port), timeout=20) as client:
            client.sendall(head.encode() + body[:5])
            time.sleep(0.3)
            running.process.send_signal(signal.SIGTERM)
            time.sleep(0.3)
            client.sendall(body[5:])
            assert client.recv(100).startswith(b"HTTP/1.1 200 ")
        out, err = running.process.communicate(timeout=20)
        assert running.process.returncode == 0 and out == ""
        (line,) = map(json.loads, err.splitlines())
        assert set(line) == {"time", "path", "status", "seconds"} and (line["path"], line["status"]) == ("/attribute", 200)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--host", "0.0.0.0"], "host: 0.0.0.0 can be reached from other machines; expected a token"),
        (["--token_variable", "NOT_SET_HERE"], "token_variable: $NOT_SET_HERE is not set"),
        (["--index", "nowhere"], "nowhere: does not exist; expected an index"),
        (["--rows.paths", "[{folder}/queries.jsonl]"], "expected the pool that was indexed"),
        (["--port", "{taken}"], "cannot listen"),
    ],
)
def test_a_server_that_cannot_start_says_why_in_one_line(
    folder: Path, server: Server, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from influcoder.cli import main

    filled = [argument.format(folder=folder, taken=server.port) for argument in arguments]
    monkeypatch.setattr("sys.argv", ["influcoder", "serve", *base(folder), *filled])
    with pytest.raises(SystemExit) as stop:
        main()
    err = capsys.readouterr().err
    assert stop.value.code == 2 and message in err and err.splitlines()[-1].startswith("error: ")
