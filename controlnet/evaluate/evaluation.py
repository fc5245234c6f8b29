"""How well a model keeps to map and prompt, measured on cases that it never saw; see ``tool_evaluate.py``.

Every picture is made from a map and a prompt, the detector finds the map of what came out, and the two maps
are compared. A score of the detector itself, on the cases' own pictures, says what a perfect model could
reach. Whether a picture agrees with its prompt is left to judges, which the cases bring along.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torchmetrics.image import PeakSignalNoiseRatio
from tqdm import tqdm

from annotator.ade20k import CLASSES, colorize, labels_from_colors
from annotator.uniformer import SegmentationDetector
from annotator.util import resize_image
from cldm.cldm import ControlLDM
from controlnet.evaluate.scores import MeanIoU
from controlnet.generation.samplers import DEFAULT_SAMPLER
from controlnet.generation.sampling import (
    WHOLE_RUN,
    control_scales,
    guided_conditions,
    sample_latents,
    to_uint8,
)
from controlnet.pictures import read_picture
from controlnet.training.data.records import HINT_KINDS, read_hint, read_records

Judge = Callable[[np.ndarray], Mapping[str, bool]]
"""Whether a picture, uint8 RGB ``[H, W, 3]``, agrees with a prompt, for each aspect that can be told, such as
``season``."""


@dataclass(frozen=True, eq=False)
class Case:
    """What a model is asked for, and what was there.

    Attributes:
        picture: uint8 RGB ``[H, W, 3]``.
        labels: its map, uint8 ``[H, W]``.
        prompt: what it shows.
        judge: tells whether another picture agrees with the prompt; without one, nothing is said of that.
    """

    picture: np.ndarray
    labels: np.ndarray
    prompt: str
    judge: Judge | None = None

    def agreement(self, picture: np.ndarray) -> Mapping[str, bool]:
        """The judge's verdict on a picture."""
        return self.judge(picture) if self.judge else {}


@dataclass(frozen=True)
class Sampling:
    """How pictures are made: ``steps`` of a ``sampler``, guidance ``scale`` in ``guidance_interval`` of the
    run, ``batch_size``, and the ``seed`` of the first one's noise; the next one has the next seed, whatever
    the batches."""

    steps: int = 20
    scale: float = 4.0
    batch_size: int = 8
    seed: int = 0
    sampler: str = DEFAULT_SAMPLER
    guidance_interval: tuple[float, float] = WHOLE_RUN


@dataclass
class Report:
    """The scores, and the pictures they are of (uint8 RGB, by number of the case) for a grid."""

    scores: dict[str, Any]
    generated: dict[int, np.ndarray] = field(default_factory=dict)


def read_cases(folder: Path, count: int | None, size: int, hint_kind: str = "color-map") -> list[Case]:
    """The first ``count`` of a data set that ``tutorial_train.py`` could read, with a short side of about
    ``size``.

    Raises:
        ValueError: a data set or map that cannot be read; ``hint_kind`` "picture", which is no map.
    """
    if hint_kind not in HINT_KINDS[1:]:
        raise ValueError(
            f"Hints of kind {hint_kind!r} are no maps; one of {', '.join(HINT_KINDS[1:])} is wanted."
        )
    cases = []
    for record in read_records(folder)[:count]:
        if record.source is None:
            raise ValueError(f"{folder}: line {record.line} names no map.")
        picture = resize_image(read_picture(record.target), size)
        labels = labels_from_colors(read_hint(record.source, hint_kind))
        height, width = picture.shape[:2]
        labels = cv2.resize(labels, (width, height), interpolation=cv2.INTER_NEAREST)
        cases.append(Case(picture, labels, record.prompt))
    return cases


def batches_of(cases: Sequence[Case], most: int) -> Iterator[list[int]]:
    """Indices of consecutive cases of one size, in groups of at most ``most``."""
    batch: list[int] = []
    for index, case in enumerate(cases):
        if batch and (len(batch) == most or case.labels.shape != cases[batch[0]].labels.shape):
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


@torch.inference_mode()
def generate(
    model: ControlLDM, cases: Sequence[Case], seeds: Sequence[int], sampling: Sampling, strength: float = 1.0
) -> np.ndarray:
    """Make a picture for each case: uint8 RGB ``[N, H, W, 3]``.

    Args:
        model: in eval mode, on its device.
        cases: all of one size, a multiple of 64.
        seeds: of each picture's noise.
        sampling: steps and guidance.
        strength: factor of the control; 0 leaves the prompt alone.
    """
    maps = np.stack([colorize(case.labels) for case in cases])
    prompts, negative_prompts = [case.prompt for case in cases], [""] * len(cases)
    scales = control_scales(strength, len(model.control_scales))
    cond, uncond = guided_conditions(model, maps, prompts, negative_prompts, scales)
    noise = [torch.Generator(model.device).manual_seed(seed) for seed in seeds]
    latents = sample_latents(
        model,
        cond,
        uncond,
        steps=sampling.steps,
        scale=sampling.scale,
        generator=noise,
        sampler=sampling.sampler,
        guidance_interval=sampling.guidance_interval,
    )
    return to_uint8(model.decode_first_stage(latents))


