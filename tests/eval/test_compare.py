from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from eval.bootstrap import Estimate, Resampler, difference
from eval.compare import CompareConfig, compare, main
from eval.parquet_tables import SCHEMAS
from influcoder.errors import ConfigError, RunError
from influcoder.runs import create_run

Figures = dict[str, dict[str, Estimate]]
QUERY_SET = {"fidelity": "f" * 16, "task": None, "rows": "a" * 16}


def figures(seed: int, lead: float, draws: int = 200) -> Figures:
    """Return two methods' figures over 30 queries; the student leads by `lead`."""
    random, resampler = np.random.default_rng(seed), Resampler(draws, 0)
    found: Figures = {}
    for name, level in (("student", 0.5 + lead), ("bm25", 0.5)):
        values = {metric: [level + 0.1 * random.normal(size=(2, 30))] for metric in ("per_query_spearman", "poison_auprc")}
        estimates = {metric: resampler.mean("queries", value) for metric, value in values.items()}
        found[name] = {metric: value for metric, value in estimates.items() if value is not None}
    return found


def write_run(folder: Path, found: Figures, seed: int = 0, query_set: dict[str, str | None] = QUERY_SET) -> str:
    """Write of an eval run what is compared."""
    rows = [
        {"method": method, "metric": metric, "value": value.value, "n": value.n, "seeds": value.seeds, "draws": value.draws}
        for method, metrics in found.items()
        for metric, value in metrics.items()
    ]
    with create_run(folder, "eval", "") as run:
        pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMAS["estimates"]), run.folder / "estimates.parquet")
        run.facts = {"seed": seed, "query_set": query_set}
    return str(folder)


def shown(text: str) -> list[float]:
    return [float(number) for number in re.findall(r"-?\d*\.\d+", text)]


def test_differences_of_two_runs_are_those_of_their_figures_paired(tmp_path: Path) -> None:
    old, new = figures(0, lead=0.1), figures(1, lead=0.3)
    section = compare(CompareConfig(first=write_run(tmp_path / "new", new), second=write_run(tmp_path / "old", old)))
    assert section.header == ("metric", f"{tmp_path}/new: student", f"{tmp_path}/old: student", "first - second", "p")
    assert section.title == "student and student, paired over 200 resamples"
    assert [line[0] for line in section.lines] == ["per_query_spearman", "poison_auprc"]
    for metric, first, second, gap, p in section.lines:
        mine, theirs = new["student"][metric], old["student"][metric]
        expected = difference(mine, theirs)
        assert shown(first) == pytest.approx([mine.value, *mine.interval], abs=0.005)
        assert shown(second) == pytest.approx([theirs.value, *theirs.interval], abs=0.005)
        assert shown(gap) == pytest.approx([mine.value - theirs.value, expected.low, expected.high], abs=0.005)
        assert float(p) == pytest.approx(expected.p, abs=0.0005) and expected.p < 0.05


def test_a_run_does_not_differ_from_itself(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", figures(0, lead=0.1))
    for _, first, second, gap, p in compare(CompareConfig(first=folder, second=folder)).lines:
        assert first == second and gap == ".00 [.00, .00]" and p == "1.000"


def test_two_methods_of_one_run_are_compared(tmp_path: Path) -> None:
    found = figures(0, lead=0.1)
    folder = write_run(tmp_path / "run", found)
    there = compare(CompareConfig(first=folder, second=folder, second_method="bm25"))
    back = compare(CompareConfig(first=folder, second=folder, method="bm25", second_method="student"))
    assert there.title.startswith("student and bm25") and back.title.startswith("bm25 and student")
    for forth, reverse in zip(there.lines, back.lines, strict=True):
        metric = forth[0]
        assert shown(forth[3])[0] == pytest.approx(found["student"][metric].value - found["bm25"][metric].value, abs=0.005)
        assert shown(reverse[3])[0] == -shown(forth[3])[0] and forth[4] == reverse[4]


def test_a_figure_that_one_run_lacks_is_left_out(tmp_path: Path) -> None:
    whole, part = figures(0, lead=0.1), figures(0, lead=0.1)
    del part["student"]["poison_auprc"]
    names = write_run(tmp_path / "whole", whole), write_run(tmp_path / "part", part)
    for first, second in (names, names[::-1]):
        assert [line[0] for line in compare(CompareConfig(first=first, second=second)).lines] == ["per_query_spearman"]


@pytest.mark.parametrize(
    ("seed", "query_set", "message"),
    [
        (1, QUERY_SET, r"other: seed 1, but .*run has 0; expected runs that judged the same rows and queries"),
        (0, QUERY_SET | {"rows": "b" * 16}, r"other: query_set \{.*'b{16}'\}, but .*run has \{.*'a{16}'\}; expected"),
    ],
)
def test_runs_that_judged_something_else_are_refused_naming_both(
    tmp_path: Path, seed: int, query_set: dict[str, str | None], message: str
) -> None:
    found = figures(0, lead=0.1)
    config = CompareConfig(first=write_run(tmp_path / "run", found), second=write_run(tmp_path / "other", found, seed, query_set))
    with pytest.raises(RunError, match=message) as caught:
        compare(config)
    assert "\n" not in str(caught.value)


def test_other_numbers_of_resamples_are_refused(tmp_path: Path) -> None:
    names = (write_run(tmp_path / str(draws), figures(0, lead=0.1, draws=draws)) for draws in (50, 60))
    with pytest.raises(RunError, match=r"per_query_spearman: 50 and 60 resamples; expected as many"):
        compare(CompareConfig(first=next(names), second=next(names)))


@pytest.mark.parametrize("settings", [{"method": "tfidf"}, {"second_method": "tfidf"}])
def test_a_method_that_is_not_there_is_refused_with_those_that_are(tmp_path: Path, settings: dict[str, str]) -> None:
    folder = write_run(tmp_path / "run", figures(0, lead=0.1))
    with pytest.raises(ConfigError, match=r"estimates.parquet: no method 'tfidf'; it has student, bm25$"):
        compare(CompareConfig(first=folder, second=folder, **settings))


def test_a_run_that_is_no_eval_run_or_has_lost_its_figures_is_refused(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", figures(0, lead=0.1))
    with pytest.raises(RunError, match=r"nowhere: does not exist; expected a eval run"):
        compare(CompareConfig(first=folder, second=str(tmp_path / "nowhere")))
    (tmp_path / "run" / "estimates.parquet").write_bytes(b"no parquet")
    with pytest.raises(RunError, match=r"estimates.parquet: cannot be read .*run eval again"):
        compare(CompareConfig(first=folder, second=folder))


def test_the_command_line_prints_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_run(tmp_path / "run", figures(0, lead=0.1))
    main(["--first", folder, "--second", folder, "--second_method", "bm25"])
    printed = capsys.readouterr().out
    section = compare(CompareConfig(first=folder, second=folder, second_method="bm25"))
    assert printed.startswith(section.title)
    assert all(" ".join(line) in " ".join(printed.split()) for line in section.lines)
