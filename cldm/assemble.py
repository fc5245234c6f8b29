"""A whole model from the files that people have: a base, and perhaps a control, a VAE and LoRA beside it.

Every file is recognised first; what cannot work is refused by name. What fits is opened as one state dict in
the original's layout, of which nothing is read before it is needed (:mod:`ldm.recipes`).
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from cldm.convert import control_part, looks_like_difference, merge_control, restore_difference
from ldm.command import command_name
from ldm.layouts import CONTROL, PREFIXES, UNET, VAE
from ldm.layouts.files import open_raw
from ldm.layouts.lora import Lora
from ldm.layouts.parts import split, to_original
from ldm.layouts.recognise import Kind, expect, recognise, version_name
from ldm.recipes import Entry, Opened, reshaped
from ldm.weights import WeightsError, can_reshape, first_few, matches

logger = logging.getLogger(__name__)

HARMLESS_KEYS = (
    "model_ema.*",  # averages
    "first_stage_model.loss.*",  # what the VAE was trained with
    "*.position_ids",  # constants
    "*.attn_mask",
    "cond_stage_model.*logit_scale",  # what CLIP has besides its text transformer
    "cond_stage_model.*text_projection*",
    "cond_stage_model.*vision_model.*",
    "cond_stage_model.*visual*",
)
"""Keys of released checkpoints that no model of ours takes, as shell patterns."""

DEFINITIONS = {768: "models/cldm_v15.yaml", 1024: "models/cldm_v21.yaml"}
"""The YAML for each width of text embeddings."""


@dataclass(frozen=True)
class Sources:
    """The files or folders of a model: ``weights`` is Stable Diffusion, with or without a control.

    ``control`` takes the place of the weights' own, ``vae`` as well; ``loras`` are files and how much of
    each.
    """

    weights: Path
    control: Path | None = None
    vae: Path | None = None
    loras: tuple[tuple[Path, float], ...] = ()

    @property
    def files(self) -> list[Path]:
        others = [self.control, self.vae, *(path for path, _weight in self.loras)]
        return [self.weights, *dict.fromkeys(path for path in others if path is not None)]


class Assembly:
    """The files of a model, checked against its definition.

    Args:
        sources: the files.
        kind: what ``sources.weights`` is.
        wanted: the state dict that the definition gives; only keys and shapes are looked at.
        definition: the YAML's name, for errors.
        needs_control: whether a model without a control is an error.

    Attributes:
        control_kind: what the file of the control is.

    Raises:
        WeightsError: a file cannot be read, is something else than it was given as, lacks a part, or is of
        another
            version of Stable Diffusion than the definition.
    """

    def __init__(
        self,
        sources: Sources,
        kind: Kind,
        wanted: Mapping[str, Tensor],
        definition: str | Path,
        needs_control: bool = True,
    ):
        self.sources, self.wanted, self.kind = sources, wanted, kind
        self.control_kind = recognise(sources.control) if sources.control else kind
        self._has_reported = False
        check_roles(sources, kind, self.control_kind)
        self._check_version(definition)
        self._check_parts(needs_control)

    def open(self) -> Opened:
        """The whole state dict under the definition's names; for :func:`ldm.weights.load_opened_into`."""
        state, is_mapped = _open_renamed(self.sources.weights, self.wanted)
        self._report_unused(state)
        state = _taken(state, self.wanted)
        if self.sources.vae:
            vae, vae_is_mapped = open_as(self.sources.vae, self.wanted)
            own = {key: entry for key, entry in state.items() if not key.startswith(VAE)}
            state = {**own, **{key: entry for key, entry in vae.items() if key.startswith(VAE)}}
            is_mapped = is_mapped and vae_is_mapped
        if self.sources.control:
            control, control_is_mapped = open_control(
                self.sources.control, self.control_kind, self.wanted, state
            )
            state = merge_control(state, control)
            is_mapped = is_mapped and control_is_mapped
        for path, weight in self.sources.loras:
            state = Lora(path, weight, self.wanted).merged(state)
        return state, is_mapped

    def _check_version(self, definition: str | Path) -> None:
        width = context_width(self.wanted)
        for path, kind in ((self.sources.weights, self.kind), (self.sources.control, self.control_kind)):
            if path and width and kind.width and kind.width != width:
                yaml = DEFINITIONS.get(kind.width)
                advice = f"; its definition is {yaml}" if yaml else ""
                raise WeightsError(
                    f"{path}: this is {kind}; {definition} is for {version_name(width)}, whose text "
                    f"embeddings are {width} wide, not {kind.width}{advice}"
                )

    def _check_parts(self, needs_control: bool) -> None:
        found = {
            *self.kind.parts,
            *(["vae"] if self.sources.vae else []),
            *(["control"] if self.sources.control else []),
        }
        advice = {
            "vae": "it has no VAE: give one with --vae",
            "text": "it has no text encoder: take a checkpoint that has one, or a whole folder of diffusers",
            "control": "it has no control: give one with --control, or make a new one with "
            f"`{command_name()} weights add`",
        }
        for part, text in advice.items():
            is_wanted = any(key.startswith(PREFIXES[part]) for key in self.wanted)
            if is_wanted and part not in found and (needs_control or part != "control"):
                raise WeightsError(f"{self.sources.weights}: this is {self.kind}; {text}")

    def _report_unused(self, state: Mapping[str, Entry]) -> None:
        """One line, when the files are opened for the first time."""
        unused = [key for key in state if not _is_taken(key, self.wanted) and not matches(key, HARMLESS_KEYS)]
        if unused and not self._has_reported:
            where, names = self.sources.weights, first_few(unused)
            logger.info("%s: %d entries are not used (%s)", where, len(unused), names)
        self._has_reported = True


