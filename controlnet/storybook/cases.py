"""Drawn scenes for ``controlnet.evaluate``, with a judge that knows what their prompts speak of."""

from __future__ import annotations

import dataclasses
from functools import partial

import numpy as np

from controlnet.evaluate.evaluation import Case
from controlnet.storybook.dataset import draw_scene
from controlnet.storybook.hints import drawn_hint
from controlnet.storybook.scenes.judge import judge
from controlnet.storybook.scenes.prompts import named_in


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
