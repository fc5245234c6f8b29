"""LoRA: small changes of a model's matrices, merged into its weights when they are read.

W becomes W + weight * alpha / rank * up @ down (arXiv 2106.09685). Modules are named in kohya's way
(``lora_unet_down_blocks_0_..._to_q.lora_up.weight``), in peft's (``unet.down_blocks.0...to_q.lora_A.weight``)
or in that of older diffusers (``...attn1.processor.to_q_lora.down.weight``).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ldm.layouts import TEXT, UNET, clip, diffusers
from ldm.layouts.files import facts_of, open_raw
from ldm.recipes import Entry, sum_of, tensor_of
from ldm.weight_formats import WeightsError, first_few

_FORMS = (
    re.compile(r"(?P<module>.+)\.lora_(?P<role>up|down|mid)\.weight"),
    re.compile(r"(?P<module>.+)\.(?P<role>alpha)"),
    re.compile(r"(?P<module>.+)\.lora_(?P<role>[AB])(\.\w+)?\.weight"),
    re.compile(r"(?P<module>.+?)[._]lora(_linear_layer)?\.(?P<role>up|down)\.weight"),
)
_ROLES = {"A": "down", "B": "up"}
_HEADS = (
    (re.compile(r"^base_model_model_"), ""),
    (re.compile(r"^lora_unet_"), "unet_"),
    (re.compile(r"^(lora_te1?_|text_encoder_)(text_model_)?"), "text_"),
)


def is_lora(keys: Collection[str]) -> bool:
    """Whether most keys of a state dict are those of a LoRA; a model may have a few that strayed in."""
    found = sum("lora" in key and any(form.fullmatch(key) for form in _FORMS) for key in keys)
    return 2 * found > len(keys)


@dataclass(frozen=True)
class _Place:
    """A weight of the model; ``third`` of its rows where it joins queries, keys and values."""

    key: str
    third: int | None = None


class Lora:
    """A LoRA file, opened for one model.

    Args:
        path: the file, or peft's folder.
        weight: how much of it: 1 as it was trained, 0 nothing.
        wanted: the model's state dict, of which keys and shapes are read.

    Raises:
        WeightsError: no LoRA, of a kind that is not plain LoRA, or one for another architecture.
    """

    def __init__(self, path: Path, weight: float, wanted: Mapping[str, Entry]):
        self.path, self.weight = path, weight
        self.changes = _changes(path, _places(wanted))
        for place, change in self.changes.items():
            rows = wanted[place.key].shape[0] // (1 if place.third is None else 3)
            expected = (rows, *wanted[place.key].shape[1:])
            if not change.fits(expected):
                raise WeightsError(
                    f"{path}: this LoRA is for another model: {place.key} is {list(expected)} here, and its "
                    f"change is {change.described()}"
                )

    def merged(self, state: Mapping[str, Entry]) -> dict[str, Entry]:
        """The state dict with every matrix that the LoRA changes replaced by a recipe for the sum."""
        result = dict(state)
        for place, change in self.changes.items():
            if place.key in result:
                entry = result[place.key]
                result[place.key] = sum_of(entry, self._delta(change, place.third, entry.shape))
        return result

    def _delta(self, change: _Change, third: int | None, shape: torch.Size) -> Callable[[], Tensor]:
        def delta() -> Tensor:
            if third is None:
                return self.weight * change.product().reshape(shape)
            whole = torch.zeros(shape)
            whole.chunk(3)[third].copy_(self.weight * change.product())
            return whole

        return delta


@dataclass
class _Change:
    """The factors of one module: down ``[r, I, ...]``, up ``[O, r, ...]``, mid ``[r, r, k, k]`` or None."""

    down: Entry
    up: Entry
    mid: Entry | None
    scale: float

    def product(self) -> Tensor:
        """``scale * up @ down``, float32."""
        down, up = (tensor_of(entry).float() for entry in (self.down, self.up))
        if self.mid is not None:
            mid = tensor_of(self.mid).float()
            return self.scale * torch.einsum("or,rskl,si->oikl", up.flatten(1), mid, down.flatten(1))
        return self.scale * (up.flatten(1) @ down.flatten(1))

    def fits(self, shape: tuple[int, ...]) -> bool:
        rank = self.down.shape[0]
        kernel = self.down.shape[2:] if self.mid is None else self.mid.shape[2:]
        if self.up.shape[1] != rank or self.up.shape[0] != shape[0] or self.down.shape[1] != shape[1]:
            return False
        return torch.Size(kernel).numel() == torch.Size(shape[2:]).numel()

    def described(self) -> str:
        return f"{list(self.up.shape)} times {list(self.down.shape)}"


def _changes(path: Path, places: Mapping[str, _Place]) -> dict[_Place, _Change]:
    factors: dict[str, dict[str, Entry]] = {}
    strange = []
    for key, entry in open_raw(path)[0].items():
        match = next((match for form in _FORMS if (match := form.fullmatch(key))), None)
        if match is None:
            strange.append(key)
            continue
        factors.setdefault(match["module"], {})[_ROLES.get(match["role"], match["role"])] = entry
    if strange:
        raise WeightsError(
            f"{path}: this LoRA holds {len(strange)} keys of another kind ({first_few(strange)})"
        )
    changes, homeless = {}, []
    alphas = _alphas(path)
    for module, parts in factors.items():
        place = _find(module, places)
        if place is None or not {"up", "down"} <= parts.keys():
            homeless.append(module)
            continue
        alpha = float(tensor_of(parts["alpha"])) if "alpha" in parts else alphas(module)
        scale = 1.0 if alpha is None else alpha / parts["down"].shape[0]
        changes[place] = _Change(parts["down"], parts["up"], parts.get("mid"), scale)
    if homeless or not changes:
        raise WeightsError(
            f"{path}: this LoRA is for another model: it changes {len(homeless)} modules that this one does "
            f"not have ({first_few(homeless)})"
        )
    return changes


def _alphas(path: Path) -> Callable[[str], float | None]:
    """The alphas that peft keeps beside its matrices: in adapter_config.json, or in diffusers' metadata."""
    facts = facts_of(path)
    if "lora_alpha" in facts:
        return lambda _module: float(facts["lora_alpha"])
    try:
        metadata = json.loads(facts.get("lora_adapter_metadata", "{}"))
    except ValueError:
        metadata = {}
    return lambda module: metadata.get(f"{module.partition('.')[0]}.lora_alpha")


