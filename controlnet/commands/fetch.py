"""Fetch released weights, check them, and put them where they belong.

Names are those of --list, or a file's name with or without its suffix. HF_ENDPOINT names a mirror of the hub.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from controlnet.commands.running import run_alone
from controlnet.weights.table import Released


def main(arguments: Sequence[str] | None = None, prog: str | None = None) -> int:
    return run_alone(__doc__, add_arguments, run, arguments, prog)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("names", nargs="*", metavar="NAME", help="what to fetch, such as sd15-seg")
    parser.add_argument("--list", action="store_true", help="show all names, and what is there already")
    parser.add_argument(
        "--from", dest="source", metavar="FOLDER|URL", help="a folder, or a mirror of the hub"
    )
    parser.add_argument(
        "--to", type=Path, metavar="FOLDER", help="(default: the checkout, or CONTROLNET_HOME)"
    )
    parser.add_argument("--force", action="store_true", help="replace a file that is there")


def run(options: argparse.Namespace) -> int:
    from controlnet.files import home
    from controlnet.weights.table import find_released

    if options.list:
        return show_list(options.to)
    root = options.to or home()
    if not options.names:
        raise ValueError("give a name, or --list to see them all")
    wanted = [find_released(name) for name in options.names]
    return max(_fetch(released, root, options.source, options.force) for released in wanted)


def show_list(root: Path | None) -> int:
    """Print every name, with what it is and whether its file is there (its content is not read)."""
    from controlnet.files import find_file
    from controlnet.weights.table import RELEASED

    width = max(len(released.name) for released in RELEASED)
    for released in RELEASED:
        place = root / released.place if root else find_file(released.place)
        state = f"is there: {place}" if place.is_file() else f"belongs at {released.place}"
        print(f"{released.name:{width}}  {released.what}; {state}")
    return 0


def _fetch(released: Released, root: Path, source: str | None, force: bool) -> int:
    from controlnet.weights.fetch import FetchError, fetch

    try:
        fetched = fetch(released, root, source=source, force=force, progress=True)
    except (FetchError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    how = "already there" if fetched.was_there else "fetched"
    sums = "the sha256 that the hub lists" if fetched.sum_is_of_hub else "the released sha256"
    print(f"{released.name}: {how}, with {sums}: {fetched.path}")
    return 0
