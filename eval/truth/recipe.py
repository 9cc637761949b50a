"""What a teacher run did to its decoder, read from the config that it kept, so that it can be done again on parts of its rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import jsonargparse
import yaml

from eval.data import TeacherRun
from influcoder.errors import RunError
from influcoder.examples import Example
from influcoder.influence.decoder import DecoderConfig
from influcoder.influence.decoder_retraining import Retrainer
from influcoder.influence.finetune import FinetuneConfig
from influcoder.program import Setting, make_parser


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a teacher run got its decoder."""

    decoder: DecoderConfig
    finetune: FinetuneConfig | None = None
    trainer: dict[str, Setting] = field(default_factory=dict)

    def retrainer(self, rows: Sequence[Example], asked: Sequence[Example]) -> Retrainer:
        """Return what repeats it on parts of `rows` and asks `asked`."""
        assert self.finetune is not None  # read_recipe
        return Retrainer(decoder=self.decoder, finetune=self.finetune, rows=rows, asked=asked, trainer=self.trainer)


def read_recipe(teacher: TeacherRun) -> Recipe:
    """Read a run's config.

    Raises:
        RunError: when it is not readable, or the run fine-tuned nothing.
    """
    path = teacher.folder / "config.yaml"
    try:
        kept = yaml.safe_load(path.read_text(encoding="utf-8"))
        parser = make_parser(Recipe, "config.yaml")
        parsed = parser.instantiate(parser.parse_object({name: kept[name] for name in ("decoder", "finetune", "trainer") if name in kept}))
        recipe = Recipe(decoder=parsed.decoder, finetune=parsed.finetune, trainer=dict(parsed.trainer or {}))
    except (OSError, yaml.YAMLError, TypeError, ValueError, KeyError, AttributeError, jsonargparse.ArgumentError) as error:
        reason = " ".join(str(error).split())
        raise RunError(
            f"{path}: not the config of a teacher run ({reason}); expected decoder and finetune; run the teacher again"
        ) from error
    if recipe.finetune is None:
        raise RunError(f"{teacher.folder}: fine-tuned nothing; expected a run with a finetune block, which can be repeated; give one")
    return recipe
