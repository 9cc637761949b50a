"""What goes to a hub: the card's figures and code, the files that may go and those that may not, one commit; and nothing in a dry run."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import ModelCard
from sentence_transformers import SentenceTransformer

from influcoder.cli import dispatch
from influcoder.errors import ConfigError, InflucoderError, RunError
from influcoder.model_card import model_card
from influcoder.onnx_encoder import OnnxEncoder
from influcoder.push import PushConfig, push
from tests.influcoder.fake_hub import FakeHub, fake_hub

FACTS: dict[str, Any] = {
    "teacher_method": "logra", "teacher_seed": 3, "decoder_fingerprint": "d" * 16, "rows_fingerprint": "a" * 16, "asks": "rows",
    "shuffle_target": False, "rows_trained": 77, "seed": 1, "objective": "full_block", "base_model": "acme/bert",
}  # fmt: skip
FIGURES = {"per_query_spearman": 0.3141, "residual_spearman": 0.2718, "aggregated_spearman": 0.1618, "top10_overlap": 0.5772}
VALIDATION = {
    "queries": 12, "candidates": 34, "epoch": 1,
    "methods": {"student": FIGURES, "untrained encoder": {name: 0.01 for name in FIGURES}, "teacher, second seed": {name: 0.99 for name in FIGURES}},
}  # fmt: skip


@pytest.fixture
def encoder(exported_folder: Path, tmp_path: Path) -> Path:
    folder = Path(shutil.copytree(exported_folder, tmp_path / "encoder"))
    (folder / "fidelity.json").write_text(json.dumps(FACTS | {"validation": VALIDATION}))
    return folder


@pytest.fixture
def evaluated(tmp_path: Path) -> Path:
    """An eval run of the encoder's teacher: a task, a ceiling, a floor, a gate that failed."""
    folder, target = tmp_path / "eval", {"method": "logra", "seed": 3, "decoder_fingerprint": "d" * 16}
    folder.mkdir()

    def method(role: str, fidelity: float | None, task: float) -> dict[str, Any]:
        figures = {"per_query_spearman": fidelity, "residual_spearman": fidelity, "poison_auprc": task}
        return {
            "role": role,
            "metrics": {
                name: None if each is None else {"mean": each, "low": each - 0.1, "high": each + 0.1} for name, each in figures.items()
            },
        }

    summary = {
        "target": target, "query_set": {"rows": "b" * 16, "fidelity": "c" * 16}, "tasks": {"poison": {"primary": "auprc"}},
        "counts": {"queries": 5, "candidates": 6, "student_seeds": 2, "folds": 1},
        "methods": {
            "teacher": method("teacher", None, 0.9), "second": method("ceiling", 0.8, 0.85), "student": method("student", 0.45, 0.7),
            "bm25": method("floor", -0.001, 0.2), "shuffled": method("control", 0.0, 0.1),
        },
        "gates": {"trained": {"passed": True, "meaning": "fine"}, "cardinality": {"passed": False, "meaning": "all queries get the same rows"}},
    }  # fmt: skip
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "run.json").write_text(json.dumps({"stage": "eval", "schema_version": 1, "target": target}))
    return folder


def config_of(encoder: Path, **settings: Any) -> PushConfig:
    given: dict[str, Any] = {"encoder": str(encoder), "repository": "acme/lamp", "license": "apache-2.0", "dry_run": True} | settings
    return PushConfig(**given)


def read_card(text: str) -> Any:
    return ModelCard(text)  # refuses a front matter that is malformed


