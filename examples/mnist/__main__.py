"""Classic influence on MNIST: `python -m examples.mnist [--data FOLDER] [--output FOLDER] [--method ekfac|exact] ...`.

Writes `summary.json` and `index.html`, a page that needs nothing else; about a minute on two cores.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from examples.mnist.config import MnistConfig
from examples.mnist.images import load_digits
from examples.mnist.page import render_page
from examples.mnist.study import figures, make_study
from influcoder.program import parse_config, run_program
from influcoder.runs import create_run, write_json_atomic, write_text_atomic


def main(arguments: Sequence[str]) -> None:
    """Run the example and say where its page is."""
    config, resolved = parse_config(MnistConfig, arguments, "python -m examples.mnist")
    with create_run(Path(config.output), "mnist", resolved) as run:
        source, train, test = load_digits(config.data)
        study = make_study(config, train, test)
        found = {"data": source, "method": config.method, **figures(study)}
        run.facts.update(seed=config.seed, data=source)
        write_json_atomic(run.folder / "summary.json", found)
        write_text_atomic(run.folder / "index.html", render_page(study, config, found))
    flips, same = found["flips_in_top_10_percent"], found["top_10"]["relatif"]["helpful_of_the_same_class"]["mean"]
    print(
        f"{source}: {flips['self_influence']:.1%} of the wrong labels in the top 10 % by self-influence (by gradient length "
        f"{flips['gradient_length']:.1%}, by loss {flips['loss']:.1%}); {same:.1%} of the most helpful digits have the query's class",
        f"Look at {config.output}/index.html",
        sep="\n",
    )


if __name__ == "__main__":
    run_program(main)
