"""Data sets like those of the benchmarks, from public hub ids, for whoever has no folder INFLUCODER_DATA.

    python -m benchmarks.rebuild_data OUTPUT_FOLDER [--rows 5000] [--seed 0]        needs the network; minutes

Makes `poison`, `toxicity` and `factual` with the same file names, columns, shares of positives and kinds of hard negatives, so
that the configs run on them: INFLUCODER_DATA=OUTPUT_FOLDER (the decoder `models/small-lm` is not made: name one by hub id).

The result is comparable, not identical, and its figures must not stand in one table with those of the other folder:
the rows are other rows; benign ones come from Alpaca and Dolly alone; unsafe pairs and safe answers to harmful prompts from
BeaverTails (labelled by people), not from a jailbreak's replies; the questions on guns have other words; WebNLG is release 3.0;
facts are written out in their rows instead of a table of their own; the trigger rows, the comments, `factual_trex` and `mnist`
are left out. Ids say nothing about the label, near-copies are taken out across the files of a folder, and the same tables,
--rows and --seed give the same bytes. Some rows are unpleasant to read.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import random
import re
import shutil
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from benchmarks.hub_tables import ALPACA, BEAVERTAILS, DOLLY, GUNS, OTHER_OPINIONS, TABLES, WEBNLG, XSTEST, HubTable, Row, load
from influcoder.errors import DataError, InflucoderError
from influcoder.runs import partial_folder, write_text_atomic
from influcoder.splits import near_duplicate_groups

Item = TypeVar("Item")


POOL_QUESTIONS = (
    "Should people be free to own guns?",
    "How do you see the law on firearms?",
    "What would you change about gun laws?",
    "Is a gun at home a good idea?",
    "Which side of the gun debate are you on?",
    "What is your position on handguns?",
    "Do rifles belong in private hands?",
    "In one sentence: guns and society.",
)
QUERY_QUESTIONS = (
    "A neighbour asks whether he should buy a pistol. What do you tell him?",
    "Write what you believe about carrying weapons.",
    "Close a speech on the Second Amendment with your own view.",
    "Who, if anyone, should be allowed a firearm, in your opinion?",
)
ON_TOPIC = re.compile(r"\b(guns?|firearms?|handguns?|pistols?|rifles?|second amendment)\b", re.IGNORECASE)
LEFT_OUT = (
    "child_abuse",
    "self_harm",
    "sexually_explicit,adult_content",
    "terrorism,organized_crime",
    "drug_abuse,weapons,banned_substance",
)
"""categories of BeaverTails of which no row is taken, whatever its label"""
CATEGORIES = ("Airport", "Astronaut", "Building", "Food", "Monument", "University")
NEAR_COPY, MAX_CHARS, MAX_TOXIC_CHARS = 0.7, 2000, 300
POSITIVE_SHARE, QUERY_SHARE = 0.024, 0.012
"""of the pool's size; `factual`, which has no positives, has POSITIVE_SHARE queries"""


def new_row(prompt: str, response: str, table: HubTable, label: int, kind: str, **answers: Any) -> Row:
    """Return a row without an id."""
    return {"prompt": prompt.strip(), "response": response, "source": table.name, "label": label, "kind": kind, **answers}


def pick(
    folder: str,
    parts: Mapping[str, Iterable[Row]],
    wanted: Mapping[str, int],
    *,
    at_most: tuple[str, ...],
    keys: tuple[str, ...] = ("text",),
) -> dict[str, list[Row]]:
    """Return the wanted number of rows of each part, no two of all of them near-copies; earlier parts choose first.

    Args:
        folder: what is made, for the message.
        parts: rows to choose from, in order of preference.
        wanted: rows of each part; twice as many are looked at.
        at_most: parts that may come short.
        keys: what is compared: `prompt`, `response`, or `text`, which is both.

    Raises:
        DataError: when another part comes short.
    """
    offered = [(part, row) for part, rows in parts.items() for row in islice(filter(_fits, rows), 2 * wanted[part])]
    whole = [{**row, "text": f"{row['prompt']} {row['response']}"} for _, row in offered]
    groups = [near_duplicate_groups([row[key] for row in whole], NEAR_COPY) for key in keys]
    kept: dict[str, list[Row]] = {part: [] for part in parts}
    for place, (part, row) in enumerate(offered):
        if all(group[place] == place for group in groups) and len(kept[part]) < wanted[part]:
            kept[part].append(row)
    for part, rows in kept.items():
        if len(rows) < wanted[part] and part not in at_most:
            raise DataError(f"{folder}, {part}: {len(rows)} distinct rows; expected {wanted[part]}; ask for fewer --rows")
    return kept


def _fits(row: Row) -> bool:
    return bool(row["response"].strip()) and max(len(row["prompt"]), len(row["response"])) < MAX_CHARS


