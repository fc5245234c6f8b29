"""The storybook world: the same on every machine, maps that no look changes, words and judge that agree."""

from __future__ import annotations

import hashlib
import itertools
import json
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from annotator.ade20k import CLASSES, colorize
from controlnet.storybook.dataset import HELD_OUT_SEED, StorybookDataset, draw_scene, main
from controlnet.storybook.scenes.judge import can_tell, judge
from controlnet.storybook.scenes.labels import Label
from controlnet.storybook.scenes.looks import (
    BOAT_COLOURS,
    CAR_COLOURS,
    HOUSE_COLOURS,
    SEASONS,
    TIMES,
    WEATHERS,
    Look,
    random_look,
)
from controlnet.storybook.scenes.prompts import COLOURED, named_in
from controlnet.training.data.dataset import Draw

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def scenes():
    return [draw_scene(HELD_OUT_SEED + seed) for seed in range(250)]


def test_labels_are_ade20k_classes():
    for label in Label:
        assert CLASSES[label] == label.name.lower()


def test_at_least_18_classes_occur_often_and_large_enough_to_be_seen(scenes):
    scenes_with = Counter(int(label) for scene in scenes for label in np.unique(scene.labels))
    pixels = np.bincount(np.concatenate([scene.labels.ravel() for scene in scenes]), minlength=256)
    assert set(scenes_with) == set(map(int, Label))
    assert len(scenes_with) >= 18
    for label, count in scenes_with.items():
        assert count >= 0.08 * len(scenes), CLASSES[label]
        assert pixels[label] / count >= 400, CLASSES[label]  # of 65536


def test_picture_and_map_have_the_contracts_types():
    scene = draw_scene(3, size=128)
    assert scene.picture.shape == (128, 128, 3)
    assert scene.picture.dtype == np.uint8
    assert scene.labels.shape == (128, 128)
    assert scene.labels.dtype == np.uint8


def test_a_seed_is_one_scene_in_any_process_and_in_any_order():
    code = (
        "import hashlib; from controlnet.storybook.dataset import draw_scene\n"
        "for seed in (12, 5): s = draw_scene(seed, 96); "
        "print(hashlib.sha256(s.picture.tobytes() + s.labels.tobytes() + s.prompt.encode()).hexdigest())"
    )
    there = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    np.random.seed(77)
    here = []
    for seed in (5, 12):
        scene = draw_scene(seed, 96)
        data = scene.picture.tobytes() + scene.labels.tobytes() + scene.prompt.encode()
        here.append(hashlib.sha256(data).hexdigest())
    assert there.stdout.split() == here[::-1]


def test_drawing_leaves_the_global_random_numbers_alone():
    before = np.random.get_state()[1].copy()
    draw_scene(1, 64)
    assert np.array_equal(before, np.random.get_state()[1])


def test_no_look_changes_the_map():
    rng = np.random.default_rng(0)
    for seed in range(25):
        plain = draw_scene(seed, look=Look())
        for _ in range(4):
            other = draw_scene(seed, look=random_look(rng))
            assert np.array_equal(plain.labels, other.labels)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("time", TIMES),
        ("season", SEASONS),
        ("weather", WEATHERS),
        ("house_colour", tuple(HOUSE_COLOURS)),
        ("car_colour", tuple(CAR_COLOURS)),
        ("boat_colour", tuple(BOAT_COLOURS)),
    ],
)
def test_every_word_of_a_look_changes_the_picture(name, values):
    seed = next(
        s for s in range(1000) if can_tell(draw_scene(s, 64).labels).get(name.removesuffix("_colour"), True)
    )
    pictures = [draw_scene(seed, 64, look=replace(Look(), **{name: value})).picture for value in values]
    for first, second in itertools.pairwise(pictures):
        assert np.abs(first.astype(int) - second).mean() > 0.1


def test_colours_stay_within_the_map_of_what_they_colour():
    """Another colour of the house changes house pixels only (and the blurred edge and mirror image of it)."""
    for seed in range(40):
        red = draw_scene(seed, look=Look(house_colour="red", car_colour="red", boat_colour="red"))
        blue = draw_scene(seed, look=Look(house_colour="blue", car_colour="blue", boat_colour="blue"))
        changed = np.abs(red.picture.astype(int) - blue.picture).max(2) > 40
        coloured = np.isin(red.labels, (Label.HOUSE, Label.CAR, Label.BOAT))
        near = cv2.dilate(coloured.astype(np.uint8), np.ones((3, 3), np.uint8)).astype(bool)
        assert not (changed & ~near & ~np.isin(red.labels, (Label.LAKE, Label.RIVER, Label.SEA))).any(), seed


