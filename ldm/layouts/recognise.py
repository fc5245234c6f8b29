"""What a weights file or folder is, by its keys and shapes: nothing of its numbers is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from ldm.layouts import diffusers
from ldm.layouts.embedding import is_embedding
from ldm.layouts.files import facts_of, open_raw
from ldm.layouts.foreign import foreign_name
from ldm.layouts.lora import is_lora
from ldm.layouts.parts import Parts, split
from ldm.recipes import Entry
from ldm.weight_formats import WeightsError, first_few

_VERSIONS = {768: "Stable Diffusion 1.x", 1024: "Stable Diffusion 2.x"}
_XL_WIDTHS = (1280, 2048)
_OTHER_CHANNELS = {
    5: "a depth model (its UNet takes 5 channels)",
    7: "an upscaler (its UNet takes 7 channels)",
    8: "an editing model such as InstructPix2Pix (its UNet takes 8 channels)",
    9: "an inpainting model (its UNet takes 9 channels)",
}
_PART_NAMES = {"unet": "UNet", "vae": "VAE", "text": "text encoder", "control": "control"}
_SDXL_SCALING = 0.13025
_OTHER_LATENTS = {16: "Flux or Stable Diffusion 3", 32: "Sana or Flux 2"}
_PREDICTIONS = {"v_prediction": "v", "v": "v", "epsilon": "eps", "eps": "eps"}

ROLES = {
    "model": "give it as the model",
    "control": "give it with --control, beside a Stable Diffusion model",
    "vae": "give it with --vae, beside a Stable Diffusion model",
    "text": "it goes into a whole model, which diffusers' folders and checkpoints are",
    "lora": "give it with --lora, beside a model",
    "embedding": "give it with --embedding, beside a model",
    "foreign": "which has no use here: models, controls, VAE, LoRA and embeddings are those of Stable "
    "Diffusion 1.x and 2.x",
}
"""What a file may be used as, and what to do with it when it was given as something else."""

_ROLE_NAMES = {"vae": "a VAE", "lora": "a LoRA", "embedding": "an embedding"}


@dataclass(frozen=True)
class Kind:
    """What a file is; ``str`` of it is one line for people.

    ``role`` is one of `ROLES`. ``parts`` are those of a model ("unet", "vae", "text", "control"). ``width``
    is that of the text embeddings, ``channels`` what the UNet takes in, ``model_channels`` those of its first
    level. ``prediction`` is "v" or "eps" where the file says so. ``zero_terminal``: trained with a schedule
    that ends in noise alone. ``is_difference``: a control as difference from its base. ``pools``: a control
    whose outputs are averaged over the picture (ControlNet 1.1 shuffle).
    """

    role: str
    what: str
    parts: tuple[str, ...] = ()
    layout: str = ""
    dtype: str = ""
    width: int | None = None
    channels: int | None = None
    model_channels: int | None = None
    prediction: str | None = None
    zero_terminal: bool = False
    is_difference: bool = False
    pools: bool = False
    facts: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def __str__(self) -> str:
        inside = [", ".join(_PART_NAMES[part] for part in self.parts)] if self.role == "model" else []
        inside += [self.layout and f"{self.layout} layout", self.dtype]
        inside += ["whose rounding shows"] if self.dtype.startswith("float8") and self.role == "model" else []
        inside += ["predicts v"] if self.prediction == "v" else []
        inside += ["zero terminal SNR"] if self.zero_terminal else []
        inside += ["averaged over the picture"] if self.pools else []
        said = ", ".join(text for text in inside if text)
        start = f"{self.what[:-1]}, " if self.what.endswith(")") else f"{self.what} ("
        return f"{start}{said})" if said else self.what


def recognise(path: str | Path) -> Kind:
    """Say what a file or folder is.

    Raises:
        WeightsError: it cannot be read, or is nothing that is known here; the text names its first keys.
    """
    path = Path(path)
    state, facts = open_raw(path)[0], facts_of(path)
    kind = partial(Kind, dtype=_dtype(state), facts=facts)
    parts = split(state)
    if name := foreign_name(state):
        return kind("foreign", name)
    if is_lora(state):
        return kind("lora", "a LoRA")
    if "unet" in parts or "control" in parts:
        return _kind_of_network(path, parts, kind)
    if "vae" in parts:
        return _kind_of_vae(parts["vae"], facts, kind)
    if "text" in parts:
        return kind("text", "a text encoder")
    if is_embedding(state):
        return kind("embedding", "a textual inversion embedding")
    if {"clip_l", "clip_g"} <= set(state):
        return kind("foreign", "a textual inversion embedding of Stable Diffusion XL")
    raise WeightsError(
        f"{path}: these are weights ({len(state)} tensors: {first_few(list(state))}), but of nothing that is "
        "known here: no Stable Diffusion, no control, no VAE, LoRA or embedding"
    )


def expect(path: Path, kind: Kind, *roles: str) -> None:
    """Unless a file has one of these roles, raise a WeightsError that says what it is and what to do."""
    if kind.role in roles:
        return
    if kind.role == "foreign":
        raise WeightsError(f"{path}: this is {kind}, {ROLES[kind.role]}")
    wanted = " or ".join(_ROLE_NAMES.get(role, f"a {role}") for role in roles)
    raise WeightsError(f"{path}: this is {kind}, not {wanted}; {ROLES[kind.role]}")


def version_name(width: int | None) -> str:
    """The version of Stable Diffusion whose text embeddings are so wide."""
    if width is None:
        return "an unknown version of Stable Diffusion"
    return _VERSIONS.get(width, f"a model with text embeddings {width} wide")


def _kind_of_network(path: Path, parts: Parts, kind: partial[Kind]) -> Kind:
    is_whole = "unet" in parts and any(_is_encoder(key) for key in parts["unet"])
    network = parts["unet"] if is_whole else parts["control"] if "control" in parts else parts["unet"]
    channels, model_channels = _first_convolution(network)
    width = _context_width(network)
    kind = partial(kind, width=width, channels=channels, model_channels=model_channels)
    if refused := _other_network(network, width, channels):
        return kind("foreign", f"a ControlNet of {refused}" if not is_whole else refused)
    version = version_name(width)
    layout = "diffusers'" if diffusers.is_diffusers(network) else "the original's"
    if not is_whole and "control" not in parts:
        return kind("foreign", f"a part of the UNet of {version}")
    pools = "control" in parts and _pools(path, kind.keywords["facts"])
    known = tuple(part for part in _PART_NAMES if part in parts)
    if not is_whole:
        is_difference = "difference" in parts.get("other", {})
        what = f"a ControlNet of {version}"
        what += " as difference from its base" if is_difference else ""
        return kind("control", what, known, layout, is_difference=is_difference, pools=pools)
    facts = kind.keywords["facts"]
    zero_terminal = "ztsnr" in parts.get("other", {}) or facts.get("rescale_betas_zero_snr") is True
    kind = partial(kind, prediction=_prediction(parts, facts), zero_terminal=zero_terminal)
    what = version + (" with a control" if "control" in parts else "")
    return kind("model", what, known, layout, pools=pools)


def _kind_of_vae(entries: Mapping[str, Entry], facts: Mapping[str, Any], kind: partial[Kind]) -> Kind:
    layout = "diffusers'" if diffusers.is_diffusers(entries) else "the original's"
    latent = entries.get("decoder.conv_in.weight")
    if latent is not None and latent.ndim == 5:
        return kind("foreign", "a VAE of videos")
    if latent is not None and latent.ndim == 4 and latent.shape[1] in _OTHER_LATENTS:
        channels = latent.shape[1]
        return kind("foreign", f"a VAE of {channels} latent channels, of {_OTHER_LATENTS[channels]}")
    if facts.get("scaling_factor") == _SDXL_SCALING:
        return kind("foreign", "a VAE of Stable Diffusion XL (its latents are scaled by 0.13025)")
    return kind("vae", "a VAE", ("vae",), layout)


def _is_encoder(key: str) -> bool:
    return key.startswith(("input_blocks.", "down_blocks."))


def _first_convolution(network: Mapping[str, Entry]) -> tuple[int | None, int | None]:
    for key in ("input_blocks.0.0.weight", "conv_in.weight"):
        if key in network and network[key].ndim == 4:
            return network[key].shape[1], network[key].shape[0]
    return None, None


def _context_width(network: Mapping[str, Entry]) -> int | None:
    widths = (
        entry.shape[1]
        for key, entry in network.items()
        if key.endswith("attn2.to_k.weight") and entry.ndim == 2
    )
    return next(widths, None)


def _other_network(network: Mapping[str, Entry], width: int | None, channels: int | None) -> str | None:
    """A UNet, or the control's copy of one, that is none of SD 1.x or 2.x: whose."""
    has_label = any(key.startswith(("label_emb.", "add_embedding.", "class_embedding.")) for key in network)
    if width in _XL_WIDTHS or (has_label and width not in _VERSIONS):
        return "Stable Diffusion XL"
    if has_label:
        return "a Stable unCLIP model (its UNet takes embeddings of pictures)"
    return (
        None
        if channels in (None, 4)
        else _OTHER_CHANNELS.get(channels, f"a UNet that takes {channels} channels")
    )


def _pools(path: Path, facts: Mapping[str, Any]) -> bool:
    return facts.get("global_pool_conditions") is True or "shuffle" in path.name.lower()


def _prediction(parts: Parts, facts: Mapping[str, Any]) -> str | None:
    """What the UNet predicts, if the file says so: a marker among the keys, metadata, a scheduler's config, a
    YAML beside it.
    """
    if {"v_pred", "ztsnr"} & parts.get("other", {}).keys():
        return "v"
    said = (facts.get(name) for name in ("prediction_type", "modelspec.prediction_type", "parameterization"))
    return next((_PREDICTIONS[text] for text in said if text in _PREDICTIONS), None)


def _dtype(state: Mapping[str, Entry]) -> str:
    """The type that most of the weights have."""
    sizes: dict[str, int] = {}
    for entry in state.values():
        name = str(entry.dtype).removeprefix("torch.")
        sizes[name] = sizes.get(name, 0) + entry.nbytes
    return max(sizes, key=lambda name: sizes[name])