def check_roles(sources: Sources, kind: Kind, control_kind: Kind) -> None:
    """Whether every file is what it was given as; keys and shapes tell it, so this takes no time.

    Args:
        kind, control_kind: what ``sources.weights`` and ``sources.control`` are.

    Raises:
        WeightsError: one of them is something else, or cannot be read.
    """
    weights, control = sources.weights, sources.control
    if control and kind.role == "control" and control_kind.role == "model":
        raise WeightsError(
            f"{weights} is {kind}, and {control} is {control_kind}: give them the other way round"
        )
    expect(weights, kind, "model")
    if control and "control" not in control_kind.parts:
        expect(control, control_kind, "control")
    if sources.vae:
        vae_kind = recognise(sources.vae)
        if "vae" not in vae_kind.parts:
            expect(sources.vae, vae_kind, "vae")
    for path, _weight in sources.loras:
        expect(path, recognise(path), "lora")


def open_as(path: Path, wanted: Mapping[str, Tensor]) -> Opened:
    """A file or folder in the original's layout, as a model with the keys and shapes of ``wanted`` takes it.

    What is neither part of a model nor wanted (markers, averages, stray LoRA) is left out.
    """
    state, is_mapped = _open_renamed(path, wanted)
    return _taken(state, wanted), is_mapped


def _open_renamed(path: Path, wanted: Mapping[str, Tensor]) -> Opened:
    state, is_mapped = open_raw(path)
    return to_original(split(state), wanted), is_mapped


def _taken(state: Mapping[str, Entry], wanted: Mapping[str, Tensor]) -> dict[str, Entry]:
    """What a model takes, in the shapes that it wants."""
    taken = {key: entry for key, entry in state.items() if _is_taken(key, wanted)}
    for key in taken.keys() & wanted.keys():
        if can_reshape(taken[key].shape, wanted[key].shape):
            taken[key] = reshaped(taken[key], wanted[key].shape)
    return taken


def _is_taken(key: str, wanted: Collection[str]) -> bool:
    if key in wanted:
        return True
    return key.startswith(tuple(PREFIXES.values())) and not matches(key, HARMLESS_KEYS)


def open_control(
    path: Path, kind: Kind, wanted: Mapping[str, Tensor], base: Mapping[str, Entry] | None
) -> Opened:
    """The control of a file, and what else it brings (a decoder that was trained along).

    Args:
        kind: what the file is.
        wanted: keys and shapes of the model.
        base: the UNet that it steers, under ``model.diffusion_model.*``; what a difference is added to.

    Raises:
        WeightsError: a difference without a base, or without the marker that says so.
    """
    state, is_mapped = open_as(path, wanted)
    part = control_part(state)
    if kind.is_difference:
        if base is None:
            raise WeightsError(
                f"{path}: this is {kind}; it needs the weights of the base, to be added to them"
            )
        return restore_difference(base, part, wanted), is_mapped
    if base is not None and looks_like_difference(base, part):
        raise WeightsError(
            f"{path}: these weights are far smaller than the base's, so they seem to be differences from it; "
            'but there is no key "difference" that says so. Get the whole ControlNet'
        )
    return part, is_mapped


def context_width(wanted: Mapping[str, Entry]) -> int | None:
    """The width of the text embeddings that a model's UNet, or its control, takes."""
    keys = (key for key in wanted if key.startswith((UNET, CONTROL)) and key.endswith("attn2.to_k.weight"))
    return next((wanted[key].shape[1] for key in keys), None)


def control_keys(state: Collection[str]) -> list[str]:
    """The keys of the control among those of a model."""
    return [key for key in state if key.startswith(CONTROL)]
