"""How well a model keeps to map and prompt, measured on cases that it never saw; see ``tool_evaluate.py``.

Every picture is made from a hint and a prompt, the detector finds the map of what came out, and that is
compared with the map of what was asked for, which is known whatever the hint is. A score of the detector
itself, on the cases' own pictures, says what a perfect model could reach. Whether a picture agrees with its
prompt is left to judges, which the cases bring along.
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
from cldm.cldm import ControlLDM, ControlNet
from controlnet.conditions import DEFAULT, Condition, Hint, find_condition
from controlnet.evaluate.scores import MeanIoU
from controlnet.generation.request import default_detect_resolution
from controlnet.generation.samplers import DEFAULT_SAMPLER
from controlnet.generation.sampling import (
    WHOLE_RUN,
    guided_conditions,
    sample_latents,
    to_uint8,
)
from controlnet.generation.several_run import control_factors
from controlnet.generation.words import regional_rows
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
        draw_hint: gives a condition's hint at the picture's size, where more is known than the picture shows;
            without, the condition's detector finds it.
        control: what steers, uint8 RGB ``[H, W, 3]``; without, the map in its colours.
        class_prompts: prompts for classes of the map, by name.
    """

    picture: np.ndarray
    labels: np.ndarray
    prompt: str
    judge: Judge | None = None
    draw_hint: Callable[[Condition], Hint] | None = None
    control: np.ndarray | None = None
    class_prompts: Mapping[str, str] = field(default_factory=dict)

    def agreement(self, picture: np.ndarray) -> Mapping[str, bool]:
        """The judge's verdict on a picture."""
        return self.judge(picture) if self.judge else {}

    @property
    def steering(self) -> np.ndarray:
        """What the network sees, uint8 RGB ``[H, W, 3]``."""
        return colorize(self.labels) if self.control is None else self.control

    def hint(self, condition: Condition) -> Hint:
        """The hint of this case, at the picture's size: of the segmentation the map itself."""
        if condition.name == DEFAULT:
            return self.labels
        return self.draw_hint(condition) if self.draw_hint else detected_hint(condition, self.picture)


def detected_hint(condition: Condition, picture: np.ndarray) -> Hint:
    """What the condition's detector finds in a picture, as the page does it for results of this size."""
    side = min(picture.shape[:2])
    return condition.hint(picture, side, default_detect_resolution(condition, side))


