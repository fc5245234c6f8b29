"""What a condition is: the way from a picture to a hint, and from a hint to what the network sees.

A condition is one module of this package with a class ``CONDITION``. Everything that front ends ask for
(sliders, command-line options, JSON keys, ranges, defaults, texts) stands in the class, once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import cv2
import numpy as np
import torch

from annotator.util import HWC3, resize_image, resized_shape
from controlnet.files import find_file
from controlnet.pictures import PictureSource, read_picture

Hint = np.ndarray
"""What is edited and stored: uint8 ``[H, W]`` or ``[H, W, 3]``; for segmentation class indices."""


class ConditionError(ValueError):
    """An unknown condition, an option out of range, or a hint that cannot be used; the text says what
    to do.
    """


@dataclass(frozen=True)
class Option:
    """A number that steers a detector: a slider, a command-line option, a JSON key and a check in one.

    Args:
        name: of the keyword argument, as the original calls it.
        label: for people.
        default, low, high, step: of the slider; a whole ``step`` makes it a whole number.
        original: whether the original's ``process`` takes it, after its other inputs.
        help: one sentence for people, where the label does not suffice.
    """

    name: str
    label: str
    default: float
    low: float
    high: float
    step: float = 1
    original: bool = True
    help: str = ""

    @property
    def is_whole(self) -> bool:
        """Whether only whole numbers make sense."""
        return float(self.step).is_integer()

    @property
    def is_switch(self) -> bool:
        """Whether it is 0 or 1, off or on."""
        return self.is_whole and (self.low, self.high) == (0, 1)

    def check(self, value: Any) -> float | int:
        """The value as a number of the right type.

        Raises:
            ConditionError: no number, not finite, out of range, or not whole where it must be.
        """
        number = isinstance(value, int | float | np.integer | np.floating)
        if not number or (isinstance(value, bool) and not self.is_switch):
            raise ConditionError(f"{self.name} must be a number, got {value!r}.")
        if not math.isfinite(value) or not self.low <= value <= self.high:
            raise ConditionError(f"{self.name} must be from {self.low:g} to {self.high:g}, got {value:g}.")
        if self.is_whole and value != int(value):
            raise ConditionError(f"{self.name} must be a whole number, got {value:g}.")
        return int(value) if self.is_whole else float(value)


@dataclass(frozen=True, eq=False)
class HintReport:
    """A hint that somebody brought: as it is used, what it was taken for, and what was odd about it.

    ``shares`` are parts of the hint by name (of a segmentation map its classes), largest first, in [0, 1].
    """

    hint: Hint
    taken_as: str
    warnings: tuple[str, ...] = ()
    touched: int = 0
    shares: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, eq=False)
class Score:
    """How well a picture keeps to its hint: the detector's verdict on it against what was asked for.

    Args:
        measure: name of ``value``, such as "mIoU".
        value: the number, in its own unit.
        agreement: the same as a share in [0, 1], 1 for perfect; for meters and colours.
        details: further numbers, ready for JSON.
        departs: bool ``[H, W]``, True where the picture departs from the hint, where that can be said.
        remark: what people should know beside ``value``, a few words.
    """

    measure: str
    value: float
    agreement: float
    details: Mapping[str, Any] = field(default_factory=dict)
    departs: np.ndarray | None = None
    remark: str = ""

    def summary(self) -> dict[str, Any]:
        """The numbers, ready for JSON."""
        numbers = {"value": round(self.value, 4), "agreement": round(self.agreement, 4)}
        return {"measure": self.measure, **numbers, **self.details}


class Condition:
    """Defaults that fit a detector of one channel whose map is resized smoothly; see ``canny`` for a short
    one.

    Args:
        detector: used instead of the condition's own, which is made when it is first needed.
        device: where the detector's network works, by default CUDA if there is one.
        weights: file of the detector's network, by default the one in ``annotator/ckpts``.
    """

    name: ClassVar[str]
    """As in requests, file names and commands."""
    title: ClassVar[str]
    """For people."""
    noun: ClassVar[str] = "hint"
    """What a hint is called: "edge map", "depth map"."""
    options: ClassVar[tuple[Option, ...]] = ()
    detect_resolution: ClassVar[int | None] = 512
    """Short side of the picture that the detector sees, in pixels; None: that of the result."""
    detect_label: ClassVar[str] = "Resolution of detection"
    interpolation: ClassVar[int] = cv2.INTER_LINEAR
    """How a hint is brought to the size of the result."""
    control_names: ClassVar[tuple[str, ...]] = ()
    """Stems of files with a released control for Stable Diffusion 1.5, the original's first."""
    hint_dimensions: ClassVar[int] = 2
    """2 for hints ``[H, W]``, 3 for ``[H, W, 3]``."""
    editor: ClassVar[str | None] = None
    """What a person edits the hint with: "label_map", "draw" or nothing."""
    folders: ClassVar[tuple[str, ...]] = ("hints",)
    """Where a data set keeps what `files` gives; the first is what training reads."""
    is_measured: ClassVar[bool] = False
    """Whether `score` says how well a result keeps to its hint."""
    nothing_found: ClassVar[str] = "Nothing was found in the picture: the hint is empty and steers nothing."

    def __init__(
        self,
        detector: Any = None,
        device: str | torch.device | None = None,
        weights: Any = None,
    ):
        self._detector = detector
        self.device = device
        self.weights = weights

    # ---- detection ----

    def make_detector(self) -> Any:
        """The condition's own detector; nothing is loaded before its first picture."""
        raise NotImplementedError

    @property
    def detector(self) -> Any:
        """The detector, made when it is first asked for."""
        if self._detector is None:
            self._detector = self.make_detector()
        return self._detector

    def detect(self, picture: np.ndarray, **options: float) -> Hint:
        """The hint of a picture at its own size: uint8 RGB ``[H, W, 3]`` -> `Hint`."""
        return self.detector(picture, **options)

    def detect_all(self, pictures: Sequence[np.ndarray], **options: float) -> list[Hint]:
        """The hints of several pictures of one size, in one batch where the detector takes one."""
        return [self.detect(picture, **options) for picture in pictures]

    def load(self) -> None:
        """Load the detector's network now rather than with the first picture, if it has one."""
        load = getattr(self.detector, "load", None)
        if load is not None:
            load()

    def hint(
        self,
        picture: np.ndarray,
        image_resolution: int,
        detect_resolution: int | None = None,
        **options: float,
    ) -> Hint:
        """The hint at the size of the result, by way of the detector's own resolution.

        Args:
            picture: uint8, ``[H, W]`` or ``[H, W, 1 | 3 | 4]`` RGB, in [0, 255].
            image_resolution: short side of the result, in pixels.
            detect_resolution: short side of what the detector sees; ignored where the condition has none.
            options: of ``self.options``; what is left out has its default.
        """
        picture = HWC3(picture)
        if self.detect_resolution is None:
            return self.detect(resize_image(picture, image_resolution), **self.with_defaults(options))
        found = self.detect(
            resize_image(picture, detect_resolution or self.detect_resolution), **self.with_defaults(options)
        )
        height, width = picture.shape[:2]
        return self.fit(found, *resized_shape(height, width, image_resolution))

    @property
    def finds_at_own_size(self) -> bool:
        """Whether `hint` only resizes what `detect` finds at the detector's own resolution."""
        return self.detect_resolution is not None and type(self).hint is Condition.hint

    def with_defaults(self, options: Mapping[str, float]) -> dict[str, float]:
        """All options by name, in their order; no check of the values."""
        return {option.name: options.get(option.name, option.default) for option in self.options}

    @classmethod
    def control_stems(cls) -> tuple[str, ...]:
        """Stems of files with a released control, best first."""
        return cls.control_names or (f"control_sd15_{cls.name}", f"control_v11p_sd15_{cls.name}")

    @classmethod
    def control_files(cls) -> tuple[str, ...]:
        """Names of such files, best first."""
        return tuple(f"{stem}{suffix}" for stem in cls.control_stems() for suffix in (".safetensors", ".pth"))

    def checkpoint_names(self) -> tuple[str, ...]:
        """File names of the detector's network in ``annotator/ckpts``, the released one first; none where it
        has no network.
        """
        return getattr(self.detector, "checkpoint_names", ())

    def detector_file(self) -> Path | None:
        """The file that the detector's network is read from; None where none is there, or none is needed."""
        names = self.checkpoint_names()
        path = find_file(*(f"annotator/ckpts/{name}" for name in names)) if names else None
        return path if path is not None and path.is_file() else None

    def missing_weights(self) -> str:
        """Stem of the file that the detector's network lacks, or nothing where one is there or none is
        needed.
        """
        names = self.checkpoint_names()
        return Path(names[0]).stem if names and self.detector_file() is None else ""

    @classmethod
    def checked_options(cls, options: Mapping[str, Any]) -> dict[str, float]:
        """All options by name, each checked; what is left out has its default.

        Raises:
            ConditionError: an unknown name, or a value that an option refuses.
        """
        known = {option.name: option for option in cls.options}
        unknown = sorted(set(options) - set(known))
        if unknown:
            takes = f"it takes {', '.join(known)}" if known else "it takes none"
            raise ConditionError(f"{cls.name} has no option {', '.join(map(repr, unknown))}; {takes}.")
        return {name: option.check(options.get(name, option.default)) for name, option in known.items()}

    # ---- hints ----

    def read(self, source: PictureSource | np.ndarray) -> HintReport:
        """A hint that somebody brings, checked and mended where that is sure.

        Args:
            source: a file as in ``controlnet.pictures.read_picture``, or uint8 ``[H, W]``, ``[H, W, 3]`` RGB.

        Raises:
            ConditionError, PictureError: it cannot be a hint of this condition.
        """
        picture = source if isinstance(source, np.ndarray) else read_picture(source)
        return HintReport(HWC3(picture).min(axis=2), self.noun)

    @classmethod
    def check(cls, hint: Any) -> Hint:
        """A hint of the right type and shape, as it is.

        Raises:
            ConditionError: another type or shape.
        """
        right = isinstance(hint, np.ndarray) and hint.dtype == np.uint8 and hint.size > 0
        if not right or hint.ndim != cls.hint_dimensions or (hint.ndim == 3 and hint.shape[2] != 3):
            got = f"{hint.dtype} {list(hint.shape)}" if isinstance(hint, np.ndarray) else type(hint).__name__
            wanted = "[H, W]" if cls.hint_dimensions == 2 else "[H, W, 3]"
            raise ConditionError(f"A hint of {cls.name} must be uint8 {wanted}, got {got}.")
        return hint

    def fit(self, hint: Hint, height: int, width: int) -> Hint:
        """The hint at the size of the result."""
        if hint.shape[:2] == (height, width):
            return hint
        return cv2.resize(hint, (width, height), interpolation=self.interpolation)

    def control(self, hint: Hint) -> np.ndarray:
        """What the network sees: uint8 RGB ``[H, W, 3]``."""
        return HWC3(hint)

    def files(self, hint: Hint) -> dict[str, np.ndarray]:
        """What a data set keeps of a hint, by the folder in ``folders``: uint8 ``[H, W]`` or ``[H, W,
        3]``.
        """
        return {self.folders[0]: self.control(hint)}

    def show(self, hint: Hint) -> np.ndarray:
        """What a person sees first, as in the original's gallery: uint8 RGB ``[H, W, 3]``."""
        return self.control(hint)

    def is_empty(self, hint: Hint) -> bool:
        """Whether nothing was found, so that the hint steers nothing."""
        return not hint.any()

    def remarks(self, hint: Hint, picture: np.ndarray | None = None) -> list[str]:
        """What a person should know about a hint (and the picture it comes from), one sentence each."""
        return [self.nothing_found] if self.is_empty(hint) else []

    def score(self, hint: Hint, found: Hint) -> Score | None:
        """How well ``found``, the hint of a result, agrees with the hint asked for; None if that says
        nothing.
        """
        return None