def test_the_scene_is_the_same_at_every_size():
    for seed in range(6):
        small, large = draw_scene(seed, 128), draw_scene(seed, 256)
        assert (
            cv2.absdiff(
                small.picture, cv2.resize(large.picture, (128, 128), interpolation=cv2.INTER_AREA)
            ).mean()
            < 6
        )
        assert (small.labels == large.labels[::2, ::2]).mean() > 0.95


def test_the_judge_reads_drawn_scenes(scenes):
    judged = right = 0
    for scene in scenes:
        seen = judge(scene.picture, scene.labels)
        told = {name: value for name, value in scene.attributes.items() if name in seen}
        judged += 1
        right += seen == told
    assert right / judged >= 0.98


def test_the_judge_is_not_content_with_any_picture(scenes):
    for scene in scenes[:10]:
        assert judge(np.full_like(scene.picture, 255), scene.labels) != judge(scene.picture, scene.labels)
    with pytest.raises(ValueError, match="one size"):
        judge(scenes[0].picture, scenes[1].labels[:100])


def test_the_judge_says_nothing_of_the_colour_of_what_is_black(scenes):
    scene = next(scene for scene in scenes if scene.attributes.get("house"))
    with np.errstate(all="raise"):  # black has no colour to divide by
        assert judge(np.zeros_like(scene.picture), scene.labels)["house"] is None


def test_prompts_say_only_what_is_there_and_vary(scenes):
    for scene in scenes:
        for name, value in named_in(scene.prompt).items():
            assert scene.attributes[name] == value, scene.prompt
    prompts = [scene.prompt for scene in scenes]
    assert 0.03 < prompts.count("") / len(prompts) < 0.15
    assert len(set(prompts)) > 0.85 * len(prompts)
    named = Counter(name for prompt in prompts for name in named_in(prompt))
    shown = Counter(name for scene in scenes for name, value in scene.attributes.items() if value)
    for name in ("time", "season", "house", "boat", "car"):
        assert 0.3 < named[name] / shown[name] < 0.95, name  # often said, often left out


@pytest.mark.parametrize(
    ("prompt", "named"),
    [
        (
            "a red house by a lake at sunset, autumn trees",
            {"house": "red", "time": "sunset", "season": "autumn"},
        ),
        ("A Blue sailing boat at NIGHT", {"boat": "blue", "time": "night"}),
        ("two white cars covered in snow, by day", {"car": "white", "season": "winter", "time": "day"}),
        ("a house by day and by night", {}),
        ("a red sunset over a house", {"time": "sunset"}),
        ("", {}),
    ],
)
def test_what_a_prompt_asks_for(prompt, named):
    assert named_in(prompt) == named


def test_dataset_items():
    dataset = StorybookDataset(first_seed=7, count=5, size=64)
    scene, item = draw_scene(9, 64), dataset[2]
    assert len(dataset) == 5
    assert item["jpg"].dtype == item["hint"].dtype == np.float32
    assert np.array_equal(np.rint((item["jpg"] + 1) * 127.5), scene.picture)
    assert np.array_equal(np.rint(item["hint"] * 255), colorize(scene.labels))
    assert item["txt"] == scene.prompt
    drawn = dataset[Draw(2, 40)]
    assert drawn["index"] == 2
    assert drawn["noise_seed"] == dataset[Draw(2, 40)]["noise_seed"] != dataset[Draw(2, 41)]["noise_seed"]
    with pytest.raises(IndexError):
        dataset[5]


