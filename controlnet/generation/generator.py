"""Request -> pictures: the one function under every front end (the original's
``gradio_seg2image.process``).
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Protocol

import cv2
import numpy as np
import torch
from torch import Tensor

from annotator.ade20k import colorize
from annotator.util import resize_image
from cldm.cldm import ControlLDM
from cldm.ddim_hacked import DDIMSampler
from controlnet.conditions.seg.adherence import Adherence, measure_adherence
from controlnet.generation.memory import MemorySaver, attempt, smaller_sizes
from controlnet.generation.png import metadata_text
from controlnet.generation.request import Request, RequestError

logger = logging.getLogger(__name__)

GUESS_MODE_DECAY = 0.825
PREVIEW_SIDE = 16  # latent pixels: a preview costs at most (16 / 64)² of decoding a 512x512 picture


class GenerationError(RuntimeError):
    """A run that failed for a reason worth telling the user in one line."""


class Cancelled(Exception):
    """The run was stopped because ``should_stop`` said so."""


class Detector(Protocol):
    """``annotator.uniformer.UniformerDetector``, or anything with its ``labels``."""

    def labels(self, picture: np.ndarray) -> np.ndarray:
        """uint8 RGB ``[H, W, 3]`` -> uint8 class indices ``[H, W]``."""
        ...


@dataclass(frozen=True, eq=False)
class Step:
    """One finished sampling step. ``preview()`` decodes its latents small: uint8 RGB ``[N, h, w, 3]``."""

    index: int
    total: int
    preview: Callable[[], np.ndarray]


@dataclass(frozen=True, eq=False)
class Result:
    """What came of a request.

    ``request`` has a definite seed. ``pictures`` are uint8 RGB ``[H, W, 3]``, ``labels`` the map at their
    size, uint8 ``[H, W]``. ``adherence`` has one entry a picture, or none if it was not measured.
    """

    request: Request
    pictures: tuple[np.ndarray, ...]
    labels: np.ndarray
    adherence: tuple[Adherence, ...] = ()
    seconds: float = 0.0
    model: str = ""

    @cached_property
    def map(self) -> np.ndarray:
        """The map in colours, uint8 RGB ``[H, W, 3]``."""
        return colorize(self.labels)

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seed of each picture."""
        return self.request.seeds

    def metadata(self, index: int) -> str:
        """The text that picture ``index`` carries when it is saved."""
        return metadata_text(self.request, self.labels, index, self.model)


