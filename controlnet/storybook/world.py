"""The drawn world in one file for front ends.

``python -m controlnet.storybook.world models/tiny/world.json`` writes it. A model learns from ``scenes``,
so what it knows follows from the tables there.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from annotator.ade20k import CLASSES
from controlnet.generation.world import World
from controlnet.storybook.scenes import prompts
from controlnet.storybook.scenes.labels import Label
from controlnet.storybook.scenes.looks import BOAT_COLOURS, CAR_COLOURS, HOUSE_COLOURS
from ldm.weights import atomic_write

# Words that join others: no picture depends on them.
_JOINING = (
    "a an the and or of with to from for on in at by near behind before beside between under over above "
    "next there is are it its some many few one two three"
)


def drawn_world() -> World:
    """What a model that was trained on drawn scenes can draw."""
    colours = {"house": HOUSE_COLOURS, "car": CAR_COLOURS, "boat": BOAT_COLOURS}
    choices: dict[str, Mapping[str, tuple[str, ...]]] = {
        "time": prompts.TIME_WORDS,
        "season": prompts.SEASON_WORDS,
        "weather": prompts.WEATHER_WORDS,
    }
    choices |= {kind: _coloured(kind, known) for kind, known in colours.items()}
    classes = tuple(CLASSES[label] for label in Label)
    tables = (prompts.TREE_WORDS, prompts.PLACE_WORDS, *choices.values())
    phrases = [phrase for table in tables for known in table.values() for phrase in known]
    phrases += [noun for pair in prompts.NOUNS.values() for nouns in pair for noun in nouns]
    phrases += [*prompts.OPENINGS, *prompts.PRAISE, _JOINING, *classes]
    return World("drawn landscapes", classes, choices, frozenset(_words(phrases)))


def _coloured(kind: str, colours: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Phrases for each colour of a thing, and for the thing without one."""
    nouns, _ = prompts.NOUNS[kind]
    bare = {"": tuple(f"a {noun}" for noun in nouns)}
    return bare | {
        colour: tuple(f"{article}{colour} {noun}" for article in ("a ", "") for noun in nouns)
        for colour in colours
    }


def _words(phrases: Iterable[str]) -> set[str]:
    return {word for phrase in phrases for word in re.findall(r"[a-z]+", phrase.lower())}


def main(arguments: list[str] | None = None) -> None:
    """Command line of ``python -m controlnet.storybook.world``."""
    parser = argparse.ArgumentParser(description="Write what a model of drawn scenes can draw.")
    parser.add_argument("target", type=Path, help="world.json to write")
    options = parser.parse_args(arguments)
    with atomic_write(options.target) as unfinished:
        text = json.dumps(drawn_world().summary(), indent=1, ensure_ascii=False)
        unfinished.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
