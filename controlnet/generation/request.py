"""What a person asks for: one picture or hint, a prompt, and the numbers that steer the sampling."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from controlnet.conditions import DEFAULT, Condition, ConditionError, find_condition
from controlnet.generation.checks import (
    INTEGERS,
    RANGES,
    RequestError,
    check_shape,
    checked_number,
    checked_picture,
    short_repr,
)
from controlnet.generation.class_prompts import check_class_map, checked_class_prompts
from controlnet.generation.from_source import checked_source
from controlnet.generation.samplers import DEFAULT_SAMPLER, SAMPLERS
from controlnet.generation.several import FurtherControl, checked_several

DEFAULT_A_PROMPT = "best quality, extremely detailed"
DEFAULT_N_PROMPT = (
    "longbody, lowres, bad anatomy, bad hands, missing fingers, extra digit, fewer digits, cropped, "
    "worst quality, low quality"
)

_BY_MODEL = ("image_resolution", "detect_resolution", "scale")
_TEXTS = ("prompt", "a_prompt", "n_prompt", "condition", "sampler", "control_mode")
_SWITCHES = ("guess_mode", "per_sample_seeds", "prompt_syntax")
_ARRAYS = ("input_image", "hint", "region", "further", "class_map", "source", "mask")


@dataclass(frozen=True, eq=False)
class Request:
    """The thirteen inputs of the original's ``process``, in its order, and more.

    Args:
        input_image: uint8 ``[H, W]``, ``[H, W, 1 | 3 | 4]``, RGB in [0, 255]; None where ``hint`` or
            ``source`` stands for it.
        prompt: what to draw; ``a_prompt`` is appended after a comma.
        a_prompt: added prompt.
        n_prompt: negative prompt, the unconditional text of classifier-free guidance.
        num_samples: pictures of one batch.
        image_resolution: short side of the result in pixels; both sides become multiples of 64. None: the
            size the model was trained at.
        detect_resolution: short side of the picture that the detector sees. None: the original's, in
            proportion to the model's size.
        ddim_steps: sampling steps.
        guess_mode: control only the conditional half, and weaken it towards the first blocks.
        strength: factor on all control outputs.
        scale: guidance scale. None: the model's own.
        seed: -1 draws one in [0, 65535].
        eta: 0 is deterministic DDIM, 1 adds DDPM's noise; other samplers have none.
        hint: uint8 ``[h, w]`` or ``[h, w, 3]`` as the condition has it (of ``seg`` class indices), used
            instead of a run of the detector.
        per_sample_seeds: picture ``k`` of a batch is what ``seed + k`` gives alone, whatever the batch size.
            Off, the batch shares one stream of noise, as in the original.
        condition: what steers the picture, a name in ``controlnet.conditions.all_conditions()``.
        options: of the condition, by name; what is left out has its default.
        sampler: a name in ``controlnet.generation.samplers.SAMPLERS``.
        guidance_start, guidance_end: shares of the sampling steps between which there is guidance (arXiv
            2404.07724); a step outside takes the conditional half alone, in half the time.
        control_start, control_end: shares of the sampling steps between which the control acts.
        control_mode: how the control stands to the prompt, one of ``several.MODES``; ``guess_mode`` is
            "control" for all controls.
        region: where in the picture the control acts, uint8 ``[h, w]``, 255 for all of it.
        further: controls beside this one.
        class_prompts: prompts for single classes of the map, by name or index, or in one text ``house: red
            brick; sky: stormy evening``; ``a_prompt`` is appended to each.
        class_map: class indices uint8 ``[h, w]`` of the picture, for conditions other than ``seg``.
        prompt_syntax: read ``(word:1.3)``, ``[word]`` and ``BREAK`` in all prompts, and take prompts of any
            length.
        source: uint8 as ``input_image``, what the picture begins from instead of noise alone.
        denoise: the share of the steps that is taken from there; 0 gives the source back.
        mask: uint8 ``[h, w]`` of the source's shape, 255 where it is painted anew; the rest is kept.
        feather: pixels over which the new fades into what is kept, outside the mask.
        outpaint: pixels that the canvas is extended by, by ``left``, ``top``, ``right``, ``bottom``.
        second_pass: how many times as large the picture is drawn once more, from itself; 1 is not at all.
        second_denoise: as ``denoise``, of that second pass.

    Raises:
        RequestError: a value of the wrong type, out of range, or not finite; an empty or oversized picture.
    """

    input_image: np.ndarray | None
    prompt: str
    a_prompt: str = DEFAULT_A_PROMPT
    n_prompt: str = DEFAULT_N_PROMPT
    num_samples: int = 1
    image_resolution: int | None = None
    detect_resolution: int | None = None
    ddim_steps: int = 20
    guess_mode: bool = False
    strength: float = 1.0
    scale: float | None = None
    seed: int = -1
    eta: float = 0.0
    hint: np.ndarray | None = None
    per_sample_seeds: bool = False
    condition: str = DEFAULT
    options: Mapping[str, float] = field(default_factory=dict)
    sampler: str = DEFAULT_SAMPLER
    guidance_start: float = 0.0
    guidance_end: float = 1.0
    control_start: float = 0.0
    control_end: float = 1.0
    control_mode: str = "balanced"
    region: np.ndarray | None = None
    further: Sequence[FurtherControl] = ()
    class_prompts: Mapping[str, str] = field(default_factory=dict)
    class_map: np.ndarray | None = None
    prompt_syntax: bool = False
    source: np.ndarray | None = None
    denoise: float = 0.75
    mask: np.ndarray | None = None
    feather: int = 8
    outpaint: Mapping[str, int] = field(default_factory=dict)
    second_pass: float = 1.0
    second_denoise: float = 0.5

    def __post_init__(self) -> None:
        for name in _TEXTS:
            if not isinstance(getattr(self, name), str):
                raise RequestError(f"{name} must be text, got {getattr(self, name)!r}.")
        for name in _SWITCHES:
            if not isinstance(getattr(self, name), bool | np.bool_):
                raise RequestError(f"{name} must be true or false, got {getattr(self, name)!r}.")
        for name in RANGES:
            if getattr(self, name) is not None or name not in _BY_MODEL:
                object.__setattr__(self, name, checked_number(name, getattr(self, name)))
        if self.per_sample_seeds and self.seed + self.num_samples - 1 > RANGES["seed"][1]:
            raise RequestError(
                f"seed {self.seed} and {self.num_samples} pictures with a seed each would exceed "
                f"{RANGES['seed'][1]}."
            )
        if self.input_image is None and self.hint is None and self.source is None:
            raise RequestError("There is neither an input_image nor a hint: give one of them.")
        if self.input_image is not None:
            object.__setattr__(self, "input_image", checked_picture(self.input_image))
        self._check_condition()
        self._check_sampling()
        for name, value in {**checked_source(self), **checked_several(self)}.items():
            object.__setattr__(self, name, value)
        object.__setattr__(self, "class_prompts", checked_class_prompts(self.class_prompts))
        check_class_map(self)

    def _check_sampling(self) -> None:
        if self.sampler not in SAMPLERS:
            names = ", ".join(SAMPLERS)
            raise RequestError(f"sampler must be one of {names}, got {short_repr(self.sampler)}.")
        if self.eta and not SAMPLERS[self.sampler].takes_eta:
            raise RequestError(f"eta {self.eta:g} is DDIM's alone: with sampler {self.sampler} it must be 0.")
        if self.guidance_start > self.guidance_end:
            raise RequestError(
                f"guidance_start {self.guidance_start:g} is above guidance_end {self.guidance_end:g}: "
                "the interval is empty."
            )

    def _check_condition(self) -> None:
        if not isinstance(self.options, Mapping):
            raise RequestError(
                f"options must be an object of numbers by name, got {short_repr(self.options)}."
            )
        try:
            condition = find_condition(self.condition)
            object.__setattr__(self, "options", condition.checked_options(self.options))
            if self.hint is not None:
                condition.check(self.hint)
                check_shape("hint", self.hint)
        except ConditionError as error:
            raise RequestError(str(error)) from error

    def with_seed(self) -> Request:
        """The same request with a definite seed: -1 is replaced by a random one in [0, 65535]."""
        if self.seed != -1:
            return self
        # The system's own source: the global one may have been seeded by anyone, and two users must not share
        # a seed.
        return dataclasses.replace(self, seed=random.SystemRandom().randint(0, 65535))

    def for_model(self, resolution: int, guidance: float) -> Request:
        """The same request with definite sizes and guidance; those that are None become the model's.

        Args:
            resolution: the short side that the model was trained at, in pixels.
            guidance: the model's own scale.
        """
        given: dict[str, Any] = {
            "image_resolution": resolution,
            "detect_resolution": default_detect_resolution(find_condition(self.condition), resolution),
            "scale": guidance,
        }
        return dataclasses.replace(
            self, **{name: v for name, v in given.items() if getattr(self, name) is None}
        )

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seed of each picture."""
        return tuple(self.seed + k if self.per_sample_seeds else self.seed for k in range(self.num_samples))

    def settings(self) -> dict[str, Any]:
        """Everything but the arrays, ready for JSON."""
        return {name: getattr(self, name) for name in setting_names()}


