"""What the groups of commands share: the parser with our errors, and arguments that several take."""

import argparse
from difflib import get_close_matches
from typing import Any, NoReturn

from ...serving.errors import UsageError
from .numbers import positive


class Parser(argparse.ArgumentParser):
    """argparse with our errors: one message, the nearest spelling, where to find help."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, formatter_class=_Wide, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        """Raises UsageError."""
        raise UsageError(f"{message}. See: {self.prog} --help")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            known = [str(choice) for choice in action.choices]
            near = get_close_matches(str(value), known, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            name = action.metavar or action.dest
            raise UsageError(f"No {name} named {value!r}.{hint} Known: {', '.join(known)}.")


class _Wide(argparse.HelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=30)


def command(commands: Any, name: str, target: str, text: str, **more: Any) -> argparse.ArgumentParser:
    """Add a command that calls `target`, `module:function` of `commands/`, once it is chosen."""
    parser: argparse.ArgumentParser = commands.add_parser(name, help=text, description=f"{text}.", **more)
    parser.set_defaults(command=target)
    return parser


def recipe_options(parser: argparse.ArgumentParser) -> None:
    """What to run: a recipe, and what replaces its keys."""
    group = parser.add_argument_group("what to run; each replaces the recipe's own")
    group.add_argument("--recipe", metavar="NAME|FILE", help="a packaged recipe or a YAML file")
    group.add_argument("--strategy", metavar="NAME", help="see: abduce strategies (default best_of_n)")
    group.add_argument(
        "--model",
        metavar="NAME",
        help="the engine (default embedded), e.g. embedded:FILE.gguf or litellm:openai/NAME",
    )
    group.add_argument("--reward", metavar="NAME", help="what scores partial solutions")
    group.add_argument("--policy", metavar="NAME", help="how steps are proposed")
    group.add_argument("--budget", metavar="LIMITS", help="e.g. '8k tokens, 60 s, 20 calls'")
    group.add_argument("--seed", metavar="N", help="same seed, same search (default 0)")
    group.add_argument(
        "--set",
        action="append",
        default=[],
        dest="settings",
        metavar="KEY=VALUE",
        help="any key of a recipe or parameter of the strategy, e.g. budget.tokens=4000 or n=16",
    )


def spans(parser: argparse.ArgumentParser) -> None:
    """OpenTelemetry."""
    group = parser.add_argument_group("OpenTelemetry; also on where OTEL_EXPORTER_OTLP_ENDPOINT is set")
    group.add_argument("--otel", action="store_true", help="send what happens to a collector, as spans")
    group.add_argument(
        "--otel-content", action="store_true", help="the same, prompts and completions included"
    )


def checks(parser: argparse.ArgumentParser) -> None:
    """Demands on answers."""
    parser.add_argument(
        "--check",
        action="append",
        default=[],
        metavar="ID=VALUE",
        help="a verifiable demand on the answer, e.g. numeric=56; may be repeated",
    )


def parallel(parser: argparse.ArgumentParser) -> None:
    """How many problems at a time."""
    parser.add_argument(
        "--parallel", type=positive, default=4, metavar="N", help="problems at a time (default 4)"
    )
