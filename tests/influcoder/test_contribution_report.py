"""A report end to end: what is in it, and that what it is made of must fit together."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

pytest.importorskip("cryptography")

from influcoder import cli
from influcoder.aggregation import aggregate
from influcoder.contributions.config import ContributionsConfig, VerifyConfig
from influcoder.contributions.job import contributions
from influcoder.contributions.kinds import find_kinds
from influcoder.contributions.vana import WEI
from influcoder.contributions.verify import verify
from influcoder.errors import ConfigError, DataError, RunError
from influcoder.onnx_encoder import OnnxEncoder
from influcoder.readers import Columns, read_examples
from influcoder.runs import open_run
from influcoder.text_format import render
from tests.influcoder.contribution_reports import CONTRIBUTORS, copied, make_report_folder, pool_rows, write_jsonl


@pytest.fixture(scope="module")
def made(exported_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> ContributionsConfig:
    return make_report_folder(tmp_path_factory.mktemp("contributions"), exported_folder)


@pytest.fixture
def copy(made: ContributionsConfig, tmp_path: Path) -> tuple[ContributionsConfig, VerifyConfig]:
    return copied(made, tmp_path / "copy")


def manifest_of(config: ContributionsConfig) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((Path(config.output) / "contributions.json").read_text())
    return found


def test_the_files_of_a_report(made: ContributionsConfig) -> None:
    folder = Path(made.output)
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        "config.yaml contributions.html contributions.json contributions.parquet kinds.json queries.parquet query_scores.npy rows.parquet "
        "run.json secret.hex signature.json vana.json".split()
    )
    assert (folder / "secret.hex").stat().st_mode & 0o777 == 0o600
    facts = open_run(folder, "contributions")
    assert facts["counts"] == {"rows": 136, "unique_rows": 120, "contributors": 4} and -1 <= facts["rank_stability"] <= 1


def test_scores_are_those_of_the_encoder_and_values_add_up(made: ContributionsConfig) -> None:
    encoder, folder = OnnxEncoder(made.encoder), Path(made.output)
    rows, queries = read_examples(made.pool), read_examples(made.queries)
    vectors = [encoder.encode([render(example, encoder.text_format) for example in found]) for found in (queries, rows)]
    scores = vectors[0] @ vectors[1].T
    table, ledger = pq.read_table(folder / "rows.parquet").to_pydict(), pq.read_table(folder / "contributions.parquet").to_pydict()
    np.testing.assert_allclose(np.load(folder / "query_scores.npy"), scores, atol=1e-6)
    expected = aggregate(scores, np.array([query.weight for query in queries]), 3)
    np.testing.assert_allclose(np.array(table["score"], float), expected, atol=1e-6)
    assert table["id"] == [row.id for row in rows] and table["contributor"] == [row.contributor for row in rows]
    for row in range(0, 120, 10):
        copy = table["id"].index(f"copy{row}")
        assert table["cluster"][copy] == f"r{row}" and table["cluster_rows"][copy] == table["cluster_rows"][row] == 2
        assert abs(table["value"][copy] - table["value"][row]) <= Decimal("1E-9"), "the same but for the last digit"
    assert ledger["contributor"] == sorted(CONTRIBUTORS)
    for place, name in enumerate(ledger["contributor"]):
        assert ledger["total"][place] == sum(value for value, who in zip(table["value"], table["contributor"], strict=True) if who == name)
    assert ledger["rows"] == [40, 40, 40, 16] and ledger["unique_rows"] == [40, 40, 40, 16]
    assert sum(ledger["reward"]) == (10_000 if any(low > 0 for low in ledger["low"]) else 0)


def test_the_manifest_holds_no_row_and_no_float(made: ContributionsConfig) -> None:
    text = (Path(made.output) / "contributions.json").read_text()
    assert not any(row["response"] in text or row["id"] in text for row in pool_rows() if len(row["id"]) > 3)
    json.loads(text, parse_float=lambda number: pytest.fail(f"a float: {number}"))
    manifest = manifest_of(made)
    ledger = pq.read_table(Path(made.output) / "contributions.parquet").to_pylist()
    for claimed, line in zip(manifest["contributors"], ledger, strict=True):
        assert claimed == {name: value if isinstance(value, (int, str)) else f"{value:f}" for name, value in line.items()}
    assert manifest["settings"]["top"] == 3 and manifest["settings"]["cap_quantile"] == "0.99" and manifest["budget"] == "10000"
    assert set(manifest["model"]) >= {"onnx/model.onnx", "onnx/encoder.json", "tokenizer.json", "text_format.json"}


def test_leaves_do_not_give_rows_away_and_change_with_the_secret(made: ContributionsConfig, tmp_path: Path) -> None:
    again = replace(made, output=str(tmp_path / "again"))
    contributions(again)
    first, second = (pq.read_table(Path(config.output) / "rows.parquet") for config in (made, again))
    assert not set(first["leaf"].to_pylist()) & set(second["leaf"].to_pylist())
    assert first.drop_columns("leaf").equals(second.drop_columns("leaf")), "all else is the same"
    assert manifest_of(made)["data"]["merkle_root"] != manifest_of(again)["data"]["merkle_root"]


def test_first_commits_take_their_clusters(copy: tuple[ContributionsConfig, VerifyConfig]) -> None:
    config, checked = copy
    config = replace(config, output=f"{config.output}-first", valuation=replace(config.valuation, copies="first", commit_column="when"))
    contributions(config)
    table = pq.read_table(Path(config.output) / "rows.parquet").to_pydict()
    value = dict(zip(table["id"], table["value"], strict=True))
    assert value["r0"] == value["r10"] == 0 and value["copy0"] != 0, "the capitals were committed a month earlier"
    assert value["near5"] == 0 and value["r5"] != 0, "the same day: the order of the rows decides"
    verify(replace(checked, report=config.output))


def test_vana_results(made: ContributionsConfig) -> None:
    proofs = json.loads((Path(made.output) / "vana.json").read_text())
    ledger = pq.read_table(Path(made.output) / "contributions.parquet").to_pylist()
    for proof, line in zip(proofs, ledger, strict=True):
        assert set(proof) == set("dlp_id valid score score_integer authenticity ownership quality uniqueness attributes metadata".split())
        assert proof["dlp_id"] == 7 and proof["valid"] == (line["low"] > 0) == (proof["score"] > 0)
        assert 0 <= proof["score"] <= 1 and proof["quality"] == proof["score"] and proof["authenticity"] == proof["ownership"] == 0
        assert int(proof["score_integer"]) <= WEI and int(proof["score_integer"]) / WEI == pytest.approx(proof["score"])
        assert proof["metadata"]["contributor"] == line["contributor"]
    assert proofs[3]["uniqueness"] == 0.5 and proofs[0]["uniqueness"] > 0.9, "who only copies has half of every row"


def test_kinds_are_told_apart_by_words_and_ordered_by_value() -> None:
    random = np.random.default_rng(0)
    centres = np.eye(3, 8)
    vectors = np.repeat(centres, 20, axis=0) + 0.05 * random.normal(size=(60, 8))
    words = ["tea garden", "code prints", "river seven"]
    texts = [f"the common {words[row // 20]} and{chr(97 + row % 20)}{chr(97 + row % 20)}" for row in range(60)]
    values = np.repeat(np.array([3, -5, 8]) * 10**8, 20)
    kinds = find_kinds(vectors.astype(np.float32), texts, values, 3)
    assert [(kind.rows, kind.mean, kind.positive_share) for kind in kinds] == [(20, 8 * 10**8, 1), (20, 3 * 10**8, 1), (20, -5 * 10**8, 0)]
    assert [set(kind.words) for kind in kinds] == [{"river", "seven"}, {"tea", "garden"}, {"code", "prints"}]


# what does not fit together


def test_another_pool_queries_or_encoder_than_attributed_is_refused(copy: tuple[ContributionsConfig, VerifyConfig], tmp_path: Path) -> None:
    config, _ = copy
    config = replace(config, output=str(tmp_path / "new"))
    rows = pool_rows()
    for changed, message in (
        (rows[:-1], "136 rows, the pool has 135; row 136 is another"),
        ([rows[1], rows[0], *rows[2:]], "row 1 is another"),
        ([rows[0] | {"who": "0xeve"}, *rows[1:]], "row 1 is another"),
        ([rows[0] | {"response": "tea " * 20}, *rows[1:]], r"row 'r0' has score .*, here"),
    ):
        write_jsonl(Path(config.pool.paths[0]), changed)
        with pytest.raises(RunError, match=message):
            contributions(config)
    with pytest.raises(RunError, match="made with other queries"):
        contributions(replace(config, queries=replace(config.queries, limit=7)))
    with pytest.raises(RunError, match="nowhere: does not exist"):
        contributions(replace(config, attribution=str(tmp_path / "nowhere")))
    assert not Path(config.output).exists() and not list(tmp_path.glob(".new*"))


def test_rows_without_a_contributor_and_too_few_queries_are_refused(copy: tuple[ContributionsConfig, VerifyConfig], tmp_path: Path) -> None:
    config, _ = copy
    config = replace(config, output=str(tmp_path / "new"))
    with pytest.raises(DataError, match=r"row 'r0' has no contributor; .*pool\.columns\.contributor"):
        contributions(replace(config, pool=replace(config.pool, columns=Columns())))
    with pytest.raises(DataError, match="1 of positive weight; expected at least 2"):
        contributions(replace(config, queries=replace(config.queries, limit=1)))
    with pytest.raises(DataError, match="no column 'since'"):
        contributions(replace(config, valuation=replace(config.valuation, copies="first", commit_column="since")))
    rows = pool_rows()
    write_jsonl(Path(config.pool.paths[0]), [rows[0] | {"when": 3}, *rows[1:]])
    with pytest.raises(DataError, match=r"column 'when': .*expected numbers, or times"):
        contributions(replace(config, valuation=replace(config.valuation, copies="first", commit_column="when")))


@pytest.mark.parametrize(("wrong", "message"), [({"budget": 0}, "budget: 0"), ({"kinds": -1}, "kinds: -1")])
def test_settings_out_of_range_are_refused(made: ContributionsConfig, wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(made, **wrong)


def test_the_commands(
    copy: tuple[ContributionsConfig, VerifyConfig], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config, _ = copy
    folder = Path(config.output).parent

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["influcoder", *arguments])
        try:
            cli.main()
        except SystemExit as stop:
            return int(stop.code or 0), *capsys.readouterr()
        return 0, *capsys.readouterr()

    data = ["--encoder", config.encoder, "--pool.paths", f"[{config.pool.paths[0]}]", "--pool.columns.contributor", "who"]
    data += ["--queries.paths", f"[{config.queries.paths[0]}]", "--queries.columns.weight", "w"]
    assert run("contributions", "--make-key", str(folder / "new.pem"))[0] == 0
    code, _, error = run("contributions", "--make-key", str(folder / "new.pem"))
    assert code == 2 and "exists already" in error
    new = ["--attribution", config.attribution, "--key", str(folder / "new.pem"), "--output", str(folder / "second")]
    code, out, error = run("contributions", *data, *new, "--valuation.draws", "30", "--kinds", "0")
    assert code == 0 and "4 contributors, 136 rows (120 different)" in out, error
    code, out, _ = run("verify", str(folder / "second"), *data, "--public_key", str(folder / "new.public.pem"), "--audit_rows", "20")
    assert code == 0 and "verified" in out and "20 random rows scored again, which finds 13.9% of falsified rows" in out
    code, out, error = run("verify", str(folder / "second"), *data, "--public_key", str(folder / "key.public.pem"))
    assert (code, out, error.count("\n")) == (2, "", 1) and "signature.json: signed by" in error