@dataclass
class Generator:
    """A model and a detector, and one job at a time on them.

    Args:
        model: a ``ControlLDM`` in eval mode, on its device.
        detector: turns pictures into class indices; used for maps and for measuring adherence.
        name: of the model, as it is written into saved pictures.
        resolution: the short side the model was trained at.
        save_memory: compute attention in slices, and keep only the networks at work on the device.
        device: where the networks work; the model's own by default.
        guidance: the scale that a page offers first.
    """

    model: ControlLDM
    detector: Detector
    name: str = ""
    resolution: int = 512
    save_memory: bool = False
    device: torch.device | None = None
    guidance: float = 9.0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def __post_init__(self):
        self.device = torch.device(self.device or self.model.device)

    def detect(self, picture: np.ndarray, detect_resolution: int = 512) -> np.ndarray:
        """uint8 RGB ``[H, W, 3]`` -> class indices, uint8, at the size the detector saw."""
        with self._lock:
            return self._detect(picture, detect_resolution)

    def generate(
        self,
        request: Request,
        *,
        measure: bool = False,
        on_step: Callable[[Step], None] | None = None,
        should_stop: Callable[[], bool] | None = None,
    ) -> Result:
        """Carry out a request. Jobs of several threads wait for each other; none shares random numbers with
        another.

        Args:
            request: what to make.
            measure: run the detector on each result and report the adherence.
            on_step: called after every sampling step, on the calling thread.
            should_stop: asked after every step; True ends the run.

        Raises:
            Cancelled: ``should_stop`` said so.
            GenerationError: latents that are not finite, or a size that memory does not hold.
        """
        request = request.with_seed()
        with self._lock:
            started = time.perf_counter()
            labels = self._labels(request)
            pictures = self._draw(request, labels, _Watcher(on_step, should_stop))
            adherence = (
                tuple(self._adherence(request, labels, picture) for picture in pictures) if measure else ()
            )
            seconds = time.perf_counter() - started
        return Result(request, tuple(pictures), labels, adherence, seconds, self.name)

    def _detect(self, picture: np.ndarray, resolution: int) -> np.ndarray:
        return self.detector.labels(resized(picture, resolution))

    def _labels(self, request: Request) -> np.ndarray:
        """The map at the size of the result, uint8 ``[H, W]``."""
        labels = request.map
        if labels is None:
            labels = self._detect(request.input_image, request.detect_resolution)
        return fit_map(labels, request)

    def _adherence(self, request: Request, labels: np.ndarray, picture: np.ndarray) -> Adherence:
        found = self._detect(picture, request.detect_resolution)
        height, width = labels.shape
        return measure_adherence(labels, cv2.resize(found, (width, height), interpolation=cv2.INTER_NEAREST))

    def _draw(self, request: Request, labels: np.ndarray, watcher: _Watcher) -> np.ndarray:
        """Sample and decode: uint8 RGB ``[N, H, W, 3]``. Out of memory, once more with all that saves
        some.
        """
        pictures = attempt(lambda: self._sample(request, labels, watcher, self.save_memory))
        if pictures is None:
            logger.warning("Out of memory; trying once more with sliced attention and a tiled decoder.")
            pictures = attempt(lambda: self._sample(request, labels, watcher, True, tiled=True))
        if pictures is None:
            height, width = labels.shape
            what = f"{request.num_samples} x {width}x{height} pixels do not fit into memory"
            raise GenerationError(f"{what}; {self._what_fits(request)}.")
        return pictures

    def _what_fits(self, request: Request) -> str:
        """Find by trial, one step each, what could be asked for instead."""
        for num_samples, resolution in smaller_sizes(request.num_samples, request.image_resolution):
            trial = replace(
                request, num_samples=num_samples, image_resolution=resolution, ddim_steps=1, eta=0.0
            )
            width, height = result_size(trial)
            labels = np.zeros((height, width), np.uint8)
            if attempt(lambda t=trial, m=labels: self._sample(t, m, None, True, tiled=True)) is not None:
                return f"num_samples {num_samples} at image_resolution {resolution} would fit"
        return "nor do smaller sizes: free some memory first"

    @torch.inference_mode()
    def _sample(
        self,
        request: Request,
        labels: np.ndarray,
        watcher: _Watcher | None,
        save_memory: bool,
        tiled: bool = False,
    ) -> np.ndarray:
        model, count = self.model, request.num_samples
        height, width = labels.shape
        with MemorySaver(model, self.device, save_memory, tiled) as saver:
            with saver.working(model.cond_stage_model):
                cond, uncond = self._conditions(request, labels)
            with saver.working(model.control_model, model.model):
                sampler = DDIMSampler(model)
                latents, _ = sampler.sample(
                    request.ddim_steps,
                    count,
                    (4, height // 8, width // 8),
                    cond,
                    verbose=False,
                    eta=request.eta,
                    unconditional_guidance_scale=request.scale,
                    unconditional_conditioning=uncond,
                    generator=noise_generators(request, self.device),
                    img_callback=watcher and watcher.bound_to(sampler, saver),
                )
            with saver.working(model.first_stage_model):
                pictures = saver.decode(latents)  # [N, 3, H, W]
        if not torch.isfinite(pictures).all():
            raise GenerationError("The decoder produced values that are not finite: try --precision fp32.")
        return to_uint8(pictures)

    def _conditions(self, request: Request, labels: np.ndarray) -> tuple[dict, dict]:
        """Both halves of the guidance: text ``[N, 77, D]``, control ``[N, 3, H, W]`` in [0, 1], and its
        factors.
        """
        model, count = self.model, request.num_samples
        text = model.get_learned_conditioning([f"{request.prompt}, {request.a_prompt}"] * count)
        negative = model.get_learned_conditioning([request.n_prompt] * count)
        colors = torch.from_numpy(colorize(labels)).to(self.device)  # [H, W, 3]
        control = (colors.permute(2, 0, 1).float() / 255.0).to(text.dtype).repeat(count, 1, 1, 1)
        scales = control_scales(request, len(model.control_scales))
        cond = {"c_concat": [control], "c_crossattn": [text], "control_scales": scales}
        uncond_control = None if request.guess_mode else [control]
        return cond, {"c_concat": uncond_control, "c_crossattn": [negative], "control_scales": scales}


class _Watcher:
    """What happens after every step: the latents are checked, the caller is told, and asked whether to
    stop.
    """

    def __init__(self, on_step: Callable[[Step], None] | None, should_stop: Callable[[], bool] | None):
        self.on_step, self.should_stop = on_step, should_stop

    def bound_to(self, sampler: DDIMSampler, saver: MemorySaver) -> Callable[[Tensor, int], None]:
        """The ``img_callback`` of ``sampler``, with previews decoded by the way of ``saver``."""

        def after_step(pred_x0: Tensor, index: int) -> None:
            steps = len(sampler.ddim_timesteps)  # 30 steps asked for are 31
            if not torch.isfinite(pred_x0).all():
                raise GenerationError(
                    f"The latents of step {index + 1} of {steps} are not finite: "
                    "try --precision fp32, or a smaller guidance scale."
                )
            if self.on_step is not None:
                self.on_step(Step(index, steps, lambda: preview(saver, pred_x0)))
            if self.should_stop is not None and self.should_stop():
                raise Cancelled(f"Cancelled after step {index + 1} of {steps}.")

        return after_step


def result_size(request: Request) -> tuple[int, int]:
    """Width and height of the pictures that a request gives, both multiples of 64.

    A map without a picture keeps its own size where that is one the resolution allows, since rounding the
    sides of a rounded size could end elsewhere.
    """
    source = request.input_image if request.input_image is not None else request.map
    height, width = source.shape[:2]
    short = round(request.image_resolution / 64) * 64
    if request.input_image is None and min(height, width) == short and height % 64 == 0 and width % 64 == 0:
        return width, height
    height, width = resized(source, request.image_resolution).shape[:2]
    return width, height


def resized(picture: np.ndarray, resolution: int) -> np.ndarray:
    """``annotator.util.resize_image`` for pictures that people bring: where it finds no size, a
    RequestError.
    """
    try:
        return resize_image(picture, resolution)
    except ValueError as error:
        raise RequestError(str(error)) from error


def fit_map(labels: np.ndarray, request: Request) -> np.ndarray:
    """Class indices uint8 ``[h, w]`` at the size of the request's pictures, by nearest neighbours."""
    return cv2.resize(labels, result_size(request), interpolation=cv2.INTER_NEAREST)


def control_scales(request: Request, count: int) -> list[float]:
    """The factor of each control output, first block first; guess mode trusts the last ones most."""
    if not request.guess_mode:
        return [request.strength] * count
    return [request.strength * GUESS_MODE_DECAY ** (count - 1 - i) for i in range(count)]


def noise_generators(request: Request, device: torch.device) -> torch.Generator | list[torch.Generator]:
    """The source of a run's noise: the numbers of torch's global stream after seeding, but nobody else draws
    from it.

    With ``per_sample_seeds`` one for each picture, so that its noise does not depend on its neighbours.
    """
    generators = [torch.Generator(device).manual_seed(seed) for seed in request.seeds]
    return generators if request.per_sample_seeds else generators[0]


@torch.inference_mode()
def preview(saver: MemorySaver, latents: Tensor) -> np.ndarray:
    """Decode latents ``[N, 4, h, w]`` at a small size: uint8 RGB ``[N, h', w', 3]``, no side over 128
    pixels.
    """
    scale = PREVIEW_SIDE / max(latents.shape[-2:])
    if scale < 1:
        latents = torch.nn.functional.interpolate(latents, scale_factor=scale, mode="area")
    with saver.working(saver.model.first_stage_model):
        return to_uint8(saver.model.decode_first_stage(latents))


def to_uint8(pictures: Tensor) -> np.ndarray:
    """``[N, 3, H, W]`` in [-1, 1] -> uint8 RGB ``[N, H, W, 3]``, by truncation like the original."""
    values = pictures.float().permute(0, 2, 3, 1) * 127.5 + 127.5
    return values.clamp(0, 255).to(torch.uint8).cpu().numpy()