def test_dataset_crops_picture_and_map_alike_and_drops_prompts():
    whole = StorybookDataset(count=60, size=64)
    cut = StorybookDataset(count=60, size=64, crop=24, empty_prompts=0.5)
    picture, hint = whole[3]["jpg"], whole[3]["hint"]
    item = cut[3]
    places = [
        (top, left)
        for top in range(41)
        for left in range(41)
        if np.array_equal(picture[top : top + 24, left : left + 24], item["jpg"])
    ]
    assert any(np.array_equal(hint[top : top + 24, left : left + 24], item["hint"]) for top, left in places)
    assert 15 <= sum(cut[k]["txt"] == "" for k in range(60)) <= 50


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: draw_scene(-1), "seed is -1"),
        (lambda: draw_scene(0, 16), "size is 16"),
        (lambda: Look(season="monsoon"), "'monsoon'; one of spring"),
        (lambda: StorybookDataset(count=0), "count is 0"),
        (lambda: StorybookDataset(empty_prompts=2), "empty_prompts is 2"),
        (lambda: StorybookDataset(size=64, crop=65), "crop is 65"),
    ],
)
def test_wrong_values_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_written_data_set_does_not_depend_on_the_workers_and_can_be_read(tmp_path, capsys):
    for workers in (1, 2):
        main(
            [
                str(tmp_path / f"{workers}"),
                "--count",
                "20",
                "--seed",
                "40",
                "--size",
                "64",
                "--workers",
                f"{workers}",
            ]
        )
    files = sorted(path.relative_to(tmp_path / "1") for path in (tmp_path / "1").rglob("*.*"))
    assert len(files) == 41
    for file in files:
        assert (tmp_path / "1" / file).read_bytes() == (tmp_path / "2" / file).read_bytes()

    from controlnet.training.data.dataset import ControlDataset

    dataset = ControlDataset(tmp_path / "1", resolution=64)
    expected = StorybookDataset(first_seed=40, count=20, size=64)
    for index in (0, 13):
        for name in ("jpg", "hint"):
            assert np.allclose(dataset[index][name], expected[index][name], atol=1e-6)
        assert dataset[index]["txt"] == expected[index]["txt"]
    with pytest.raises(SystemExit):
        main([str(tmp_path / "1"), "--count", "1"])
    assert "exists already" in capsys.readouterr().err
    assert len(json.loads((tmp_path / "1" / "prompt.json").read_text().splitlines()[0])) == 3


DETAILED = ("person", "animal", "building", "bridge", "flower")


def test_close_ups_show_what_has_a_named_colour_and_one_thing_with_details(tmp_path, capsys):
    main([str(tmp_path / "things"), "--count", "12", "--close-ups", "only", "--workers", "1"])
    rows = [json.loads(line) for line in (tmp_path / "things" / "prompt.json").read_text().splitlines()]
    shown = [(int(seed), kind) for seed, kind in (Path(row["target"]).stem.split("_") for row in rows)]
    named = [
        (seed, kind) for seed in range(12) for kind in COLOURED if kind in named_in(draw_scene(seed).prompt)
    ]
    assert [close_up for close_up in shown if close_up[1] in COLOURED] == named
    assert len(named) > 4
    detailed = [close_up for close_up in shown if close_up[1] not in COLOURED]
    assert len({seed for seed, _ in detailed}) == len(detailed) > 4
    assert {kind for _, kind in detailed} <= set(DETAILED)
    for (seed, kind), row in zip(shown, rows, strict=True):
        picture, hint = (
            cv2.imread(str(tmp_path / "things" / row[key]))[..., ::-1] for key in ("target", "source")
        )
        scene = draw_scene(seed)
        assert picture.shape == hint.shape == (128, 128, 3)
        assert row["prompt"] == scene.prompt
        assert _is_within(picture, scene.picture)
        middle = hint[20:108, 20:108].reshape(-1, 3)
        assert (middle == colorize(np.uint8([[Label[kind.upper()]]]))[0, 0]).all(1).mean() > 0.02
    main([str(tmp_path / "both"), "--count", "12", "--close-ups", "too", "--workers", "1"])
    both = [
        json.loads(line)["target"] for line in (tmp_path / "both" / "prompt.json").read_text().splitlines()
    ]
    whole = [f"target/{seed}.png" for seed in range(12)]
    assert both == sorted([*whole, *(row["target"] for row in rows)], key=lambda name: _order(name))
    for row in rows:
        assert (tmp_path / "both" / row["target"]).read_bytes() == (
            tmp_path / "things" / row["target"]
        ).read_bytes()


def _order(name):
    seed, *kind = Path(name).stem.split("_")
    return int(seed), (*COLOURED, *DETAILED).index(kind[0]) if kind else -1


def _is_within(part, whole):
    """Whether a window of ``whole`` equals ``part``, both uint8 ``[H, W, 3]``."""
    height, width = part.shape[:2]
    windows = np.lib.stride_tricks.sliding_window_view(whole, part.shape)[:, :, 0]  # [Y, X, H, W, 3]
    fits = np.ones(windows.shape[:2], bool)
    for row, column in itertools.product(range(0, height, 16), range(0, width, 16)):  # few windows stay
        fits &= (windows[:, :, row, column] == part[row, column]).all(-1)
    return any(np.array_equal(window, part) for window in windows[fits])
