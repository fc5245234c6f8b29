"""An endless picture book: scenes with their exact maps and prompts, for the embedded model to learn.

``python -m controlnet.storybook.dataset OUT --count N`` writes a data set that ``tutorial_train.py`` reads.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from tqdm import tqdm

from annotator.ade20k import colorize
from controlnet.storybook.scenes.judge import can_tell
from controlnet.storybook.scenes.labels import Label
from controlnet.storybook.scenes.layout import Thing, compose
from controlnet.storybook.scenes.looks import Look, random_look
from controlnet.storybook.scenes.painter import paint
from controlnet.storybook.scenes.people import joints
from controlnet.storybook.scenes.prompts import COLOURED, NOUNS, describe, named_in
from ldm.atomic import atomic_write

_KIND_LABELS = {
    "sheep": Label.ANIMAL, "cow": Label.ANIMAL, "pine": Label.TREE, "road_away": Label.ROAD,
    "car_behind": Label.CAR,
}  # fmt: skip
_SPOKEN = {"pine": "tree", "road_away": "road", "car_behind": "car"}


_DETAILED = (Label.PERSON, Label.ANIMAL, Label.BUILDING, Label.BRIDGE, Label.FLOWER)
CLOSE_UPS = ("none", "only", "too")
HELD_OUT_SEED = 1_000_000_000
"""Scenes from this seed on are for evaluation: no training step draws them."""


@dataclass(frozen=True)
class Scene:
    """A picture with everything that is known of it.

    Attributes:
        picture: uint8 RGB ``[size, size, 3]``.
        labels: ADE20K index of every pixel, uint8 ``[size, size]``.
        depth: inverse depth of every pixel, float32 ``[size, size]``: 0 is the sky, 1 the ground at the lower
            edge; a thing is as near as the ground at its foot.
        people: keypoints of every person, also of those behind something, in the order of OpenPose, float64
            ``[people, 18, 2]``: x and y as shares of the picture's side.
        prompt: how a person might describe it; sometimes empty.
        attributes: ``time``, ``season``, ``weather``, and the colours of ``house``, ``car`` and ``boat``;
            None for what is not in the picture, or too small to judge.
    """

    picture: np.ndarray
    labels: np.ndarray
    depth: np.ndarray
    people: np.ndarray
    prompt: str
    attributes: dict[str, str | None]


def draw_scene(seed: int, size: int = 256, *, look: Look | None = None) -> Scene:
    """Draw the scene that a seed stands for.

    Args:
        seed: 0 or more; the same one gives the same scene in any process, for one version of NumPy and
            OpenCV.
        size: side of the picture in pixels; the scene is the same at every size.
        look: light, season, weather and colours instead of the seed's own. The map does not depend on it.

    Raises:
        ValueError: if ``seed`` is negative or ``size`` is below 32.
    """
    if seed < 0:
        raise ValueError(f"seed is {seed}; 0 or more is wanted.")
    if size < 32:
        raise ValueError(f"size is {size}; 32 or more is wanted.")
    place, things = compose(np.random.default_rng((seed, 0)))
    look = look or random_look(np.random.default_rng((seed, 1)))
    picture, labels, depth = paint(things, look, size)
    attributes = _attributes(look, labels)
    prompt = describe(np.random.default_rng((seed, 2)), place, _counts(things, labels), attributes)
    people = [joints(thing) for thing in things if thing.kind == "person"]
    return Scene(picture, labels, depth, np.reshape(people, (-1, 18, 2)), prompt, attributes)


def draw_prompts(seed: int, count: int) -> list[str]:
    """``count`` prompts for the layout that a seed stands for, each with a look and a wording of its own."""
    place, things = compose(np.random.default_rng((seed, 0)))
    prompts = []
    for variant in range(count):
        random = np.random.default_rng((seed, 3, variant))
        look = random_look(random)
        if not variant:
            _, labels, _ = paint(things, look, 64)  # the look does not change the map
            counts = _counts(things, labels)
        prompts.append(describe(random, place, counts, _attributes(look, labels)))
    return prompts


def _counts(things: Sequence[Thing], labels: np.ndarray) -> dict[str, int]:
    """How many of each kind there are, of those that are large enough to be spoken of."""
    share = np.bincount(labels.ravel(), minlength=256) / labels.size
    counts = Counter(_SPOKEN.get(thing.kind, thing.kind) for thing in things)
    return {kind: count for kind, count in counts.items() if kind in NOUNS and share[_label_of(kind)] > 0.004}


def _label_of(kind: str) -> Label:
    return _KIND_LABELS[kind] if kind in _KIND_LABELS else Label[kind.upper()]


def _attributes(look: Look, labels: np.ndarray) -> dict[str, str | None]:
    shown = {
        "time": look.time,
        "season": look.season,
        "house": look.house_colour,
        "car": look.car_colour,
        "boat": look.boat_colour,
    }
    told = can_tell(labels)
    return {name: value if told[name] else None for name, value in shown.items()} | {"weather": look.weather}


class StorybookDataset:
    """Scenes ``first_seed`` to ``first_seed + count - 1``, drawn when they are asked for: nothing is kept on
    disk.

    Items are those of ``controlnet.training.data.dataset.ControlDataset``, and it takes the same place in
    ``make_loader``. This module does without torch, so that processes which only draw start at once.

    Args:
        first_seed: seed of item 0. Training keeps below ``HELD_OUT_SEED``.
        count: number of items.
        size: side of the pictures in pixels.
        empty_prompts: share of prompts, in [0, 1], that are dropped beside those that are empty anyway.
        crop: side of a random crop, for training an autoencoder; None keeps the whole picture.
        seed: of dropped prompts, crops and noise.
    """

    def __init__(
        self,
        first_seed: int = 0,
        count: int = 1_000_000,
        size: int = 256,
        empty_prompts: float = 0.0,
        crop: int | None = None,
        seed: int = 0,
    ) -> None:
        if count < 1:
            raise ValueError(f"count is {count}; 1 or more is wanted.")
        if not 0 <= empty_prompts <= 1:
            raise ValueError(f"empty_prompts is {empty_prompts}; a share from 0 to 1 is wanted.")
        if crop is not None and not 8 <= crop <= size:
            raise ValueError(f"crop is {crop}; 8 to the size of the pictures ({size}) is wanted.")
        self.first_seed, self.count, self.size = first_seed, count, size
        self.empty_prompts, self.crop, self.seed = empty_prompts, crop, seed

    def __len__(self) -> int:
        return self.count

    def describe(self, index: int) -> str:
        """What an item is made of, for messages."""
        return f"storybook scene of seed {self.first_seed + index}"

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Any]:
        """One item.

        Args:
            key: an index, or a ``controlnet.training.data.dataset.Draw`` (index, position) of the training
                stream; an index alone is its own position.

        Returns:
            ``jpg`` float32 ``[H, W, 3]`` RGB in [-1, 1]; ``hint`` float32 ``[H, W, 3]`` RGB in [0, 1], the
            map in the colours of ADE20K; ``txt``. For a ``Draw`` also ``index`` and ``noise_seed``, integers.
        """
        index, position = key if isinstance(key, tuple) else (key, key)
        if not 0 <= index < self.count:
            raise IndexError(f"item {index} of {self.count}")
        random = np.random.default_rng((self.seed, position))
        scene = draw_scene(self.first_seed + index, self.size)
        side = self.crop or self.size
        top, left = (int(random.integers(self.size - side + 1)) for _ in range(2))
        window = (slice(top, top + side), slice(left, left + side))
        item: dict[str, Any] = {
            "jpg": scene.picture[window].astype(np.float32) / 127.5 - 1,
            "hint": colorize(scene.labels[window]).astype(np.float32) / 255,
            "txt": "" if random.random() < self.empty_prompts else scene.prompt,
        }
        if isinstance(key, tuple):
            item |= {"index": index, "noise_seed": int(random.integers(2**63))}
        return item


def write_dataset(
    folder: Path, count: int, seed: int = 0, size: int = 256, workers: int = 1, close_ups: str = "none"
) -> None:
    """Write scenes ``seed`` to ``seed + count - 1``: ``source/`` (maps), ``target/`` (pictures) and
    ``prompt.json``.

    Close-ups are windows of half the side around each house, car and boat whose colour the prompt names, and
    around one person, animal, building, bridge or flower bed. From them a network learns colours and details
    sooner: in a whole scene they are a small part of the loss.
    ``close_ups`` is "none"; "only", instead of the scenes; or "too", after each scene its close-ups.

    The same seeds give the same bytes, whatever the number of workers. ``prompt.json`` is written last, so a
    folder that is not complete is never taken for a data set.

    Raises:
        ValueError: the folder holds a ``prompt.json``; ``count`` or ``workers`` is below 1, or ``close_ups``
            unknown.
    """
    if close_ups not in CLOSE_UPS:
        raise ValueError(f"close_ups is {close_ups!r}; one of {', '.join(CLOSE_UPS)} is wanted.")
    if count < 1 or workers < 1:
        raise ValueError(f"count is {count} and workers {workers}; 1 or more are wanted.")
    index = folder / "prompt.json"
    if index.exists():
        raise ValueError(f"{index} exists already; choose another folder or remove that one.")
    for name in ("source", "target"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    draw = partial(_write_scene, folder, size, close_ups)
    seeds = range(seed, seed + count)
    if workers == 1:
        lines = _with_progress(map(draw, seeds), count)
    else:
        fresh = get_context("spawn")  # OpenCV's threads do not survive a fork
        with ProcessPoolExecutor(workers, fresh, cv2.setNumThreads, (1,)) as pool:
            lines = _with_progress(pool.map(draw, seeds, chunksize=16), count)
    with atomic_write(index) as unfinished:
        unfinished.write_text("".join(lines), encoding="utf-8")


def _with_progress(lines: Iterable[str], count: int) -> list[str]:
    return list(tqdm(lines, total=count, unit="scene"))


def _write_scene(folder: Path, size: int, close_ups: str, seed: int) -> str:
    """Returns the lines for ``prompt.json``."""
    scene = draw_scene(seed, size)
    windows = {} if close_ups == "only" else {"": (slice(None), slice(None))}
    if close_ups != "none":
        windows |= _close_ups(scene, seed)
    lines = []
    for suffix, window in windows.items():
        name = f"{seed}{suffix}.png"
        for kind, picture in (("source", colorize(scene.labels)), ("target", scene.picture)):
            path = folder / kind / name
            if not cv2.imwrite(str(path), picture[window][..., ::-1]):
                raise OSError(f"{path} could not be written.")
        lines.append(
            json.dumps({"source": f"source/{name}", "target": f"target/{name}", "prompt": scene.prompt})
        )
    return "".join(f"{line}\n" for line in lines)


def _close_ups(scene: Scene, seed: int) -> dict[str, tuple[slice, slice]]:
    """Windows around things, not quite in the middle, by a suffix for their files.

    One around each coloured thing that the prompt names, and one around something else that has details.
    """
    random = np.random.default_rng((seed, 4))
    named = named_in(scene.prompt)
    wanted = [kind for kind in COLOURED if kind in named and scene.attributes[kind]]
    windows = {f"_{kind}": _window(scene.labels, _label_of(kind), random) for kind in wanted}
    share = np.bincount(scene.labels.ravel(), minlength=256) / scene.labels.size
    detailed = [label for label in _DETAILED if share[label] > 0.004]
    if detailed:
        label = detailed[int(random.integers(len(detailed)))]
        windows[f"_{label.name.lower()}"] = _window(scene.labels, label, random)
    return windows


def _window(labels: np.ndarray, label: Label, random: np.random.Generator) -> tuple[slice, slice]:
    """Half of the side around the largest part of a class."""
    side = len(labels) // 2
    _, _, boxes, centres = cv2.connectedComponentsWithStats((labels == label).astype(np.uint8))
    centre = centres[1 + boxes[1:, cv2.CC_STAT_AREA].argmax()]  # (x, y); 0 is the background
    corner = centre - side / 2 + random.uniform(-side / 6, side / 6, 2)
    left, top = np.clip(corner.round().astype(int), 0, len(labels) - side).tolist()
    return slice(top, top + side), slice(left, left + side)


def main(arguments: list[str] | None = None) -> None:
    """Command line of ``python -m controlnet.storybook.dataset``."""
    parser = argparse.ArgumentParser(
        prog="python -m controlnet.storybook.dataset",
        description="Write scenes as a data set: maps, pictures and prompts.",
    )
    parser.add_argument("folder", type=Path, help="where to write")
    parser.add_argument("--count", type=int, default=1000, help="number of scenes (default 1000)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first scene (default 0)")
    parser.add_argument("--size", type=int, default=256, help="side of a picture in pixels (default 256)")
    parser.add_argument(
        "--close-ups", choices=CLOSE_UPS, default="none", help="windows around what has a colour"
    )
    parser.add_argument("--workers", type=int, default=2, help="processes (default 2)")
    options = parser.parse_args(arguments)
    try:
        write_dataset(
            options.folder, options.count, options.seed, options.size, options.workers, options.close_ups
        )
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