def _places(wanted: Mapping[str, Entry]) -> dict[str, _Place]:
    """Flat name of a module -> its weight: under diffusers' and transformers' names, and under the
    original's.
    """
    places: dict[str, _Place] = {}
    unet = [key[len(UNET) :] for key in wanted if key.startswith(UNET) and key.endswith(".weight")]
    for ours, theirs in diffusers.names("unet", unet).items():
        place = _Place(UNET + ours)
        places[_flat("unet", theirs)] = places[_flat("unet", ours)] = place
        if theirs.endswith(".to_out.0.weight"):
            places[_flat("unet", theirs.replace(".to_out.0.", ".to_out."))] = place
    hugging_face = TEXT + clip.HUGGING_FACE
    for key in wanted:
        if key.startswith(hugging_face) and key.endswith(".weight"):
            places[_flat("text", key[len(hugging_face) :])] = _Place(key)
    places.update(_open_clip_places(wanted))
    return places


def _open_clip_places(wanted: Mapping[str, Entry]) -> dict[str, _Place]:
    """The places of an open_clip encoder under transformers' names, which LoRA files use for it too."""
    places = {}
    blocks = sum(key.endswith(".attn.in_proj_weight") for key in wanted)
    modules = [f"self_attn.{name}" for name in ("q_proj", "k_proj", "v_proj", "out_proj")] + [
        "mlp.fc1",
        "mlp.fc2",
    ]
    for name in (f"encoder.layers.{i}.{module}.weight" for i in range(blocks) for module in modules):
        key = TEXT + clip.OPEN_CLIP + clip.open_clip_name(name)
        if key in wanted:
            places[_flat("text", name)] = _Place(key, clip.third_of(name))
    return places


def _flat(network: str, name: str) -> str:
    return f"{network}_{name.removesuffix('.weight').replace('.', '_')}"


def _find(module: str, places: Mapping[str, _Place]) -> _Place | None:
    flat = module.replace(".processor.", ".").replace(".", "_")
    for head, network in _HEADS:
        flat = head.sub(network, flat)
    return next((places[name] for name in (flat, f"unet_{flat}", f"text_{flat}") if name in places), None)
