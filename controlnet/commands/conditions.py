"""The options of all conditions as options of a command line."""

from __future__ import annotations

import argparse

from controlnet.conditions import all_conditions, find_condition
from controlnet.generation.request import RequestError


def add_condition_arguments(parser: argparse.ArgumentParser) -> None:
    """An option for every option of every condition; only those that are given count."""
    for condition in all_conditions().values():
        if not condition.options:
            continue
        group = parser.add_argument_group(f"options of --condition {condition.name}")
        for option in condition.options:
            what = f"{option.label}, {option.low:g} to {option.high:g} (default: {option.default:g})"
            group.add_argument(option_flag(option.name), dest=option.name, type=float, help=what)


def option_flag(name: str) -> str:
    """``value_threshold`` -> ``--value-threshold``."""
    return "--" + name.replace("_", "-")


def condition_options(options: argparse.Namespace, condition: str) -> dict[str, float]:
    """The options of a condition that the command line gives.

    Raises:
        RequestError: options of another condition were given.
    """
    own = {option.name for option in find_condition(condition).options}
    every = {option.name for known in all_conditions().values() for option in known.options}
    given = {name: value for name in every if (value := getattr(options, name, None)) is not None}
    if foreign := sorted(set(given) - own):
        raise RequestError(f"--condition {condition} has no {', '.join(map(option_flag, foreign))}.")
    return {name: int(value) if value.is_integer() else value for name, value in given.items()}
