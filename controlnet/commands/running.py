"""What the commands about weights have in common: one line for a user's error, and scripts of a command
alone.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

AddArguments = Callable[[argparse.ArgumentParser], None]
Run = Callable[[argparse.Namespace], int]


def run_alone(
    description: str | None,
    add_arguments: AddArguments,
    run: Run,
    arguments: Sequence[str] | None,
    prog: str | None,
) -> int:
    """A command as a script of its own; the exit status."""
    parser = argparse.ArgumentParser(
        prog=prog, description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_arguments(parser)
    return run_safely(run, parser.parse_args(arguments))


def run_safely(run: Run, options: argparse.Namespace) -> int:
    """Run a command; what is the user's or a file's fault becomes one line on stderr, and status 1."""
    try:
        return run(options)
    except (ValueError, OSError, RuntimeError) as error:
        text = " ".join(str(error).split())
        print(f"error: {text or type(error).__name__}", file=sys.stderr)
        return 1
