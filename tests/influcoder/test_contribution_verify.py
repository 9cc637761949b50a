"""Verification: an untouched report passes, and whatever is changed, by whomever, is named."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

pytest.importorskip("cryptography")

from numpy.typing import NDArray
from tokenizers import Encoding

from influcoder.attribution import AttributionConfig, attribute
from influcoder.contributions.canonical_json import canonical_bytes
from influcoder.contributions.config import ContributionsConfig, VerifyConfig
from influcoder.contributions.inputs import embed
from influcoder.contributions.job import contributions
from influcoder.contributions.manifest import file_hashes
from influcoder.contributions.signing import load_private_key, make_key, public_hex, sign
from influcoder.contributions.verify import verify
from influcoder.errors import ConfigError, GateError, RunError
from influcoder.onnx_encoder import OnnxEncoder
from tests.influcoder.contribution_reports import copied, make_report_folder, pool_rows, query_rows, write_jsonl

Spoil = Callable[[ContributionsConfig], object]


@pytest.fixture(scope="module")
def made(exported_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> ContributionsConfig:
    return make_report_folder(tmp_path_factory.mktemp("contributions"), exported_folder)


@pytest.fixture
def copy(made: ContributionsConfig, tmp_path: Path) -> tuple[ContributionsConfig, VerifyConfig]:
    return copied(made, tmp_path / "copy")


def refusal(config: VerifyConfig) -> str:
    with pytest.raises(GateError) as caught:
        verify(config)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def report_file(config: ContributionsConfig, name: str) -> Path:
    return Path(config.output) / name


def change_table(path: Path, column: str, row: int, value: Any) -> None:
    table = pq.read_table(path)
    values = table[column].to_pylist()
    assert values[row] != value
    values[row] = value
    place = table.schema.get_field_index(column)
    pq.write_table(table.set_column(place, table.schema.field(column), pa.array(values, table.schema.field(column).type)), path)


def change_manifest(config: ContributionsConfig, change: Callable[[dict[str, Any]], Any]) -> None:
    path = report_file(config, "contributions.json")
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_bytes(canonical_bytes(manifest))


def sign_again(config: ContributionsConfig, key: Path) -> None:
    """What a forger does who has a key: hashes and signature fit again."""
    private = load_private_key(key)

    def forge(manifest: dict[str, Any]) -> None:
        manifest["files"] = file_hashes(Path(config.output), list(manifest["files"]))
        manifest["signer"] = public_hex(private)

    change_manifest(config, forge)
    path = report_file(config, "contributions.json")
    report_file(config, "signature.json").write_text(json.dumps(sign(path.read_bytes(), private)))


def flip_byte(path: Path, place: int = -20) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(bytes(content))


def change_score(config: ContributionsConfig) -> None:
    path = report_file(config, "query_scores.npy")
    scores = np.load(path)
    scores[0, 17] += 0.5
    np.save(path, scores)


def change_rows(config: ContributionsConfig, rows: list[dict[str, Any]]) -> None:
    write_jsonl(Path(config.pool.paths[0]), rows)


def change_queries(config: ContributionsConfig, rows: list[dict[str, Any]]) -> None:
    write_jsonl(Path(config.queries.paths[0]), rows)


def test_an_untouched_report_is_verified(copy: tuple[ContributionsConfig, VerifyConfig]) -> None:
    config, checked = copy
    found = verify(checked)
    assert (found["rows"], found["audited"], found["pinned"]) == (136, 30, False) and found["found_share"] == pytest.approx(0.095, abs=1e-3)
    pinned = verify(replace(checked, public_key=str(Path(config.key).with_name("key.public.pem")), audit_rows=1000, audit_seed=None))
    assert pinned["pinned"] and pinned["audited"] == 136 and pinned["found_share"] == 0


ROWS, QUERIES = pool_rows(), query_rows()
SINGLE_CHANGES: dict[str, tuple[Spoil, tuple[str, ...]]] = {
    "a query's score": (change_score, ("files.query_scores.npy", "'r17': score", "row 'r17' and query 'q0'")),
    "a row's score": (
        lambda config: change_table(report_file(config, "rows.parquet"), "score", 5, Decimal("0.5")),
        ("files.rows.parquet", "'r5': score 0.5"),
    ),
    "a row's value": (
        lambda config: change_table(report_file(config, "rows.parquet"), "value", 6, Decimal("0.5")),
        ("files.rows.parquet", "'r6': value 0.5"),
    ),
    "a row's cluster": (
        lambda config: change_table(report_file(config, "rows.parquet"), "cluster", 120, "copy0"),
        ("files.rows.parquet", "row 'copy0' is a copy of 'r0'"),
    ),
    "a cluster of strangers": (
        lambda config: change_table(report_file(config, "rows.parquet"), "cluster", 2, "r1"),
        ("files.rows.parquet", "row 'r2' stands in the cluster of 'r1' and is no copy of it"),
    ),
    "whose a row is, in the report": (
        lambda config: change_table(report_file(config, "rows.parquet"), "contributor", 3, "0xeve"),
        ("files.rows.parquet", "'r3': contributor 0xeve"),
    ),
    "a reward in the table": (
        lambda config: change_table(report_file(config, "contributions.parquet"), "reward", 1, Decimal(9_999_999)),
        ("files.contributions.parquet", "'0xbo': reward 9999999, recomputed"),
    ),
    "a reward in the manifest": (
        lambda config: change_manifest(config, lambda manifest: manifest["contributors"][1].update(reward="9999999")),
        ("signature.json: not a signature", "contributors.0xbo.reward: 9999999, recomputed"),
    ),
    "a row's text": (
        lambda config: change_rows(config, [*ROWS[:7], ROWS[7] | {"prompt": "tea"}, *ROWS[8:]]),
        ("row 'r7': its content is not the one that was signed", "data.merkle_root"),
    ),
    "a row's contributor": (
        lambda config: change_rows(config, [*ROWS[:7], ROWS[7] | {"who": "0xeve"}, *ROWS[8:]]),
        ("row 'r7': its content is not", "data.merkle_root"),
    ),
    "a row left out": (
        lambda config: change_rows(config, [*ROWS[:7], *ROWS[8:]]),
        ("row 8: 'r8', signed was 'r7' (135 here, 136 signed)", "data.rows"),
    ),
    "a row more": (
        lambda config: change_rows(config, [*ROWS, ROWS[0] | {"id": "new"}]),
        ("row 137: 'new', signed was nothing", "data.rows: 136, recomputed 137"),
    ),
    "two rows in another order": (lambda config: change_rows(config, [ROWS[1], ROWS[0], *ROWS[2:]]), ("row 1: 'r1', signed was 'r0'",)),
    "a query's text": (
        lambda config: change_queries(config, [*QUERIES[:2], QUERIES[2] | {"response": "green tea"}, *QUERIES[3:]]),
        ("query 'q2': its content is not the one that was signed", "queries.merkle_root"),
    ),
    "a query's weight": (
        lambda config: change_queries(config, [*QUERIES[:2], QUERIES[2] | {"w": 2}, *QUERIES[3:]]),
        ("query 'q2': its content is not", "queries.merkle_root"),
    ),
    "a query left out": (lambda config: change_queries(config, QUERIES[:-1]), ("query 8: nothing, signed was 'q7'", "queries.queries")),
    "a byte of the model": (lambda config: flip_byte(Path(config.encoder) / "onnx" / "model.onnx"), ("model.onnx/model.onnx",)),
    "a byte of the tokenizer": (
        lambda config: (
            (Path(config.encoder) / "tokenizer.json").write_text((Path(config.encoder) / "tokenizer.json").read_text() + " ") and None
        ),
        ("model.tokenizer.json",),
    ),
    "the text format": (
        lambda config: (
            (Path(config.encoder) / "text_format.json").write_text(
                (Path(config.encoder) / "text_format.json").read_text().replace("Prompt: ", "prompt: ")
            )
            and None
        ),
        ("model.text_format.json",),
    ),
    "a digit of the signature": (
        lambda config: (
            report_file(config, "signature.json").write_text(
                json.dumps(
                    {
                        **(record := json.loads(report_file(config, "signature.json").read_text())),
                        "signature": "00" + record["signature"][2:],
                    }
                )
            )
            and None
        ),
        ("signature.json: not a signature",),
    ),
    "the secret": (lambda config: report_file(config, "secret.hex").write_text("00" * 32), ("row 'r0': its content is not",)),
    "the page": (lambda config: flip_byte(report_file(config, "contributions.html")), ("files.contributions.html",)),
    "the proofs": (lambda config: flip_byte(report_file(config, "vana.json")), ("files.vana.json",)),
    "the kinds": (lambda config: report_file(config, "kinds.json").unlink(), ("files.kinds.json", "recomputed missing")),
    "a table beyond reading": (
        lambda config: flip_byte(report_file(config, "rows.parquet"), -1),
        ("files.rows.parquet", "it cannot be read on"),
    ),
    "a float in the manifest": (
        lambda config: (
            report_file(config, "contributions.json").write_text(
                report_file(config, "contributions.json").read_text().replace('"schema_version":1', '"schema_version":1.0')
            )
            and None
        ),
        ("signature.json: not a signature", "not canonical JSON"),
    ),
}


@pytest.mark.parametrize("name", SINGLE_CHANGES)
def test_a_single_change_is_named(name: str, copy: tuple[ContributionsConfig, VerifyConfig]) -> None:
    config, checked = copy
    spoil, expected = SINGLE_CHANGES[name]
    spoil(config)
    message = refusal(replace(checked, audit_rows=136))
    assert all(words in message for words in expected), message


def leaves(content: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if isinstance(content, (dict, list)):
        for key, value in content.items() if isinstance(content, dict) else enumerate(content):
            yield from leaves(value, (*path, key))
    else:
        yield path


def changed(value: Any) -> Any:
    if isinstance(value, str):
        if value.replace(".", "").replace("-", "").isdigit():
            return value[:-1] + ("1" if value[-1] != "1" else "2")
        return value[:-1] + ("a" if value[-1] != "a" else "b")
    return 1 if value is None else value + 1


def test_every_field_of_the_manifest_is_under_the_signature_and_recomputed_where_it_can_be(
    made: ContributionsConfig, copy: tuple[ContributionsConfig, VerifyConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    config, checked = copy
    path = report_file(config, "contributions.json")
    whole = path.read_bytes()
    fields = list(leaves(json.loads(whole)))
    assert len(fields) > 60
    monkeypatch.setattr("influcoder.contributions.verify._audit", lambda *_: [])  # the encoder's part is not what is asked here
    monkeypatch.setattr("influcoder.contributions.verify._check_clusters", lambda *_: [])
    recomputed = {"data", "queries", "model", "files", "contributors", "status", "paid", "cap", "signer"}
    for field in fields:
        manifest = json.loads(whole)
        inner = manifest
        for key in field[:-1]:
            inner = inner[key]
        inner[field[-1]] = changed(inner[field[-1]])
        path.write_bytes(canonical_bytes(manifest))
        message = refusal(checked)
        assert "signature.json: not a signature" in message or "not a manifest of schema" in message, field
        if field[0] in recomputed:
            assert str(field[-1]) in message or field[0] in message, (field, message)
    path.write_bytes(whole)
    verify(checked)


# forgers with a key


def test_a_forger_is_known_by_the_key(copy: tuple[ContributionsConfig, VerifyConfig], tmp_path: Path) -> None:
    config, checked = copy
    public = str(Path(config.key).with_name("key.public.pem"))
    make_key(tmp_path / "forger.pem")
    sign_again(config, tmp_path / "forger.pem")
    assert not verify(checked)["pinned"], "the report is right: only who signed it is another"
    assert "signature.json: signed by" in refusal(replace(checked, public_key=public))
    with pytest.raises(ConfigError, match="not a public key"):
        verify(replace(checked, public_key=config.key))


def test_the_signer_cannot_pay_other_rewards_than_the_scores_give(copy: tuple[ContributionsConfig, VerifyConfig]) -> None:
    config, checked = copy

    def pay(manifest: dict[str, Any]) -> None:
        first, second = manifest["contributors"][:2]
        first["reward"], second["reward"] = str(int(first["reward"]) + 1), str(int(second["reward"]) - 1)

    change_manifest(config, pay)
    sign_again(config, Path(config.key))
    message = refusal(checked)
    assert "signature.json" not in message and "contributors.0xada.reward" in message and "contributors.0xbo.reward" in message


def corrupt(monkeypatch: pytest.MonkeyPatch, spoil: Callable[[NDArray[np.float32]], None]) -> pytest.MonkeyPatch:
    whole = OnnxEncoder.embed

    def spoilt(encoder: OnnxEncoder, encodings: Sequence[Encoding]) -> NDArray[np.float32]:
        vectors = whole(encoder, encodings)
        spoil(vectors)
        unit: NDArray[np.float32] = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        return unit

    monkeypatch.setattr(OnnxEncoder, "embed", spoilt)
    return monkeypatch


def add_noise(vectors: NDArray[np.float32]) -> None:
    vectors += 0.05 * np.random.default_rng(len(vectors)).normal(size=vectors.shape).astype(np.float32)


def report_again(config: ContributionsConfig) -> ContributionsConfig:
    folder = Path(config.output).parent
    attribution = str(folder / "spoilt_attribution")
    attribute(AttributionConfig(encoder=config.encoder, pool=config.pool, queries=config.queries, output=attribution, top=3))
    spoilt = replace(config, attribution=attribution, output=str(folder / "spoilt"))
    contributions(spoilt)
    return spoilt


def test_a_corrupted_student_is_caught_by_the_audit(
    copy: tuple[ContributionsConfig, VerifyConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Attribution and report both ran with an encoder that is not the one whose hashes were signed."""
    config, checked = copy
    with monkeypatch.context() as patch:
        corrupt(patch, add_noise)
        spoilt = report_again(config)
    message = refusal(replace(checked, report=spoilt.output))
    assert "query_scores.npy: row" in message and "the encoder gives" in message and "30 audited rows" not in message
    assert "signature.json" not in message and "contributors." not in message, "all else fits together"