def test_a_dry_run_lists_what_would_go_up_and_sends_nothing(
    encoder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("a dry run must not connect")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    dispatch(["push", "--encoder", str(encoder), "--repository", "acme/lamp", "--license", "mit", "--dry_run", "true"])
    *lines, last = capsys.readouterr().out.splitlines()
    listed = {line.split()[2]: (line.split()[0], int(line.split()[1].replace(",", ""))) for line in lines}
    files = {path.relative_to(encoder).as_posix(): path.read_bytes() for path in encoder.rglob("*") if path.is_file()}
    assert listed == {name: (hashlib.sha256(content).hexdigest(), len(content)) for name, content in files.items()}
    assert {"README.md", "onnx/model.onnx", "onnx/parity.json", "text_format.json", "fidelity.json"} <= set(listed)
    assert "nothing was sent" in last and f"{sum(map(len, files.values())):,} bytes" in last
    assert read_card((encoder / "README.md").read_text()).data.license == "mit"


def test_the_card_says_what_the_runs_say(encoder: Path, evaluated: Path) -> None:
    push(config_of(encoder, eval=str(evaluated)))
    card = read_card((encoder / "README.md").read_text())
    data = card.data.to_dict()
    assert (data["license"], data["base_model"], data["library_name"], data["pipeline_tag"]) == (
        "apache-2.0", "acme/bert", "sentence-transformers", "feature-extraction",
    )  # fmt: skip
    assert {result.metric_name: result.metric_value for result in card.data.eval_results or []} == {
        "Spearman with the teacher, per query": 0.45,
        "Spearman with the teacher, residual": 0.45,
    }
    rows = [line for line in card.text.splitlines() if line.startswith("| ")]
    assert rows == [
        "| method | role | per query | residual | poison: auprc |",
        "| --- | --- | --- | --- | --- |",
        "| **student** | student | 0.45 [0.35, 0.55] | 0.45 [0.35, 0.55] | 0.70 [0.60, 0.80] |",
        "| teacher | teacher |  |  | 0.90 [0.80, 1.00] |",
        "| second | ceiling | 0.80 [0.70, 0.90] | 0.80 [0.70, 0.90] | 0.85 [0.75, 0.95] |",
        "| bm25 | floor | 0.00 [-0.10, 0.10] | 0.00 [-0.10, 0.10] | 0.20 [0.10, 0.30] |",
        "| method | per query | residual | aggregated | top 10 overlap |",
        "| --- | --- | --- | --- | --- |",
        "| **student** | 0.31 | 0.27 | 0.16 | 0.58 |",
        "| untrained encoder (floor) | 0.01 | 0.01 | 0.01 | 0.01 |",
        "| teacher, second seed (ceiling) | 0.99 | 0.99 | 0.99 | 0.99 |",
    ]
    for said in ("`logra`, seed 3", "d" * 16, "a" * 16, "77 of it", "b" * 16, "c" * 16, "licence: apache-2.0", "base model: acme/bert"):
        assert said in card.text, said
    assert "**Gate `cardinality` failed**: all queries get the same rows." in card.text and "`trained` failed" not in card.text
    before = (encoder / "README.md").read_bytes()
    push(config_of(encoder, eval=str(evaluated)))
    assert (encoder / "README.md").read_bytes() == before, "the same inputs give the same card"


def test_the_code_of_the_card_runs(encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    push(config_of(encoder))
    with_onnx, with_torch = re.findall(r"```python\n(.*?)```", (encoder / "README.md").read_text(), re.DOTALL)
    rows = [
        {"id": str(place), "prompt": "What is asked?", "response": text} for place, text in enumerate(("What is answered.", "green tea"))
    ]
    for name in ("pool", "queries"):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.snapshot_download", {"acme/lamp": str(encoder)}.__getitem__)
    names: dict[str, Any] = {}
    exec(with_onnx, names)
    vectors = OnnxEncoder(encoder).encode([f"Prompt: What is asked?\nResponse: {row['response']}" for row in rows])
    np.testing.assert_allclose(names["scores"], vectors @ vectors.T, atol=1e-6)
    local: dict[str, Any] = {}
    exec(with_torch.replace('"acme/lamp"', repr(str(encoder))), local)
    assert isinstance(local["encoder"], SentenceTransformer) and local["asked"] == ["Prompt: What is asked?\nResponse: What is answered."]
    own = model_card(encoder)
    assert 'OnnxEncoder("THIS_FOLDER")' in own and "license" not in own.partition("# ")[0]


def test_modules_of_this_package_are_loaded_by_it(encoder: Path) -> None:
    path = encoder / "modules.json"
    path.write_text(
        path.read_text().replace(
            "sentence_transformers.sentence_transformer.modules.pooling.Pooling", "influcoder.error_pooling.ErrorPooling"
        )
    )
    card = read_card(model_card(encoder))
    assert card.data.library_name == "influcoder" and "load_sentence_encoder(Path(" in card.text


def test_a_control_is_marked(encoder: Path) -> None:
    (encoder / "fidelity.json").write_text(json.dumps(FACTS | {"validation": VALIDATION, "shuffle_target": True}))
    assert "Not for use" in model_card(encoder)


def shuffle(folder: Path) -> None:
    (folder / "fidelity.json").write_text(json.dumps(FACTS | {"validation": VALIDATION, "shuffle_target": True}))


def unaccept(folder: Path) -> None:
    (folder / "onnx" / "parity.json").write_text('{"accepted": false}')


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: shutil.rmtree(folder / "onnx"), "no onnx/encoder.json; expected an exported encoder"),
        (lambda folder: shutil.rmtree(folder), "no such folder"),
        (lambda folder: (folder / "modules.json").unlink(), "no modules.json"),
        (lambda folder: (folder / "text_format.json").unlink(), "text_format.json"),
        (lambda folder: (folder / "fidelity.json").unlink(), "fidelity.json: not readable"),
        (lambda folder: (folder / "onnx" / "parity.json").unlink(), "parity.json: not readable"),
        (unaccept, "the graph was not accepted"),
        (lambda folder: (folder / "onnx" / "model.onnx").write_bytes(b"other"), "not the graph that was exported"),
        (shuffle, "a control, distilled from shuffled targets"),
        (lambda folder: (folder / "modeling.py").write_text(""), "modeling.py: expected only"),
        (lambda folder: (folder / "1_Pooling" / "weights.pkl").write_bytes(b""), "1_Pooling/weights.pkl: expected only"),
        (lambda folder: (folder / "pytorch_model.bin").write_bytes(b""), "pytorch_model.bin: expected only"),
        (lambda folder: (folder / ".env").write_text("SECRET=1"), ".env: expected only"),
        (lambda folder: (folder / "more.json").symlink_to("/etc/hostname"), "more.json: a link"),
        (lambda folder: (folder / "more").symlink_to("/etc"), "more: a link"),
    ],
)  # fmt: skip
def test_what_may_not_be_shown_is_refused(encoder: Path, spoil: Callable[[Path], object], message: str) -> None:
    spoil(encoder)
    before = (encoder / "README.md").exists()
    with pytest.raises(RunError, match=re.escape(message)):
        push(config_of(encoder))
    assert (encoder / "README.md").exists() == before, "a refusal writes no card"


