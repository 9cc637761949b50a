"""What the report calls methods, and the CSS classes that colour them: one colour a method, on every picture."""

from __future__ import annotations

from collections.abc import Sequence

LABELS = {
    "teacher": "teacher",
    "teacher_second_seed": "second seed",
    "student": "student",
    "shuffled_target": "shuffled targets",
    "untrained_encoder": "untrained encoder",
    "query_blind": "query-blind",
    "bm25": "BM25",
    "bm25_response": "BM25 of responses",
    "rep_sim": "RepSim (last token)",
    "rep_sim_mean": "RepSim (mean)",
    "loss": "loss",
    "length": "length",
    "random": "random",
}


def label(name: str) -> str:
    """Return what people read; a name that the config gave is kept, its underscores apart."""
    return LABELS.get(name, name.replace("_", " "))


def css(name: str, role: str) -> str:
    """Return the classes of a method's marks. A name that a config gave is no class: it may hold anything."""
    return f"{role} {name}" if name in LABELS and name != role else role


def listing(names: Sequence[str]) -> str:
    """Return `a`, `a and b`, `a, b and c`."""
    words = [label(name) for name in names]
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def sentence(words: str) -> str:
    """Return words that begin with a capital."""
    return words[:1].upper() + words[1:]


def stands(names: Sequence[str]) -> str:
    """Return the verb of so many."""
    return "stands" if len(names) == 1 else "stand"