def test_one_row_raised_to_the_top_is_caught_whichever_rows_are_drawn(
    copy: tuple[ContributionsConfig, VerifyConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    config, checked = copy

    def embed_favourably(encoder: OnnxEncoder, examples: Sequence[Any], what: str) -> NDArray[np.float32]:
        vectors = embed(encoder, examples, what)
        if what == "rows":
            vectors[100] = OnnxEncoder(config.encoder).encode(["Prompt: river\nResponse: tea"])[0]
            vectors[100] = embed(encoder, queries, "queries")[:6].mean(axis=0)
            vectors[100] /= np.linalg.norm(vectors[100])
        return vectors

    from influcoder.readers import read_examples

    queries = read_examples(config.queries)
    with monkeypatch.context() as patch:
        patch.setattr("influcoder.contributions.report.embed", embed_favourably)
        patch.setattr("influcoder.contributions.report.check_same_scores", lambda *_: None)
        spoilt = replace(config, output=f"{config.output}-spoilt")
        contributions(spoilt)
    for seed in range(5):
        assert "row 'r100'" in refusal(replace(checked, report=spoilt.output, audit_rows=8, audit_seed=seed))


def test_what_is_no_report_is_refused(copy: tuple[ContributionsConfig, VerifyConfig], tmp_path: Path) -> None:
    config, checked = copy
    with pytest.raises(RunError, match="stage 'attribution', schema 1; expected stage 'contributions'"):
        verify(replace(checked, report=config.attribution))
    with pytest.raises(RunError, match="no such folder"):
        verify(replace(checked, encoder=str(tmp_path / "nowhere")))
    for name in ("contributions.json", "signature.json"):
        report_file(config, name).write_text("{")
        assert "cannot be read" in refusal(checked)
    with pytest.raises(ConfigError, match="audit_rows: 0"):
        replace(checked, audit_rows=0)
    with pytest.raises(ConfigError, match="tolerance: 1"):
        replace(checked, tolerance=1.0)
