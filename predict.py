"""The Cog predictor: the inputs, types, ranges and defaults of the public controlnet models, and more.

cog predict -i image=@photo.jpg -i prompt="a house"

``CONTROLNET_OPTIONS`` takes the model's options of the other front ends, such as ``--model tiny --device
cpu``.
"""

# ruff: noqa: B008, UP045  Cog reads declarations off the defaults, and Optional

from __future__ import annotations

import argparse
import inspect
import os
import shlex
import tempfile
from pathlib import Path as LocalPath
from typing import Any, Optional

import numpy as np
from cog import BasePredictor, Input, Path
from cog.input import FieldInfo

from controlnet.conditions import all_conditions, find_condition
from controlnet.generation.class_prompts import read_class_map
from controlnet.generation.from_source import read_outpaint
from controlnet.generation.generator import Generator
from controlnet.generation.options import add_model_arguments, generator_from_options
from controlnet.generation.packing import read_hint, read_mask
from controlnet.generation.png import save_png
from controlnet.generation.request import Request, RequestError, short_repr
from controlnet.generation.samplers import DEFAULT_SAMPLER, FAST, SAMPLERS
from controlnet.generation.several import MODES, FurtherControl
from controlnet.generation.several_files import read_region
from controlnet.pictures import read_picture

TYPES = {"mlsd": "hough"}
"""Types of the public predictor that have another name here."""


def option_input(condition: str, name: str, **changes: Any) -> FieldInfo:
    """The input for an option of a condition."""
    (option,) = (option for option in find_condition(condition).options if option.name == name)
    declared = {"default": option.default, "ge": option.low, "le": option.high, **changes}
    if option.is_whole:
        declared = {key: int(value) for key, value in declared.items()}
    return Input(description=f"{option.label}; only for {condition}", **declared)


