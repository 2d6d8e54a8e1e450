"""The command line: a command is carried out, and what becomes of errors. `arguments/` says what may be
typed; each command is a file of `commands/`.

Exit codes: 0 solved or shown, 1 no result (an engine failed, a budget was too small), 2 a mistake in what was
typed, 130 interrupted. A mistake is one message on standard error, never a traceback.
"""

import argparse
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from importlib import import_module

from ..serving import redact
from ..serving.errors import AbduceError, UsageError
from ..serving.settings import register_secrets
from .arguments import parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    register_secrets()
    try:
        chosen = parser().parse_args(arguments)
        module, _, function = chosen.command.partition(":")
        command: Callable[[argparse.Namespace], int] = getattr(
            import_module(f".commands.{module}", __package__), function
        )
        code = command(chosen)
        sys.stdout.flush()
        return code
    except UsageError as error:
        return _fail(error, 2)
    except AbduceError as error:
        return _fail(error, 1)
    except KeyboardInterrupt:
        print("abduce: stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `abduce … | head`: whoever read has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception:  # a fault of ours, or of a library that may know a key
        print(redact.text(traceback.format_exc()), end="", file=sys.stderr)
        return 1


def _fail(error: Exception, code: int) -> int:
    print(f"abduce: {error}", file=sys.stderr)
    return code