_Setting = TypeVar("_Setting")


def definite(value: _Setting | None) -> _Setting:
    """A setting that `Request.for_model` has completed, so that it is not None."""
    assert value is not None
    return value


def default_detect_resolution(condition: Condition | type[Condition], resolution: int) -> int:
    """The original's size for the detector, made for results of 512 pixels, in proportion to the
    model's size; never less than a request may ask for.
    """
    least = int(RANGES["detect_resolution"][0])
    return max(least, round((condition.detect_resolution or 512) * resolution / 512))


def setting_names() -> tuple[str, ...]:
    """Names of the request's fields that are no arrays, in order."""
    return tuple(spec.name for spec in dataclasses.fields(Request) if spec.name not in _ARRAYS)


def setting_type(name: str) -> type:
    """int, float, str, bool, or dict for what has names of its own."""
    if name in RANGES:
        return int if name in INTEGERS else float
    return str if name in _TEXTS else bool if name in _SWITCHES else dict


def request_from_settings(
    settings: Mapping[str, Any],
    input_image: np.ndarray | None = None,
    hint: np.ndarray | None = None,
    **arrays: Any,
) -> Request:
    """Build a request from a JSON object of settings; what is left out has its default.

    The options of the condition may stand in ``options`` or, as in JSON lines, beside the other settings.

    Raises:
        RequestError: unknown names, a missing prompt, or values that ``Request`` refuses.
    """
    known, settings = setting_names(), dict(settings)
    try:
        condition = find_condition(str(settings.get("condition", DEFAULT)))
    except ConditionError as error:
        raise RequestError(str(error)) from error
    beside = {
        option.name: settings.pop(option.name) for option in condition.options if option.name in settings
    }
    options = settings.get("options", {})
    if beside and isinstance(options, Mapping):
        settings["options"] = {**options, **beside}
    unknown = sorted(set(settings) - set(known))
    if unknown:
        names = ", ".join([*known, *(option.name for option in condition.options)])
        raise RequestError(f"Unknown settings {', '.join(unknown)}; known with {condition.name} are {names}.")
    if "prompt" not in settings:
        raise RequestError("The setting prompt is missing.")
    return Request(input_image=input_image, hint=hint, **arrays, **settings)