class Predictor(BasePredictor):
    """Serves SD 1.5 if its weights are there, else the embedded model.

    ``CONTROLNET_TYPE`` chooses what steers it: canny, depth, hed, normal, mlsd, scribble, seg (the default),
    openpose.
    """

    generator: Generator
    condition: str = "seg"

    def setup(self) -> None:
        """Load the model once; predictions then take only their own time."""
        parser = argparse.ArgumentParser(prog="CONTROLNET_OPTIONS", exit_on_error=False)
        add_model_arguments(parser)
        wanted = os.environ.get("CONTROLNET_TYPE", self.condition)
        self.condition = find_condition(TYPES.get(wanted, wanted)).name
        self.generator = generator_from_options(
            parser.parse_args(shlex.split(os.environ.get("CONTROLNET_OPTIONS", ""))), self.condition
        )
        self.folder = tempfile.TemporaryDirectory(prefix="controlnet-")

    def predict(
        self,
        image: Path = Input(description="Input image"),
        prompt: str = Input(description="Prompt for the model"),
        num_samples: str = Input(
            description="Number of samples (higher values may OOM)", choices=["1", "4"], default="1"
        ),
        image_resolution: str = Input(
            description="Image resolution to be generated; the embedded model is at home at 256",
            choices=["256", "512", "768"],
            default="512",
        ),
        ddim_steps: int = Input(description="Steps", default=20),
        scale: float = Input(description="Guidance Scale", default=9.0, ge=0.1, le=30.0),
        seed: Optional[int] = Input(description="Seed; random if it is not given", default=None),
        eta: float = Input(description="eta (DDIM)", default=0.0),
        a_prompt: str = Input(description="Added Prompt", default="best quality, extremely detailed"),
        n_prompt: str = Input(
            description="Negative Prompt",
            default="longbody, lowres, bad anatomy, bad hands, missing fingers, extra digit, fewer digits, "
            "cropped, worst quality, low quality",
        ),
        detect_resolution: int = Input(
            description="Resolution for detection; not for canny and scribble", default=512, ge=128, le=1024
        ),
        low_threshold: int = option_input("canny", "low_threshold"),
        high_threshold: int = option_input("canny", "high_threshold"),
        bg_threshold: float = option_input("normal", "bg_threshold", default=0.0),
        value_threshold: float = option_input("hough", "value_threshold"),
        distance_threshold: float = option_input("hough", "distance_threshold"),
        strength: float = Input(description="Control Strength", default=1.0, ge=0.0, le=2.0),
        guess_mode: bool = Input(description="Guess Mode", default=False),
        hint: Optional[Path] = Input(
            description="Map, edges, depth … as a picture, instead of detecting it", default=None
        ),
        sampler: str = Input(
            description=f"How the steps are taken; {FAST.sampler} does with {FAST.steps} steps",
            choices=list(SAMPLERS),
            default=DEFAULT_SAMPLER,
        ),
        control_start: float = Input(
            description="Share of the steps from which on the control acts", default=0.0, ge=0.0, le=1.0
        ),
        control_end: float = Input(
            description="Share of the steps until which the control acts", default=1.0, ge=0.0, le=1.0
        ),
        control_mode: str = Input(
            description="How the control stands to the prompt", choices=list(MODES), default="balanced"
        ),
        region: Optional[Path] = Input(
            description="A picture that is white where the control acts", default=None
        ),
        further_condition: str = Input(
            description="A second control beside the first",
            choices=["none", *all_conditions()],
            default="none",
        ),
        further_hint: Optional[Path] = Input(
            description="Its map, edges, depth …, instead of detecting it in the image", default=None
        ),
        further_strength: float = Input(description="Its strength", default=1.0, ge=0.0, le=2.0),
        further_start: float = Input(description="Its first share of the steps", default=0.0, ge=0.0, le=1.0),
        further_end: float = Input(description="Its last share of the steps", default=1.0, ge=0.0, le=1.0),
        further_mode: str = Input(
            description="How it stands to the prompt", choices=list(MODES), default="balanced"
        ),
        further_region: Optional[Path] = Input(
            description="A picture that is white where it acts", default=None
        ),
        class_prompts: str = Input(
            description="Prompts for classes of the map: house: red brick; sky: a storm", default=""
        ),
        class_map: Optional[Path] = Input(
            description="A map of the classes, where the model is not steered by one", default=None
        ),
        prompt_syntax: bool = Input(
            description="Read (word:1.3), [word] and BREAK in prompts of any length", default=False
        ),
        source: Optional[Path] = Input(description="Picture to begin from, instead of noise", default=None),
        mask: Optional[Path] = Input(
            description="White: painted anew; black: kept as it is in the source", default=None
        ),
        denoise: float = Input(
            description="Share of the steps that is taken from the source", default=0.75, ge=0.0, le=1.0
        ),
        feather: int = Input(
            description="Pixels over which the new fades into what is kept", default=8, ge=0, le=256
        ),
        outpaint: str = Input(
            description="Pixels that the source is extended by: left=64,right=64 (also top, bottom)",
            default="",
        ),
        second_pass: str = Input(
            description="Draw the picture once more, so many times as large",
            choices=["1", "1.5", "2"],
            default="1",
        ),
        second_denoise: float = Input(
            description="Share of the steps of that second pass", default=0.5, ge=0.0, le=1.0
        ),
    ) -> list[Path]:
        """The hints first, then the pictures, each a PNG that carries its request."""
        given = dict(locals())
        values = {name: checked_input(name, field, given[name]) for name, field in DECLARED.items()}
        picture = read_picture(local_file("image", values.pop("image")))
        brought = values.pop("hint")
        condition = self.generator.condition(self.condition)
        hint = None if brought is None else read_hint(condition, local_file("hint", brought)).hint
        region = _region("region", values.pop("region"))
        further = self._further(
            {name[8:]: values.pop(name) for name in list(values) if name[:8] == "further_"}
        )
        classes = values.pop("class_map")
        if classes is not None:
            values["class_map"] = read_class_map(local_file("class_map", classes))
        begun = {name: values.pop(name) for name in ("source", "mask")}
        source = None if begun["source"] is None else read_picture(local_file("source", begun["source"]))
        mask = None if begun["mask"] is None else read_mask(local_file("mask", begun["mask"]))
        passes = {"outpaint": read_outpaint(values["outpaint"]), "second_pass": float(values["second_pass"])}
        every = {option.name: values.pop(option.name, None) for option in OPTIONS}
        options = {option.name: every[option.name] for option in condition.options if option.original}
        seed = -1 if values["seed"] is None else values["seed"]
        counts = {name: int(values[name]) for name in ("num_samples", "image_resolution")}
        settings = {**values, **counts, **passes, "condition": condition.name, "options": options}
        arrays = {"hint": hint, "region": region, "source": source, "mask": mask}
        request = Request(picture, further=further, **{**settings, "seed": seed}, **arrays)
        result = self.generator.generate(request)
        hints = [(shown, None) for shown in result.all_shown]
        return self._save([*hints, *((p, result.metadata(k)) for k, p in enumerate(result.pictures))])

    def _further(self, values: dict[str, Any]) -> list[FurtherControl]:
        """The second control, by the names of its fields; none where its condition is so called."""
        name, brought = values.pop("condition"), values.pop("hint")
        region = _region("further_region", values.pop("region"))
        if name == "none":
            return []
        condition = self.generator.condition(name)
        hint = None if brought is None else read_hint(condition, local_file("further_hint", brought)).hint
        return [FurtherControl(name, hint=hint, region=region, **values)]

    def _save(self, pictures: list[tuple[Any, str | None]]) -> list[Path]:
        """Write to a folder that lasts until the next prediction, when Cog has sent its files."""
        self.folder.cleanup()
        self.folder = tempfile.TemporaryDirectory(prefix="controlnet-")
        paths = [LocalPath(self.folder.name) / f"output_{index}.png" for index in range(len(pictures))]
        for path, (picture, metadata) in zip(paths, pictures, strict=True):
            save_png(path, picture, metadata)
        return [Path(path) for path in paths]