@dataclass(frozen=True)
class Sampling:
    """How pictures are made: ``steps`` of a ``sampler``, guidance ``scale`` in ``guidance_interval`` of the
    run, ``batch_size``, and the ``seed`` of the first one's noise; the next one has the next seed, whatever
    the batches. ``network`` steers instead of the model's own control, in one of ``several.MODES``."""

    steps: int = 20
    scale: float = 4.0
    batch_size: int = 8
    seed: int = 0
    network: ControlNet | None = None
    sampler: str = DEFAULT_SAMPLER
    guidance_interval: tuple[float, float] = WHOLE_RUN
    control_mode: str = "balanced"


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
    hints = np.stack([case.steering for case in cases])
    prompts, negative_prompts = [case.prompt for case in cases], [""] * len(cases)
    outputs = len(model.control_scales)
    scales, share = control_factors(sampling.control_mode, strength, outputs, sampling.scale)
    height, width = hints.shape[1:3]
    cond, uncond = guided_conditions(
        model, hints, prompts, negative_prompts, scales, sampling.network, unconditional=share,
        regional=regional_rows(
            model, [case.class_prompts for case in cases], [case.labels for case in cases],
            (height // 8, width // 8),
        ),
    )  # fmt: skip
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
def vae_scores(model: ControlLDM, cases: Sequence[Case]) -> dict[str, float]:
    """``vae_psnr``, the mean over the cases' pictures of the PSNR of encode -> decode in dB, the latent being
    the posterior's mean; and ``vae_edge_psnr``, that of the steps between neighbours, which blur lowers most.
    """
    whole, edges = (
        PeakSignalNoiseRatio(data_range=255.0, dim=(1, 2, 3), reduction="elementwise_mean") for _ in range(2)
    )
    for batch in batches_of(cases, 4):
        pictures = torch.from_numpy(np.stack([cases[index].picture for index in batch])).float()
        x = pictures.permute(0, 3, 1, 2).to(model.device) / 127.5 - 1
        latent = model.first_stage_model.encode(x).mode()
        decoded = torch.from_numpy(to_uint8(model.first_stage_model.decode(latent))).float()
        whole.update(decoded, pictures)
        edges.update(_steps(decoded), _steps(pictures))
    return {"vae_psnr": float(whole.compute()), "vae_edge_psnr": float(edges.compute())}


def _steps(pictures: torch.Tensor) -> torch.Tensor:
    """Differences of neighbours, down and across: ``[N, H, W, 3]`` -> ``[N, H - 1, W - 1, 6]``."""
    down, across = pictures.diff(dim=1)[:, :, 1:], pictures.diff(dim=2)[:, 1:]
    return torch.cat([down, across], dim=3)


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


def with_hints(cases: Sequence[Case], condition: Condition, hints: Sequence[Hint] = ()) -> list[Case]:
    """The cases, steered by a condition: by these hints, or by their own."""
    hints = hints or [case.hint(condition) for case in cases]
    return [replace(case, control=condition.control(hint)) for case, hint in zip(cases, hints, strict=True)]


def steered(
    model: ControlLDM,
    detector: SegmentationDetector,
    cases: Sequence[Case],
    sampling: Sampling,
    condition: Condition,
    keep: int = 0,
    progress: bool = True,
    second: SegmentationDetector | None = None,
) -> Report:
    """Scores of pictures that a condition's hints steer; arguments as of `evaluate`.

    Returns:
        A report with ``control_miou`` by the map of each case, `prompt_scores`, ``adherence`` (what the
        condition itself says of picture and hint: the mean agreement, in [0, 1]; None where it cannot be
        told) and ``control_iou`` of single classes. With a ``second`` detector also what that one says,
        ``second_control_miou``, and ``verdict_agreement``, the share of pixels where both say the same.
    """
    hints = [case.hint(condition) for case in cases]
    cases = with_hints(cases, condition, hints)
    is_measured = condition.is_measured and not condition.missing_weights()
    report, found, agreements, adherence = Report({}), MeanIoU(), [], []
    found_again, verdicts = MeanIoU(), []
    for index, picture in generate_all(model, cases, sampling, 1.0, progress):
        labels = detector.labels(picture)
        found.update(labels, cases[index].labels)
        if second is not None:
            again = second.labels(picture)
            found_again.update(again, cases[index].labels)
            verdicts.append(float((labels == again).mean()))
        agreements.append(cases[index].agreement(picture))
        score = condition.score(hints[index], detected_hint(condition, picture)) if is_measured else None
        adherence += [] if score is None else [score.agreement]
        if index < keep:
            report.generated[index] = picture
    report.scores["control_miou"] = float(found.compute())
    report.scores |= prompt_scores(agreements)
    report.scores["adherence"] = float(np.mean(adherence)) if adherence else None
    report.scores["control_iou"] = by_name(found)
    if second is not None:
        report.scores["second_control_miou"] = float(found_again.compute())
        report.scores["verdict_agreement"] = float(np.mean(verdicts))
    return report


def evaluate(
    model: ControlLDM,
    detector: SegmentationDetector,
    cases: Sequence[Case],
    sampling: Sampling,
    condition: Condition | None = None,
    keep: int = 0,
    progress: bool = True,
    second: SegmentationDetector | None = None,
) -> Report:
    """All scores of a model on some cases.

    Args:
        model: a ``ControlLDM`` in eval mode.
        detector: finds the maps of pictures, with ADE20K's classes.
        cases: what is asked for, with judges of the prompts or without.
        sampling: how pictures are made.
        condition: whose hints steer; by default the segmentation's, with this detector.
        keep: how many generated pictures to keep in the report.
        progress: show progress bars.
        second: another detector, which judges the first one's verdict.

    Returns:
        A report with ``detector_miou``, ``control_ratio``, ``uncontrolled_miou``, `vae_scores` and
        ``seconds_per_image``, what `steered` says, and the scores of single classes. With a second detector
        also its ``second_detector_miou`` and ``second_control_ratio``.

    Raises:
        ValueError: no cases.
    """
    if not cases:
        raise ValueError("There is nothing to evaluate: no cases.")
    condition = condition or find_condition(DEFAULT)(detector)
    report = steered(model, detector, cases, sampling, condition, keep, progress, second)
    by_class = report.scores.pop("control_iou")
    scores = report.scores = detector_score(detector, cases) | report.scores
    free = MeanIoU()
    for index, picture in generate_all(model, cases, sampling, 0.0, progress):
        free.update(detector.labels(picture), cases[index].labels)
    scores["control_ratio"] = scores["control_miou"] / max(scores["detector_miou"], 1e-9)
    if second is not None:
        scores["second_detector_miou"] = detector_score(second, cases)["detector_miou"]
        share = scores["second_control_miou"] / max(scores["second_detector_miou"], 1e-9)
        scores["second_control_ratio"] = share
    scores["uncontrolled_miou"] = float(free.compute())
    scores |= vae_scores(model, cases)
    scores["seconds_per_image"] = seconds_per_image(model, cases[0], sampling)
    scores["control_iou"] = by_class
    return report
