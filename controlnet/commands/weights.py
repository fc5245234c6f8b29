"""Everything about weights: make them, join them, convert them, fetch them."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from controlnet.commands import add_control, convert, fetch, merge_control, transfer_control
from controlnet.commands.running import run_safely

COMMANDS = {
    "add": add_control,
    "merge": merge_control,
    "transfer": transfer_control,
    "convert": convert,
    "fetch": fetch,
}


def main(arguments: Sequence[str] | None = None, prog: str | None = None) -> int:
    """``controlnet weights add|merge|transfer|convert|fetch|list ...``; the exit status."""
    parser = argparse.ArgumentParser(prog=prog or "controlnet weights", description=__doc__)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, module in COMMANDS.items():
        summary = (module.__doc__ or "").split("\n\n")[0].replace("\n", " ")
        command = commands.add_parser(name, help=summary, description=summary)
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    listing = commands.add_parser("list", help="Show what can be fetched, and what is there.")
    fetch.add_arguments(listing)
    listing.set_defaults(run=fetch.run, list=True)
    options = parser.parse_args(arguments)
    return run_safely(options.run, options)
