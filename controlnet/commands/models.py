"""List the models that have a name and the conditions that steer each: what is there, and how to get
the rest. With options, say what the files that they name were recognised as.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from controlnet.conditions import DEFAULT, Condition, all_conditions
from controlnet.generation.devices import ModelError
from controlnet.generation.models import ModelFiles, default_model, known_models
from controlnet.generation.options import add_file_arguments, files_from_options
from controlnet.generation.recognised import recognised
from ldm.command import command_name
from ldm.definitions import DefinitionError
from ldm.weights import WeightsError


def main(arguments: Sequence[str] | None = None, prog: str | None = None) -> int:
    parser = argparse.ArgumentParser(prog=prog, description=__doc__)
    add_file_arguments(parser)
    options = parser.parse_args(arguments)
    if options == parser.parse_args([]):
        return list_known()
    try:
        files = files_from_options(options, check=False)
        print(f"{files.name}: under {files.config}, made for {files.resolution} pixels")
    except (ModelError, WeightsError, DefinitionError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0 if show_recognised(files) else 1


def list_known() -> int:
    """Print the models that have a name."""
    conditions = [known() for known in all_conditions().values()]
    for name, files in known_models().items():
        there = files.config.exists() and files.weights.exists()
        default = ", the default" if name == default_model() else ""
        print(f"{name} ({'ready' if there else 'missing'}{default}): {files.weights}")
        if not there:
            print(f"  get it: {files.how_to_get}")
        show_recognised(files)
        for condition in conditions:
            states = (
                f"control {control_state(files, condition):27} detector {detector_state(files, condition)}"
            )
            print(f"  {condition.name:21} {states}")
    print(f"What is missing comes with: {command_name()} weights fetch NAME")
    return 0


def show_recognised(files: ModelFiles) -> bool:
    """Print what each file is; whether all can serve."""
    found = recognised(files)
    for file in found:
        cannot = "" if file.fits else "cannot serve: "
        print(f"  {file.use}: {file.path.name}: {cannot}{file.what}")
    return all(file.fits for file in found)


def control_state(files: ModelFiles, condition: Condition) -> str:
    """Whether the model has a control for a condition; else the name to fetch."""
    if condition.name in files.controls or (condition.name in files.own and files.weights.exists()):
        return "ready"
    if files.serves_all:
        return "was not trained for it"
    return condition.control_stems()[0]


def detector_state(files: ModelFiles, condition: Condition) -> str:
    """Whether the condition's detector can work, with another file than the released one if so; else the name
    to fetch.
    """
    if condition.name == DEFAULT:
        return "ready" if files.detector_weights.exists() else files.detector_weights.stem
    file, names = condition.detector_file(), condition.checkpoint_names()
    if file is not None and file.name != names[0]:
        return f"ready, with {file.stem}; released: {Path(names[0]).stem}"
    return condition.missing_weights() or "ready"
