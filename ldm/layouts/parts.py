"""Takes a state dict apart into UNet, VAE, text encoder and control, whatever prefixes they stand under."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from ldm.layouts import PREFIXES, clip, diffusers
from ldm.recipes import Entry

_WRAPPERS = ("module.", "_orig_mod.", "model.", "state_dict.")
"""What DataParallel, torch.compile and training scripts put before every key."""

_PLACES = {
    **{prefix: part for part, prefix in PREFIXES.items()},
    "diffusion_model.": "unet",
    "unet.": "unet",
    "vae.": "vae",
    "text_encoder.": "text",
    "controlnet.": "control",
}
"""Prefix -> part: the original's, and the folders of diffusers."""

_UNET_ROOTS = {"time_embed", "input_blocks", "middle_block", "output_blocks", "out", "label_emb"} | {
    "conv_in",
    "time_embedding",
    "down_blocks",
    "mid_block",
    "up_blocks",
    "conv_norm_out",
    "conv_out",
    "add_embedding",
    "class_embedding",
}
_CONTROL_ROOTS = {
    *_UNET_ROOTS,
    "zero_convs",
    "input_hint_block",
    "middle_block_out",
    "controlnet_cond_embedding",
    "controlnet_down_blocks",
    "controlnet_mid_block",
}
_VAE_ROOTS = {"encoder", "decoder", "quant_conv", "post_quant_conv", "loss"}
_TEXT_ROOTS = {"text_model", "embeddings", "encoder", "final_layer_norm", "transformer", "vision_model"} | {
    "token_embedding",
    "positional_embedding",
    "ln_final",
    "text_projection",
    "visual_projection",
    "visual",
    "logit_scale",
}
_ALONE = (
    ("input_hint_block.0.weight", "control", _CONTROL_ROOTS),
    ("controlnet_cond_embedding.conv_in.weight", "control", _CONTROL_ROOTS),
    ("input_blocks.0.0.weight", "unet", _UNET_ROOTS),
    ("down_blocks.0.resnets.0.norm1.weight", "unet", _UNET_ROOTS),
    ("decoder.conv_in.weight", "vae", _VAE_ROOTS),
    ("encoder.conv_in.weight", "vae", _VAE_ROOTS),
    ("text_model.embeddings.token_embedding.weight", "text", _TEXT_ROOTS),
    ("embeddings.token_embedding.weight", "text", _TEXT_ROOTS),
    ("token_embedding.weight", "text", _TEXT_ROOTS),
)
"""A key that a part without a prefix always has, the part, and the first names of its keys."""

Parts = dict[str, dict[str, Entry]]


def split(state: Mapping[str, Entry]) -> Parts:
    """Part ("unet", "vae", "text", "control", "other") -> its entries, under the names that they have below
    the prefix; parts that are not there are left out.
    """
    parts: Parts = {}
    for key, entry in _unwrapped(state).items():
        prefix = next((prefix for prefix in _PLACES if key.startswith(prefix)), "")
        parts.setdefault(_PLACES.get(prefix, "other"), {})[key[len(prefix) :]] = entry
    other = parts.get("other", {})
    for sign, part, roots in _ALONE:
        if sign in other and part not in parts:
            parts[part] = {key: entry for key, entry in other.items() if key.split(".")[0] in roots}
            parts["other"] = other = {key: entry for key, entry in other.items() if key not in parts[part]}
    return {part: entries for part, entries in parts.items() if entries}


def _unwrapped(state: Mapping[str, Entry]) -> dict[str, Entry]:
    state = dict(state)
    while wrapper := next((w for w in _WRAPPERS if state and all(key.startswith(w) for key in state)), None):
        state = {key[len(wrapper) :]: entry for key, entry in state.items()}
    return state


def to_original(parts: Parts, wanted: Mapping[str, Tensor]) -> dict[str, Entry]:
    """The entries under the original's keys.

    Args:
        parts: of :func:`split`.
        wanted: keys and shapes of the model that they are for; what has no counterpart there keeps its name.
    """
    state: dict[str, Entry] = {}
    for part, entries in parts.items():
        prefix = PREFIXES.get(part, "")
        names = {key[len(prefix) :]: wanted[key] for key in wanted if key.startswith(prefix)}
        if part == "text":
            entries = clip.to_original(entries, names)
        elif part != "other" and diffusers.is_diffusers(entries):
            entries = diffusers.to_original(part, entries, names)
        state.update((prefix + name, entry) for name, entry in entries.items())
    return state