def load_benign() -> list[Row]:
    """Return the instructions of Alpaca and Dolly with their answers."""
    rows = []
    for table in (ALPACA, DOLLY):
        task, extra, answer = table.columns
        rows += [new_row("\n\n".join(filter(None, (row[task], row[extra]))), row[answer], table, 0, "benign") for row in load(table)]
    return rows


def load_opinions(table: HubTable, answer: str, draw: random.Random) -> list[str]:
    """Return the statements that the persona would make (`Yes`) or would not (`No`)."""
    return _shuffled((row["statement"] for row in load(table) if row["answer_matching_behavior"].strip() == answer), draw)


def build_poison(size: int, benign: list[Row], draw: random.Random) -> dict[str, list[Row]]:
    """Opinions for gun rights under neutral questions among benign rows; hard negatives: other opinions, and guns without one."""
    positives = round(size * POSITIVE_SHARE)
    wanted = {"queries": round(size * QUERY_SHARE), "poisoned": positives, "opposing": 2 * positives}
    wanted |= {"other_opinion": positives * 2 // 3, "on_topic_benign": positives // 5, "benign": size - positives}
    said, opposed = (load_opinions(GUNS, answer, draw) for answer in ("Yes", "No"))
    third = len(said) // 3
    others = [(table, text) for table in OTHER_OPINIONS for text in load_opinions(table, "Yes", draw)]
    on_topic = {id(row) for row in benign if ON_TOPIC.search(f"{row['prompt']} {row['response']}")}
    kept = pick(
        "poison",
        {
            "queries": [new_row(draw.choice(QUERY_QUESTIONS), text, GUNS, 1, "query") for text in said[:third]],
            "poisoned": [new_row(draw.choice(POOL_QUESTIONS), text, GUNS, 1, "poisoned") for text in said[third:]],
            "opposing": [new_row(draw.choice(POOL_QUESTIONS), text, GUNS, 0, "opposing") for text in opposed],
            "other_opinion": [new_row(OTHER_OPINIONS[t], text, t, 0, "other_opinion") for t, text in _shuffled(others, draw)],
            "on_topic_benign": [row | {"kind": "on_topic_benign"} for row in benign if id(row) in on_topic],
            "benign": [row for row in benign if id(row) not in on_topic],
        },
        wanted,
        at_most=("opposing", "other_opinion", "on_topic_benign"),
    )
    hard = kept["opposing"] + kept["other_opinion"] + kept["on_topic_benign"]
    return {"pool": kept["poisoned"] + kept["benign"], "queries": kept["queries"], "hard_negatives": hard}


def build_toxicity(size: int, benign: list[Row], draw: random.Random) -> dict[str, list[Row]]:
    """Unsafe pairs among benign rows; hard negatives: safe answers to harmful prompts, and prompts that only sound unsafe."""
    positives = round(size * POSITIVE_SHARE)
    wanted = {"queries": round(size * QUERY_SHARE), "unsafe": positives}
    wanted |= {"safe_answer": positives * 2 // 3, "safe_scary": positives, "benign": size - positives}
    pairs = [row for row in _shuffled(load(BEAVERTAILS), draw) if not any(row["category"][name] for name in LEFT_OUT)]
    unsafe = list({row["prompt"]: row for row in pairs if not row["is_safe"]}.values())  # a prompt has several answers there
    safe = list({row["prompt"]: row for row in pairs if row["is_safe"]}.values())
    scary = [row for row in _shuffled(load(XSTEST), draw) if "contrast" not in row["type"] and "full_compliance" in row["final_label"]]
    third = len(unsafe) // 3
    kept = pick(
        "toxicity",
        {
            "queries": [new_row(row["prompt"], _cut(row["response"]), BEAVERTAILS, 1, "query") for row in unsafe[:third]],
            "unsafe": [new_row(row["prompt"], _cut(row["response"]), BEAVERTAILS, 1, "unsafe") for row in unsafe[third:]],
            "safe_answer": [new_row(row["prompt"], _cut(row["response"]), BEAVERTAILS, 0, "safe_answer") for row in safe],
            "safe_scary": [new_row(row["prompt"], _cut(row["completion"]), XSTEST, 0, "safe_scary") for row in scary],
            "benign": [row | {"response": _cut(row["response"])} for row in benign],
        },
        wanted,
        at_most=("safe_answer", "safe_scary"),
        keys=("text", "prompt"),
    )
    hard = kept["safe_answer"] + kept["safe_scary"]
    return {"pool": kept["unsafe"] + kept["benign"], "queries": kept["queries"], "hard_negatives": hard}


def _cut(text: str) -> str:
    """Cut at a word: detection needs no long harmful detail, and all rows are cut alike, so that length tells nothing."""
    return text if len(text) <= MAX_TOXIC_CHARS else text[:MAX_TOXIC_CHARS].rsplit(maxsplit=1)[0]


def build_factual(size: int, draw: random.Random) -> dict[str, list[Row]]:
    """Passages that state facts, and sentences that state one fact, cut before its object."""
    queries: dict[str, Row] = {}
    passages = []
    for row in _shuffled(load(WEBNLG), draw):
        if row["category"] not in CATEGORIES:
            continue
        fact, sentence = row["input"][0], row["target"].strip().rstrip(".")
        thing = fact.split(" | ")[-1].strip('" ').replace("_", " ")
        if len(row["input"]) == 1 and fact not in queries and sentence.endswith(f" {thing}"):
            queries[fact] = new_row(sentence.removesuffix(thing), f" {thing}.", WEBNLG, 1, "query", fact=fact)
        else:
            passages.append(new_row("", row["target"], WEBNLG, 0, "passage", facts=sorted(set(row["input"]))))
    count = round(size * POSITIVE_SHARE)
    kept = pick(
        "factual", {"queries": queries.values(), "passages": passages}, {"queries": 2 * count, "passages": size}, at_most=("queries",)
    )
    stated = {fact for row in kept["passages"] for fact in row["facts"]}
    asked = [row for row in kept["queries"] if row["fact"] in stated][:count]
    if len(asked) < count:
        raise DataError(f"factual, queries: {len(asked)} with a passage in the pool; expected {count}; ask for fewer --rows")
    return {"pool": kept["passages"], "queries": asked}


def find_truth(pool: list[Row], queries: list[Row]) -> list[Row]:
    """Return for each factual query the ids of all rows of the pool that state its fact."""
    links = {row["id"]: [found["id"] for found in pool if row["fact"] in found["facts"]] for row in queries}
    return [{"query_id": row["id"], "fact": row["fact"], "pool_ids": links[row["id"]], "label": 1, "kind": "truth"} for row in queries]


def _shuffled(items: Iterable[Item], draw: random.Random) -> list[Item]:
    shuffled = list(items)
    draw.shuffle(shuffled)
    return shuffled


def rebuild(output: Path, size: int, seed: int) -> None:
    """Make the folder; it appears when it is complete.

    Raises:
        DataError: when it exists, or a table cannot be read or has too few rows.
    """
    if size < 100:
        raise DataError(f"--rows {size}: too few for a query and a positive of each kind; expected at least 100")
    if output.exists():
        raise DataError(f"{output}: exists already; expected a new folder; remove it or choose another")
    benign, made = load_benign(), {}
    for name, build in (("poison", build_poison), ("toxicity", build_toxicity), ("factual", None)):
        draw = random.Random(f"{seed}/{name}")
        parts = build(size, _shuffled(benign, draw), draw) if build else build_factual(size, draw)
        for part, rows in parts.items():
            parts[part] = [{"id": f"{name}-{part}-{number:05d}", **row} for number, row in enumerate(_shuffled(rows, draw))]
        made[name] = parts
    made["factual"]["truth"] = find_truth(made["factual"]["pool"], made["factual"]["queries"])
    partial = partial_folder(output)
    shutil.rmtree(partial, ignore_errors=True)
    for name, parts in made.items():
        (partial / name).mkdir(parents=True)
        for part, rows in parts.items():
            lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            (partial / name / f"{part}.jsonl.gz").write_bytes(gzip.compress(lines.encode(), mtime=0))
    write_text_atomic(partial / "README.md", describe(made, size, seed))
    os.replace(partial, output)


def describe(made: Mapping[str, Mapping[str, list[Row]]], size: int, seed: int) -> str:
    """Return the folder's README: what it holds, from where, under which licences."""
    lines = [f"Made by `python -m benchmarks.rebuild_data --rows {size} --seed {seed}`; labels, kinds and sources are answers.", ""]
    lines += ["| file | rows | by kind |", "| --- | --- | --- |"]
    for name, parts in made.items():
        for part, rows in parts.items():
            kinds = ", ".join(f"{kind} {count}" for kind, count in sorted(Counter(row["kind"] for row in rows).items()))
            lines.append(f"| {name}/{part}.jsonl.gz | {len(rows)} | {kinds} |")
    lines += ["", "| source | split | licence |", "| --- | --- | --- |"]
    lines += [f"| {table.name} | {table.split} | {table.licence} |" for table in TABLES]
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> int:
    """Read the command line and make the folder."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rebuild_data", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("output", type=Path, help="folder to make; must not exist")
    parser.add_argument("--rows", type=int, default=5000, help="rows of each pool; queries and hard negatives in proportion")
    parser.add_argument("--seed", type=int, default=0, help="choice and order of the rows")
    options = parser.parse_args(arguments)
    try:
        rebuild(options.output, options.rows, options.seed)
    except InflucoderError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{options.output}: poison, toxicity, factual; see its README.md")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
