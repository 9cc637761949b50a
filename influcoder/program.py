"""The command line of a program: one frozen dataclass in, YAML file first, dotted overrides after it.

    python -m teacher configs/demo/teacher.yaml --seeds '[0]' --finetune.learning_rate 1e-3
    python -m teacher --help | --print_config

Strings in a config may name environment variables, `${NAME}` or `${NAME:-default}`, replaced after parsing.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jsonargparse

from influcoder.errors import ConfigError, InflucoderError

Config = TypeVar("Config")
Setting = bool | int | float | str | list[int | str | dict[str, Any]] | dict[str, Any] | None
"""a value to be passed on as it is written; of `Any`, jsonargparse would make an object where a mapping has a `class_path`"""
_VARIABLE = re.compile(r"\$\{(\w+)(?::-([^}]*))?\}")


def make_parser(config_class: type[Any], prog: str) -> jsonargparse.ArgumentParser:
    """Return the parser of a stage: its fields' docstrings are the help texts."""
    jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = jsonargparse.ArgumentParser(prog=prog, exit_on_error=False, description=(config_class.__doc__ or "").strip())
    parser.add_argument("--config", action="config", help="YAML file; may also be the first argument")
    parser.add_class_arguments(config_class, None)
    return parser


def parse_config(config_class: type[Config], arguments: Sequence[str], prog: str) -> tuple[Config, str]:
    """Parse `[CONFIG.yaml] [--dotted.override value ...]`; return the config and its resolved YAML.

    Raises:
        ConfigError: an unknown key, a missing one, a wrong type, or a value out of range; one line.
    """
    parser = make_parser(config_class, prog)
    arguments, where = list(arguments), prog
    if arguments and not arguments[0].startswith("-"):
        if not Path(arguments[0]).is_file():
            raise ConfigError(f"{arguments[0]}: no such config file; expected a YAML file; see {prog} --help")
        where = f"{prog} {arguments[0]}"
        arguments[:1] = ["--config", arguments[0]]
    try:
        namespace = _expand(parser.parse_args(arguments))
        _check_sections(parser, namespace)
        values = parser.instantiate(namespace)
        namespace.pop("config", None)
        resolved: str = parser.dump(namespace, skip_unset=False, skip_validation=True)  # a null stays a null when passed back
        return config_class(**{key: value for key, value in vars(values).items() if key != "config"}), resolved
    except InflucoderError:
        raise
    except (jsonargparse.ArgumentError, TypeError, ValueError, KeyError) as error:
        message = " ".join(str(error).split())
        raise ConfigError(f"{where}: {message}; see {prog} --help and --print_config") from error


def run_program(main: Callable[[Sequence[str]], None]) -> None:
    """Call `main` with the command line; turn a user's error into one line and exit code 2."""
    try:
        main(sys.argv[1:])
    except InflucoderError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("interrupted; run the same command again to go on", file=sys.stderr)
        raise SystemExit(130) from None


def _check_sections(parser: jsonargparse.ArgumentParser, namespace: jsonargparse.Namespace) -> None:
    for name in parser.groups or {}:
        if name in namespace and not isinstance(namespace[name], jsonargparse.Namespace):
            raise TypeError(f"{name}: {namespace[name]!r}; expected a section of settings, one `key: value` a line")


def _expand(value: Any) -> Any:
    if isinstance(value, jsonargparse.Namespace):
        for key, item in list(value.items()):
            value[key] = _expand(item)
        return value
    if isinstance(value, str):
        return _VARIABLE.sub(_variable, value)
    if isinstance(value, Path):
        return Path(_expand(str(value)))
    if isinstance(value, dict):
        return {key: _expand(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_expand(item) for item in value)
    return value


def _variable(match: re.Match[str]) -> str:
    name, default = match.groups()
    found = os.environ.get(name) or default
    if found is None:
        raise ConfigError(f"${{{name}}}: that environment variable is not set; set it, or write ${{{name}:-default}} in the config")
    return found