def generate_all(
    model: ControlLDM, cases: Sequence[Case], sampling: Sampling, strength: float = 1.0, progress: bool = True
) -> Iterator[tuple[int, np.ndarray]]:
    """(number, picture) of every case, in order."""
    what = "with control" if strength else "without control"
    with tqdm(total=len(cases), desc=f"Generating {what}", unit="picture", disable=not progress) as bar:
        for batch in batches_of(cases, sampling.batch_size):
            seeds = [sampling.seed + index for index in batch]
            yield from zip(
                batch, generate(model, [cases[i] for i in batch], seeds, sampling, strength), strict=True
            )
            bar.update(len(batch))


def detector_score(detector: SegmentationDetector, cases: Sequence[Case]) -> dict[str, Any]:
    """``detector_miou``, and the score of each class by name."""
    score = MeanIoU()
    for batch in batches_of(cases, 8):
        found = detector.labels_of([cases[index].picture for index in batch])
        score.update(np.stack(found), np.stack([cases[index].labels for index in batch]))
    return {"detector_miou": float(score.compute()), "detector_iou": by_name(score)}


@torch.inference_mode()
def vae_psnr(model: ControlLDM, cases: Sequence[Case]) -> float:
    """Mean over the cases' pictures of the PSNR of encode -> decode, in dB; the latent is the posterior's
    mean.
    """
    score = PeakSignalNoiseRatio(data_range=255.0, dim=(1, 2, 3), reduction="elementwise_mean")
    for batch in batches_of(cases, 4):
        pictures = np.stack([cases[index].picture for index in batch])
        x = torch.from_numpy(pictures).permute(0, 3, 1, 2).to(model.device).float() / 127.5 - 1
        decoded = to_uint8(model.first_stage_model.decode(model.first_stage_model.encode(x).mode()))
        score.update(torch.from_numpy(decoded).float(), torch.from_numpy(pictures).float())
    return float(score.compute())


def prompt_scores(answers: Sequence[Mapping[str, bool]]) -> dict[str, Any]:
    """``prompt_accuracy``, the share of pictures that agree with their prompts in all aspects (None where no
    judge could tell any), and the shares of each aspect as ``prompt_accuracy_of``."""
    told = [all(answer.values()) for answer in answers if answer]
    aspects = sorted({name for answer in answers for name in answer})
    shares = {name: [answer[name] for answer in answers if name in answer] for name in aspects}
    return {
        "prompt_accuracy": sum(told) / len(told) if told else None,
        "prompt_accuracy_of": {name: round(sum(share) / len(share), 4) for name, share in shares.items()},
    }


def seconds_per_image(model: ControlLDM, case: Case, sampling: Sampling) -> float:
    """Time of one picture alone, its steps with guidance and decoding, after one to warm up."""
    alone = replace(sampling, scale=max(sampling.scale, 1.1), batch_size=1)
    for _ in range(2):
        started = time.perf_counter()
        generate(model, [case], [0], alone)
    return time.perf_counter() - started


def by_name(score: MeanIoU) -> dict[str, float]:
    """Score of each class that occurs, by its name."""
    return {CLASSES[label]: round(iou, 4) for label, iou in score.per_class().items()}


def evaluate(
    model: ControlLDM,
    detector: SegmentationDetector,
    cases: Sequence[Case],
    sampling: Sampling,
    keep: int = 0,
    progress: bool = True,
) -> Report:
    """All scores of a model on some cases.

    Args:
        model: a ``ControlLDM`` in eval mode.
        detector: finds the maps of pictures, with ADE20K's classes.
        cases: what is asked for, with judges of the prompts or without.
        sampling: how pictures are made.
        keep: how many generated pictures to keep in the report.
        progress: show progress bars.

    Returns:
        A report with ``detector_miou``, ``control_miou``, ``control_ratio``, ``uncontrolled_miou``,
        `prompt_scores`, ``vae_psnr`` in dB and ``seconds_per_image``, besides the scores of single classes.

    Raises:
        ValueError: no cases.
    """
    if not cases:
        raise ValueError("There is nothing to evaluate: no cases.")
    report = Report(detector_score(detector, cases))
    scores = report.scores
    controlled, free, agreements = MeanIoU(), MeanIoU(), []
    for index, picture in generate_all(model, cases, sampling, 1.0, progress):
        controlled.update(detector.labels(picture), cases[index].labels)
        agreements.append(cases[index].agreement(picture))
        if index < keep:
            report.generated[index] = picture
    for index, picture in generate_all(model, cases, sampling, 0.0, progress):
        free.update(detector.labels(picture), cases[index].labels)
    scores["control_miou"] = float(controlled.compute())
    scores["control_ratio"] = scores["control_miou"] / max(scores["detector_miou"], 1e-9)
    scores["uncontrolled_miou"] = float(free.compute())
    scores |= prompt_scores(agreements)
    scores["vae_psnr"] = vae_psnr(model, cases)
    scores["seconds_per_image"] = seconds_per_image(model, cases[0], sampling)
    scores["control_iou"] = by_name(controlled)
    return report