def _region(name: str, path: Any) -> np.ndarray | None:
    return None if path is None else read_region(local_file(name, path))


OPTIONS = [option for known in all_conditions().values() for option in known.options]

# Read before Cog's worker puts plain defaults in the place of the declarations.
DECLARED: dict[str, FieldInfo] = {
    name: parameter.default
    for name, parameter in inspect.signature(Predictor.predict).parameters.items()
    if isinstance(parameter.default, FieldInfo)
}


def checked_input(name: str, field: FieldInfo, value: Any) -> Any:
    """A value within its declared range, or the default; Cog itself looks only in containers that ``cog
    build`` made.

    Raises:
        RequestError: a value that is missing, not among the choices, or out of range.
    """
    if isinstance(value, FieldInfo):  # left out in a direct call
        value = field.default
        if value is None and name in ("image", "prompt"):
            raise RequestError(f"{name} is missing.")
    if field.choices and value not in field.choices:
        raise RequestError(f"{name} must be one of {', '.join(map(str, field.choices))}, got {value!r}.")
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number and (field.ge is not None or (name == "seed" and value is not None)):
        raise RequestError(f"{name} must be a number, got {short_repr(value)}.")
    if (field.ge is not None and not value >= field.ge) or (field.le is not None and not value <= field.le):
        raise RequestError(f"{name} must be from {field.ge} to {field.le}, got {value!r}.")
    if name == "seed" and value is not None and value < 0:
        raise RequestError(f"seed must be 0 or more, or left out for a random one, got {value}.")
    return value


def local_file(name: str, path: Any) -> str:
    """The place of an input file on this machine.

    Cog hands over the ``Path`` of what it has downloaded, or an object that downloads at this call. What it
    does not take for a URL it hands over as the text that it got: that may be the name of any file of this
    machine, and is not opened.

    Raises:
        RequestError: text, or anything else that is no path.
    """
    if not isinstance(path, os.PathLike):
        raise RequestError(f"{name} must be a file: a data: URL or an http(s) URL, got {short_repr(path)}.")
    return str(path.convert() if hasattr(path, "convert") else path)
