"""The names that diffusers gives to the parts of a UNet, a ControlNet and a VAE.

diffusers counts blocks within a level, the original counts them through; so the table of a network is made
from its own keys. Source: the state dicts of diffusers' ``UNet2DConditionModel``, ``ControlNetModel``,
``AutoencoderKL``.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping

from ldm.recipes import Entry, reshaped

_RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
_FIXED = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "middle_block.1": "mid_block.attentions.0",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
    "middle_block_out.0": "controlnet_mid_block",
    "input_hint_block.0": "controlnet_cond_embedding.conv_in",
    "input_hint_block.14": "controlnet_cond_embedding.conv_out",
    **{f"input_hint_block.{2 * i + 2}": f"controlnet_cond_embedding.blocks.{i}" for i in range(6)},
}
_VAE_RULES = (
    (r"^(encoder|decoder)\.norm_out", r"\1.conv_norm_out"),
    (r"\.nin_shortcut\.", ".conv_shortcut."),
    (r"\.mid\.block_1\.", ".mid_block.resnets.0."),
    (r"\.mid\.block_2\.", ".mid_block.resnets.1."),
    (r"\.mid\.attn_1\.norm\.", ".mid_block.attentions.0.group_norm."),
    (r"\.mid\.attn_1\.([qkv])\.", r".mid_block.attentions.0.to_\1."),
    (r"\.mid\.attn_1\.proj_out\.", ".mid_block.attentions.0.to_out.0."),
    (r"^encoder\.down\.(\d+)\.block\.", r"encoder.down_blocks.\1.resnets."),
    (r"^encoder\.down\.(\d+)\.downsample\.", r"encoder.down_blocks.\1.downsamplers.0."),
    (r"^decoder\.up\.(\d+)\.block\.", r"decoder.up_blocks.\1.resnets."),
    (r"^decoder\.up\.(\d+)\.upsample\.", r"decoder.up_blocks.\1.upsamplers.0."),
)
_OLD_ATTENTION = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}
"""Names of diffusers before version 0.18, which many VAE files have."""


def is_diffusers(entries: Collection[str]) -> bool:
    """Whether the keys of a part (without its prefix) are diffusers'."""
    return any(re.match(r"(encoder\.|decoder\.)?(down_blocks|mid_block|up_blocks)\.", key) for key in entries)


def names(part: str, keys: Collection[str]) -> dict[str, str]:
    """The original's key -> diffusers' key, for all keys of a part ("unet", "control" or "vae")."""
    if part == "vae":
        return _vae_names(keys)
    table = {**_FIXED, **dict(_blocks(keys))}
    return {key: _replaced(key, table) for key in keys}


def to_original(part: str, entries: Mapping[str, Entry], wanted: Collection[str]) -> dict[str, Entry]:
    """A part of diffusers under the original's names; a name without a counterpart in ``wanted`` stays."""
    original = {theirs: ours for ours, theirs in names(part, wanted).items()}
    return {original.get(_modern(key), key): entry for key, entry in entries.items()}


def from_original(part: str, entries: Mapping[str, Entry]) -> dict[str, Entry]:
    """A part under diffusers' names; the attention of a VAE has matrices there, not 1x1 convolutions."""
    renamed = {theirs: entries[ours] for ours, theirs in names(part, entries).items()}
    if part != "vae":
        return renamed
    return {
        key: reshaped(entry, entry.shape[:2]) if ".attentions." in key and entry.ndim == 4 else entry
        for key, entry in renamed.items()
    }


def _modern(key: str) -> str:
    if ".attentions." in key:
        for old, new in _OLD_ATTENTION.items():
            key = key.replace(old, new)
    return key


def _replaced(key: str, table: Mapping[str, str]) -> str:
    """The key with its longest beginning that the table has replaced."""
    words = key.split(".")
    for end in range(len(words), 0, -1):
        if (start := ".".join(words[:end])) in table:
            return ".".join([table[start], *words[end:]])
    return key


def _blocks(keys: Collection[str]) -> Iterator[tuple[str, str]]:
    """The table's rows for encoder, middle, decoder and zero convolutions."""
    ends = {".".join(key.split(".")[:4]) for key in keys}
    level = block = 0
    for index in range(1, _count("input_blocks", keys)):
        place, down = f"input_blocks.{index}", f"down_blocks.{level}"
        if f"{place}.0.op" in ends:
            yield f"{place}.0.op", f"{down}.downsamplers.0.conv"
            level, block = level + 1, 0
            continue
        yield from _resnet(f"{place}.0", f"{down}.resnets.{block}")
        yield f"{place}.1", f"{down}.attentions.{block}"
        block += 1
    level = block = 0
    for index in range(_count("output_blocks", keys)):
        place, up = f"output_blocks.{index}", f"up_blocks.{level}"
        yield from _resnet(f"{place}.0", f"{up}.resnets.{block}")
        yield f"{place}.1", f"{up}.attentions.{block}"
        block += 1
        for layer in (1, 2):
            if f"{place}.{layer}.conv" in ends:
                yield f"{place}.{layer}.conv", f"{up}.upsamplers.0.conv"
                level, block = level + 1, 0
    for i in (0, 1):
        yield from _resnet(f"middle_block.{2 * i}", f"mid_block.resnets.{i}")
    for index in range(_count("zero_convs", keys)):
        yield f"zero_convs.{index}.0", f"controlnet_down_blocks.{index}"


def _resnet(ours: str, theirs: str) -> Iterator[tuple[str, str]]:
    for inner, name in _RESNET.items():
        yield f"{ours}.{inner}", f"{theirs}.{name}"


def _count(root: str, keys: Collection[str]) -> int:
    return 1 + max((int(key.split(".")[1]) for key in keys if key.startswith(f"{root}.")), default=-1)


def _vae_names(keys: Collection[str]) -> dict[str, str]:
    levels = 1 + max((int(key.split(".")[2]) for key in keys if key.startswith("decoder.up.")), default=-1)
    table = {}
    for key in keys:
        name = key
        for pattern, replacement in _VAE_RULES:
            name = re.sub(pattern, replacement, name)
        # diffusers counts the decoder's levels from the lowest resolution.
        table[key] = re.sub(r"^decoder\.up_blocks\.(\d+)", lambda m: _flipped(m, levels), name)
    return table


def _flipped(match: re.Match[str], levels: int) -> str:
    return f"decoder.up_blocks.{levels - 1 - int(match[1])}"