def test_an_eval_of_another_teacher_is_refused(encoder: Path, evaluated: Path) -> None:
    record = json.loads((evaluated / "run.json").read_text())
    (evaluated / "run.json").write_text(json.dumps(record | {"target": record["target"] | {"seed": 9}}))
    with pytest.raises(RunError, match="of seed 9, the encoder of 3; expected an eval of this student"):
        push(config_of(encoder, eval=str(evaluated)))
    with pytest.raises(InflucoderError, match="does not exist; expected a eval run"):
        push(config_of(encoder, eval=str(evaluated / "nowhere")))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"repository": "lamp"}, "repository: 'lamp'"),
        ({"repository": "acme/../lamp"}, "repository"),
        ({"repository": 'acme/l"amp'}, "repository"),
        ({"license": "Apache 2.0"}, "license: 'Apache 2.0'"),
        ({"license": "other"}, "`other` needs license_name and license_link"),
        ({"license": "other", "license_name": "mine"}, "needs license_name and license_link"),
        ({"license_name": "mine"}, "needs license_name and license_link"),
    ],
)
def test_settings_that_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        config_of(Path("e"), **settings)
    assert replace(config_of(Path("e")), license="other", license_name="mine", license_link="https://e.example").license == "other"


def push_to(hub: FakeHub, encoder: Path, *more: str) -> subprocess.CompletedProcess[str]:
    """Run the command with the hub's real client, which reads its address when it is imported."""
    environment = os.environ | {
        "HF_ENDPOINT": hub.address,
        "HF_HUB_OFFLINE": "0",
        "HF_TOKEN": "hf_secret",
        "HF_HOME": str(encoder.parent / "home"),
    }
    command = [
        sys.executable,
        "-m",
        "influcoder",
        "push",
        "--encoder",
        str(encoder),
        "--repository",
        "acme/lamp",
        "--license",
        "mit",
        *more,
    ]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=False)


def test_one_commit_holds_what_was_listed(encoder: Path) -> None:
    (encoder / "odd[1].json").write_text("{}")
    with fake_hub() as hub:
        done = push_to(hub, encoder, "--private", "true")
    assert done.returncode == 0, done.stderr
    (commit,) = hub.commits
    assert commit["files"] == {path.relative_to(encoder).as_posix(): path.read_bytes() for path in encoder.rglob("*") if path.is_file()}
    assert commit["keys"] == {"header", "file"} and OnnxEncoder(encoder).fingerprint[:12] in commit["header"]["summary"]
    assert hub.tokens == {"Bearer hf_secret"} | ({None} & hub.tokens)
    assert (
        hub.made[0]["name"] == "lamp"
        and hub.made[0]["organization"] == "acme"
        and "private" in (hub.made[0].get("visibility"), *(["private"] if hub.made[0].get("private") else []))
    )
    assert hub.calls[0] == "POST /api/validate-yaml", "the card is judged before anything is made"
    assert "uploaded in one commit" in done.stdout and "hf_secret" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("refusal", "private", "message"), [("bad licence", True, "bad licence"), (None, False, "is public, and was to be private")]
)
def test_a_refusal_leaves_nothing_on_the_hub(encoder: Path, refusal: str | None, private: bool, message: str) -> None:
    with fake_hub() as hub:
        hub.refusal, hub.private = refusal, private
        done = push_to(hub, encoder, "--private", "true")
    assert done.returncode == 2 and message in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr
    assert hub.commits == [] and (refusal is None or hub.made == [])
