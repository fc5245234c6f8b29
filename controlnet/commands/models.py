"""List the models that have a name, and say of each which files are missing and how to get them."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from controlnet.generation.models import default_model, known_models


def main(arguments: Sequence[str] | None = None, prog: str | None = None) -> int:
    argparse.ArgumentParser(prog=prog, description=__doc__).parse_args(arguments)
    default = default_model()
    for name, files in known_models().items():
        missing = files.missing()
        print(f"{name:12} {'missing' if missing else 'ready'}{' (default)' if name == default else ''}")
        for path in missing:
            print(f"{'':12} there is no {path}")
        if missing:
            print(f"{'':12} {files.how_to_get}")
    return 0
