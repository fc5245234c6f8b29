"""The passes of a request: from noise or from a source, and perhaps once more at a larger size."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import torch

from controlnet.generation.from_source import blended, hint_picture, kept_latents, make_canvas
from controlnet.generation.memory import MemorySaver
from controlnet.generation.request import Request
from controlnet.generation.samplers import SAMPLERS
from controlnet.generation.sampling import Start, from_uint8
from controlnet.generation.several_run import throughout
from controlnet.generation.sizes import final_size, result_size, source_place

if TYPE_CHECKING:
    from cldm.cldm import ControlLDM
    from controlnet.generation.watcher import Watcher


@dataclass(frozen=True, eq=False)
class Origin:
    """What a pass begins with, where that is not noise alone.

    Args:
        pictures: uint8 RGB ``[1 or N, H, W, 3]``.
        denoise: the share of the steps that is taken.
        painted: of `controlnet.generation.from_source.Canvas`.
        from_noise: the painted part holds nothing of the pictures at first.
        is_second: whether this is the second pass, which has noise of its own.
    """

    pictures: np.ndarray
    denoise: float
    painted: np.ndarray | None = None
    from_noise: bool = False
    is_second: bool = False

    def start(self, saver: MemorySaver, count: int) -> Start:
        """Where the sampler begins, for ``count`` pictures; the VAE's encoder works on the device of
        ``saver``.
        """
        device = saver.device
        with saver.working(saver.model.first_stage_model):
            latents = saver.encode(from_uint8(self.pictures, device))
        keep = None if self.painted is None else kept_latents(self.painted)
        mask = None if keep is None else torch.from_numpy(keep).to(device)[None, None].repeat(count, 1, 1, 1)
        if len(latents) != count:
            latents = latents.repeat(count, 1, 1, 1)
        return Start(latents, self.denoise, mask, self.from_noise)

    def finished(self, pictures: np.ndarray) -> np.ndarray:
        """The pictures of a pass, uint8 RGB ``[N, H, W, 3]``, with what is kept put back."""
        return pictures if self.painted is None else blended(pictures, self.pictures, self.painted)


def first_origin(request: Request) -> Origin | None:
    """What the first pass of a request with definite sizes begins with; None is noise alone.

    A ``denoise`` of 1 still holds the source in its noise, as in diffusers; with a mask, as there, it does
    not.
    """
    if request.source is None:
        return None
    canvas = make_canvas(request)
    from_noise = canvas.painted is not None and request.denoise == 1
    return Origin(canvas.picture[None], request.denoise, canvas.painted, from_noise)


def second_origin(request: Request, pictures: np.ndarray) -> Origin:
    """What the second pass begins with: the pictures of the first, enlarged, with what is kept of the source
    from the source itself.
    """
    width, height = final_size(request)
    larger = np.stack([cv2.resize(p, (width, height), interpolation=cv2.INTER_LANCZOS4) for p in pictures])
    if request.source is None:
        return Origin(larger, request.second_denoise, is_second=True)
    canvas = make_canvas(request, width, height)
    if canvas.painted is not None:
        larger = blended(larger, canvas.picture[None], canvas.painted)
    return Origin(larger, request.second_denoise, canvas.painted, is_second=True)


def second_request(request: Request) -> Request:
    """The request of the second pass alone: of the larger size, and without what made the first."""
    size = min(final_size(request))
    return replace(without_source(request), image_resolution=size, second_pass=1.0)


def without_source(request: Request) -> Request:
    """The same request from noise alone, as large as its canvas."""
    if request.source is None:
        return request
    picture = request.input_image if request.hint is not None else hint_picture(request)[0]
    return replace(request, input_image=picture, source=None, mask=None, outpaint={})


def trial_of(request: Request, num_samples: int, resolution: int) -> Request:
    """A request of one step that takes about as much memory as a pass of another size."""
    return replace(
        without_source(request),
        num_samples=num_samples,
        image_resolution=resolution,
        ddim_steps=1,
        eta=0.0,
        guidance_start=0.0,
        guidance_end=1.0,
        **throughout(request),
        class_prompts={},
        class_map=None,
        second_pass=1.0,
    )


Draw = Callable[[Request, Any, "Watcher", Origin | None], np.ndarray]


def carried_out(
    model: ControlLDM,
    request: Request,
    hint_at: Callable[[int, int], Any],
    draw: Draw,
    watcher: Watcher,
) -> np.ndarray:
    """The pictures of a request with definite sizes, uint8 RGB ``[N, H, W, 3]``, after one pass or two.

    Args:
        model: for its number of time steps.
        hint_at: height and width of a pass -> the hint that steers it.
        draw: samples and decodes one pass.
        watcher: told how many steps there are in all.
    """
    first, second = steps_of(model, request)
    origin = first_origin(request)
    watcher.expect(first + second)
    width, height = result_size(request)
    if origin is not None and not first:
        pictures = origin.pictures.repeat(request.num_samples, axis=0)
    else:
        pictures = draw(request, hint_at(height, width), watcher, origin)
        pictures = pictures if origin is None else origin.finished(pictures)
    if request.second_pass == 1:
        return pictures
    origin = second_origin(request, pictures)
    if not second:
        return origin.pictures
    watcher.done = first
    width, height = final_size(request)
    return origin.finished(draw(second_request(request), hint_at(height, width), watcher, origin))


def steps_of(model: ControlLDM, request: Request) -> tuple[int, int]:
    """How many steps the passes take, by the rule of diffusers: each its share of all."""
    total = SAMPLERS[request.sampler].make(model).step_count(request.ddim_steps)
    first = total if request.source is None else min(int(total * request.denoise), total)
    return first, min(int(total * request.second_denoise), total) if request.second_pass > 1 else 0


def remarks(model: ControlLDM, request: Request) -> list[str]:
    """What a person should know about a canvas and its steps, one sentence each."""
    said: list[str] = []
    if request.source is None:
        return said
    if request.denoise and not steps_of(model, request)[0]:
        said.append(
            f"denoise {request.denoise:g} of {request.ddim_steps} steps is no step: the source is kept."
        )
    place, wanted = source_place(request), request.outpaint
    width = place.inner_width + wanted.get("left", 0) + wanted.get("right", 0)
    height = place.inner_height + wanted.get("top", 0) + wanted.get("bottom", 0)
    if (width, height) != (place.width, place.height):
        became = f"{place.width}x{place.height}"
        said.append(f"The canvas of {width}x{height} became {became}: sides are multiples of 64.")
    return said
