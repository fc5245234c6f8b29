"""What the embedded model can draw is said by a file that follows from the scenes that it learned."""

from __future__ import annotations

import json
from dataclasses import replace
from shutil import copy

import numpy as np
import pytest
from PIL import Image

from annotator.ade20k import CLASSES
from controlnet.files import MODELS
from controlnet.generation.models import known_models
from controlnet.generation.world import read_world
from controlnet.storybook import icons
from controlnet.storybook import world as writer
from controlnet.storybook.scenes.labels import Label

SHIPPED = MODELS / "tiny" / "world.json"


def test_the_file_that_is_shipped_follows_from_the_scenes(tmp_path):
    writer.main([str(tmp_path / "world.json")])
    assert (tmp_path / "world.json").read_text() == SHIPPED.read_text()
    assert known_models()["tiny"].world == SHIPPED and known_models()["sd15"].world is None


def test_the_world_of_the_embedded_model():
    world = read_world(SHIPPED)
    assert len(world.classes) == 24 and set(world.classes) <= set(CLASSES)
    assert set(world.choices) == {"time", "season", "weather", "house", "car", "boat"}
    assert world.choices["season"]["winter"][0] == "in winter"
    assert world.choices["house"]["red"][0] == "a red house" and "a cottage" in world.choices["house"][""]
    assert world.unknown_words("A red house and a dragon by the sea, dragon's castle") == [
        "dragon", "dragon's", "castle",
    ]  # fmt: skip
    for phrases in world.choices["time"].values():
        assert not any(world.unknown_words(phrase) for phrase in phrases)


def test_a_prompt_of_the_storybook_has_no_unknown_word():
    from controlnet.storybook.scenes import prompts

    world, rng = read_world(SHIPPED), np.random.default_rng(0)
    looks = {
        "time": "night",
        "season": "winter",
        "weather": "snow",
        "house": "red",
        "car": "blue",
        "boat": "white",
    }
    for place in prompts.PLACE_WORDS:
        for _ in range(40):
            text = prompts.describe(rng, place, dict.fromkeys(prompts.NOUNS, 2), looks)
            assert world.unknown_words(text) == [], text


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"about": "x", "classes": 3, "choices": {}, "words": []}'])
def test_damaged_files_are_named(tmp_path, text):
    (tmp_path / "world.json").write_text(text)
    with pytest.raises(ValueError, match=r"world\.json: does not say what a model draws"):
        read_world(tmp_path / "world.json")


def test_a_world_comes_back_from_its_own_words(tmp_path):
    world = read_world(SHIPPED)
    (tmp_path / "again.json").write_text(json.dumps(world.summary()))
    assert read_world(tmp_path / "again.json") == replace(world, icons="")
    copy(SHIPPED.with_name("icons.webp"), tmp_path)
    assert read_world(tmp_path / "again.json") == world


def test_the_icons_that_are_shipped_show_the_classes_in_their_order(tmp_path):
    icons.main([str(tmp_path / "icons.webp")])
    ours, shipped = (
        np.asarray(Image.open(folder / "icons.webp").convert("RGB"), int)
        for folder in (tmp_path, SHIPPED.parent)
    )
    assert ours.shape == (icons.SIDE, len(Label) * icons.SIDE, 3) and np.abs(ours - shipped).mean() < 4
    tile = {label: shipped[:, k * icons.SIDE : (k + 1) * icons.SIDE] for k, label in enumerate(Label)}
    red, green, blue = tile[Label.CAR].mean((0, 1))
    assert red > 1.2 * max(green, blue)
    assert tile[Label.SKY].mean((0, 1)).argmax() == 2 and tile[Label.GRASS].mean((0, 1)).argmax() == 1
    with pytest.raises(ValueError, match=r"None of 1 scenes shows building, .*more seeds"):
        icons.class_icons(list(Label), range(1))
