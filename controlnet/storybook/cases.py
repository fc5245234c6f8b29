"""Drawn scenes for ``controlnet.evaluate``, with a judge that knows what their prompts speak of."""

from __future__ import annotations

import dataclasses
from functools import partial

import numpy as np

from controlnet.evaluate.evaluation import Case
from controlnet.storybook.dataset import Scene, draw_scene
from controlnet.storybook.hints import drawn_hint
from controlnet.storybook.scenes.judge import PAINTS, judge
from controlnet.storybook.scenes.prompts import SEASON_WORDS, TIME_WORDS, named_in


def draw_cases(count: int, seed: int, size: int) -> list[Case]:
    """Scenes ``seed`` to ``seed + count - 1``, ``size`` pixels a side."""
    scenes = (draw_scene(seed + index, size) for index in range(count))
    return [
        with_judge(Case(scene.picture, scene.labels, scene.prompt, draw_hint=partial(drawn_hint, scene)))
        for scene in scenes
    ]


def with_judge(case: Case) -> Case:
    """The case, with `agreement` as its judge."""
    return dataclasses.replace(case, judge=partial(agreement, labels=case.labels, prompt=case.prompt))


def agreement(picture: np.ndarray, labels: np.ndarray, prompt: str) -> dict[str, bool]:
    """Whether a picture of a drawn scene agrees with its prompt.

    Args:
        picture: uint8 RGB ``[H, W, 3]``.
        labels: the map that it was made for, uint8 ``[H, W]``.
        prompt: and the prompt.

    Returns:
        an answer for each of ``time``, ``season``, ``house``, ``car`` and ``boat`` that the prompt names and
        that can be told.
    """
    seen = judge(picture, labels)
    asked = {name: value for name, value in named_in(prompt).items() if seen[name] is not None}
    return {name: seen[name] == value for name, value in asked.items()}


def colour_cases(count: int, seed: int, size: int) -> dict[str, list[Case]]:
    """``count`` scenes from ``seed`` on that show two or three things of a colour, asked for in three ways.

    No two things are to have one colour. ``in one sentence`` names them all in the prompt; ``for each class``
    names the scene there, and a thing in the prompt for its class; in ``against the sentence`` the prompt
    gives the colours to the wrong things, and the classes have the last word.
    """
    ways: dict[str, list[Case]] = {"in one sentence": [], "for each class": [], "against the sentence": []}
    while len(ways["in one sentence"]) < count:
        scene = draw_scene(seed, size)
        colours = _different_colours(scene, seed)
        seed += 1
        if len(colours) < 2:
            continue
        mixed = dict(zip(colours, [*list(colours.values())[1:], *list(colours.values())[:1]], strict=True))
        season = scene.attributes["season"]
        when = ", ".join(
            [TIME_WORDS[str(scene.attributes["time"])][0], *([SEASON_WORDS[season][0]] if season else [])]
        )
        named, wrong = (
            " and ".join(f"a {colour} {thing}" for thing, colour in c.items()) for c in (colours, mixed)
        )
        case = with_judge(Case(scene.picture, scene.labels, f"{named} {when}"))
        prompts = {thing: f"a {colour} {thing}" for thing, colour in colours.items()}
        ways["in one sentence"].append(case)
        for way, prompt in (("for each class", "a landscape"), ("against the sentence", wrong)):
            ways[way].append(dataclasses.replace(case, prompt=f"{prompt} {when}", class_prompts=prompts))
    return ways


def _different_colours(scene: Scene, seed: int) -> dict[str, str]:
    """A colour for each thing of a scene whose colour can be told, no two of them alike."""
    random = np.random.default_rng((seed, 4))
    colours: dict[str, str] = {}
    for thing, (_, paints) in PAINTS.items():
        if scene.attributes[thing]:
            free = [colour for colour in paints if colour not in colours.values()]
            colours[thing] = free[int(random.integers(len(free)))]
    return colours
