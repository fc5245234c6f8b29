"""The command line of the installed package: ``controlnet COMMAND``, or ``python -m controlnet COMMAND``.

A command is a module with ``main(arguments, prog)``, imported when it is called. The scripts at the root of a
checkout call the same functions.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from controlnet import __version__

COMMANDS = {
    "page": ("controlnet.page.app", "make pictures in the browser"),
    "generate": ("controlnet.commands.generate", "make pictures from files, on one device or many"),
    "annotate": ("controlnet.commands.annotate", "segment a folder of pictures"),
    "train": ("controlnet.commands.train", "train a ControlNet"),
    "evaluate": ("controlnet.commands.evaluate", "measure how well a model keeps to map and prompt"),
    "weights": ("controlnet.commands.weights", "get, prepare and move weights"),
    "models": ("controlnet.commands.models", "list the models, and which of their files are there"),
}
"""Module and purpose of each command."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command, by default the one of the process; returns the exit status."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if arguments and arguments[0] in COMMANDS:
        name, *rest = arguments
        command = importlib.import_module(COMMANDS[name][0])
        return command.main(rest, prog=f"controlnet {name}") or 0
    parser = argparse.ArgumentParser(
        prog="controlnet",
        description="Stable Diffusion that keeps the layout you give it.",
        epilog="Each command has --help.",
    )
    parser.add_argument("--version", action="version", version=f"controlnet {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True, title="commands")
    for name, (_, purpose) in COMMANDS.items():
        commands.add_parser(name, help=purpose, add_help=False)
    parser.parse_args(arguments)  # ends the program: with help, the version or an error
    raise AssertionError("argparse returned from arguments that name no command")
