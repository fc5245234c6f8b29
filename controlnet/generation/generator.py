"""Request -> pictures: the one function under every front end (``process`` in the original's apps)."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from annotator.util import HWC3
from controlnet.conditions import DEFAULT, Condition, Hint, Score, find_condition
from controlnet.generation.arrival import Arrival
from controlnet.generation.class_prompts import with_class_map
from controlnet.generation.controls import Controls
from controlnet.generation.devices import precision_name
from controlnet.generation.from_source import check_fits, hint_picture
from controlnet.generation.memory import MemorySaver, attempt, smaller_sizes
from controlnet.generation.models import ModelFiles
from controlnet.generation.passes import Origin, carried_out, remarks, steps_of, trial_of
from controlnet.generation.request import Request, RequestError, default_detect_resolution, definite
from controlnet.generation.result import Result
from controlnet.generation.sampling import guided_conditions, noise_generators, sample_latents, to_uint8
from controlnet.generation.several_run import acting, completed, run_controls
from controlnet.generation.sizes import resized, result_size
from controlnet.generation.watcher import GenerationError, Step, Watcher, cure
from controlnet.generation.words import cut_remarks, regional_of
from controlnet.generation.world import World

if TYPE_CHECKING:
    from cldm.cldm import ControlLDM

logger = logging.getLogger(__name__)


@dataclass
class Generator:
    """A model and the conditions that steer it, and one job at a time on them.

    Args:
        arriving: a ``ControlLDM`` in eval mode, on its device; or one that is still to come, of which device
            and precision are known.
        detectors: by condition, used instead of the conditions' own, which are made when they are first
            needed.
        name: of the model, as it is written into saved pictures.
        resolution: the short side the model was trained at.
        save_memory: compute attention in slices, and keep only the networks at work on the device.
        device: where the networks work; the model's own by default.
        guidance: the scale of requests that name none.
        controls: further control networks, by condition; without, the model's own serves all.
        files: what it was loaded from, where it was.
        world: what the model can draw, where that is less than everything.
        known_precision: what the networks compute in; the model's own by default.
    """

    arriving: ControlLDM | Arrival[ControlLDM]
    detectors: Mapping[str, Any] = field(default_factory=dict)
    name: str = ""
    resolution: int = 512
    save_memory: bool = False
    device: torch.device = None  # type: ignore[assignment]  # the model's own, from __post_init__ on
    guidance: float = 9.0
    controls: Controls = field(default_factory=Controls)
    files: ModelFiles | None = None
    world: World | None = None
    known_precision: str = ""
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)
    _conditions: dict[str, Condition] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        self.arrival = self.arriving if isinstance(self.arriving, Arrival) else Arrival.of(self.arriving)
        self.device = torch.device(self.device or self.model.device)

    @property
    def precision(self) -> str:
        """What the networks compute in: fp32, fp16 or bf16."""
        return self.known_precision or precision_name(self.model.control_model.dtype)

    @property
    def model(self) -> ControlLDM:
        """The networks. Who asks while they are being loaded waits for them."""
        return self.arrival.wait()

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """One job at a time, and none before the model is there: detectors import what its loading imports,
        and two threads may not do that at once.
        """
        self.arrival.wait()
        with self._lock:
            yield

    def condition(self, name: str = DEFAULT) -> Condition:
        """The condition with its detector, the same one at every call.

        Raises:
            ConditionError: there is none of that name.
        """
        if name not in self._conditions:
            self._conditions[name] = find_condition(name)(self.detectors.get(name), self.device)
        return self._conditions[name]

    def detect(
        self,
        picture: np.ndarray,
        detect_resolution: int | None = None,
        condition: str = DEFAULT,
        options: Mapping[str, float] | None = None,
    ) -> Hint:
        """The hint of a picture, uint8 RGB ``[H, W, 3]``, at the size that the detector saw."""
        used = self.condition(condition)
        resolution = detect_resolution or default_detect_resolution(used, self.resolution)
        with self._turn():
            return used.detect(resized(picture, resolution), **used.checked_options(options or {}))

    def hint(self, request: Request) -> Hint:
        """The hint that a request asks for, at the size of its pictures. One that it brings waits for no
        run.
        """
        request = request.for_model(self.resolution, self.guidance)
        with self._turn() if request.hint is None else nullcontext():
            return self._hint(request)

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
            measure: run the detector on each result and report how well it keeps to the hint.
            on_step: called after every sampling step, on the calling thread.
            should_stop: asked after every step; True ends the run.

        Raises:
            Cancelled: ``should_stop`` said so.
            GenerationError: latents that are not finite, or a size that memory does not hold.
        """
        request = request.with_seed().for_model(self.resolution, self.guidance)
        condition = self.condition(request.condition)
        conditions = dict.fromkeys([request.condition, *(control.condition for control in request.further)])
        not_learned = [remark for name in conditions if (remark := self.controls.remark(name))]
        with self._turn():
            started = time.perf_counter()
            request = self._completed(request)
            found = self._hint(request, best=request.second_pass > 1)
            pictures = carried_out(
                self.model,
                request,
                lambda height, width: condition.fit(found, height, width),
                self._drawn,
                Watcher(on_step, should_stop, self.model.control_model.dtype),
            )
            hint = condition.fit(found, *pictures.shape[1:3])
            scores = [self._score(request, hint, picture) for picture in pictures] if measure else []
            seconds = time.perf_counter() - started
        return Result(
            request,
            tuple(pictures),
            hint,
            condition.control(hint),
            condition.show(hint),
            tuple(score for score in scores if score is not None),
            (
                *condition.remarks(hint, request.input_image),
                *not_learned,
                *cut_remarks(self.model, request),
                *remarks(self.model, request),
            ),
            seconds,
            self.name,
            self.precision,
            tuple(self.condition(each.condition).show(definite(each.hint)) for each in request.further),
            found if request.second_pass > 1 else None,
        )

    def _completed(self, request: Request) -> Request:
        """The request with the hints of its further controls."""
        return completed(
            request,
            lambda: max(1, *steps_of(self.model, request)),
            lambda: result_size(request),
            self._hint,
            self.condition,
        )

    def _hint(self, request: Request, best: bool = False) -> Hint:
        """The hint at the size of the first pass, or ``best``: as it was brought or is found."""
        condition = self.condition(request.condition)
        width, height = result_size(request)
        if request.hint is not None:
            if request.source is not None:
                check_fits("hint", request.hint, height, width, "the picture will be")
            return request.hint if best else condition.fit(request.hint, height, width)
        try:
            picture, resolution = hint_picture(request)
            if best and condition.finds_at_own_size:
                seen = resized(HWC3(picture), definite(request.detect_resolution))
                return condition.detect(seen, **request.options)
            found = condition.hint(picture, resolution, request.detect_resolution, **request.options)
        except ValueError as error:
            raise RequestError(str(error)) from error
        if request.source is not None:
            check_fits("input_image", found, height, width, "the picture will be")
        return condition.fit(found, height, width)

    def _score(self, request: Request, hint: Hint, picture: np.ndarray) -> Score | None:
        condition = self.condition(request.condition)
        if not condition.is_measured:
            return None
        if condition.detect_resolution is not None:
            picture = resized(picture, definite(request.detect_resolution))
        found = condition.detect(picture, **request.options)
        return condition.score(hint, condition.fit(found, *hint.shape[:2]))

    def _drawn(self, request: Request, hint: Hint, watcher: Watcher, origin: Origin | None) -> np.ndarray:
        """One pass, steered by a hint of its size."""
        control = self.condition(request.condition).control(hint)
        return self._draw(with_class_map(request, hint), control, watcher, origin)

    def _draw(
        self, request: Request, control: np.ndarray, watcher: Watcher, origin: Origin | None = None
    ) -> np.ndarray:
        """Sample and decode one pass: uint8 RGB ``[N, H, W, 3]``. Out of memory, once more with all that
        saves some.
        """
        work = partial(self._sample, request, control, watcher, origin=origin)
        pictures = attempt(lambda: work(self.save_memory))
        if pictures is None:
            logger.warning(
                "Out of memory; trying once more with attention in slices, and one picture after the other."
            )
            pictures = attempt(lambda: work(True))
        if pictures is None:
            height, width = control.shape[:2]
            what = f"{request.num_samples} x {width}x{height} pixels do not fit into memory"
            raise GenerationError(f"{what}; {self._what_fits(request)}.")
        return pictures

    def _what_fits(self, request: Request) -> str:
        """Find by trial, one step each, what could be asked for instead."""
        for num_samples, resolution in smaller_sizes(request.num_samples, definite(request.image_resolution)):
            trial = trial_of(request, num_samples, resolution)
            width, height = result_size(trial)
            control = np.zeros((height, width, 3), np.uint8)
            if attempt(partial(self._sample, trial, control, None, True)) is not None:
                return f"num_samples {num_samples} at image_resolution {resolution} would fit"
        return "nor do smaller sizes: free some memory first"

    @torch.inference_mode()
    def _sample(
        self,
        request: Request,
        control: np.ndarray,
        watcher: Watcher | None,
        save_memory: bool,
        origin: Origin | None = None,
    ) -> np.ndarray:
        model, count = self.model, request.num_samples
        acts = [request.condition, *(control.condition for control in acting(request))]
        networks = self.controls.networks(acts)
        first, *further = run_controls(request, control, networks, len(model.control_scales), self.condition)
        beside = list(dict.fromkeys(network for network in networks if network is not None))
        with MemorySaver(model, self.device, save_memory, beside) as saver:
            start = None if origin is None else origin.start(saver, count)
            with saver.working(model.cond_stage_model):
                cond, uncond = guided_conditions(
                    model,
                    control,
                    [f"{request.prompt}, {request.a_prompt}"] * count,
                    [request.n_prompt] * count,
                    first.scales,
                    first.network,
                    unconditional=first.unconditional,
                    window=first.window,
                    region=first.region,
                    further=further,
                    prompt_syntax=request.prompt_syntax,
                    regional=regional_of(model, request, *control.shape[:2]),
                )
            own = [model.control_model] if None in networks else []
            with saver.working(*own, *beside, model.model):
                latents = sample_latents(
                    model,
                    cond,
                    uncond,
                    steps=request.ddim_steps,
                    scale=definite(request.scale),
                    eta=request.eta,
                    sampler=request.sampler,
                    guidance_interval=(request.guidance_start, request.guidance_end),
                    generator=noise_generators(request, self.device, bool(origin and origin.is_second)),
                    on_step=None if watcher is None else partial(watcher.bound_to, saver=saver),
                    start=start,
                )
            with saver.working(model.first_stage_model):
                pictures = saver.decode(latents)  # [N, 3, H, W]
        if not torch.isfinite(pictures).all():
            raise GenerationError(
                f"The decoder produced values that are not finite: {cure(model.control_model.dtype)}."
            )
        return to_uint8(pictures)
