"""The released MiDaS file and transformers' DPT: the same tensors under other names.

The names follow timm's (``pretrained``) and MiDaS' (``scratch``) modules. Two things are more than names: the
file holds query, key and value as one matrix, and counts the fusion layers from the finest, transformers from
the coarsest. Its classifier (``pretrained.model.head``) is not used for depth.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

CLASSIFIER = "pretrained.model.head.*"
"""Keys of a released file that are left out, as a shell pattern."""

# Beginnings of names, released and transformers'; longer ones before those that they begin with.
_PLACES = (
    ("pretrained.model.patch_embed.backbone.stem.conv", "dpt.embeddings.backbone.bit.embedder.convolution"),
    ("pretrained.model.patch_embed.backbone.stem.norm", "dpt.embeddings.backbone.bit.embedder.norm"),
    ("pretrained.model.patch_embed.backbone", "dpt.embeddings.backbone.bit.encoder"),
    ("pretrained.model.patch_embed.proj", "dpt.embeddings.projection"),
    ("pretrained.model.cls_token", "dpt.embeddings.cls_token"),
    ("pretrained.model.pos_embed", "dpt.embeddings.position_embeddings"),
    ("pretrained.model.blocks", "dpt.encoder.layer"),
    ("pretrained.model.norm", "dpt.layernorm"),
    ("pretrained.act_postprocess3.0.project.0", "neck.reassemble_stage.readout_projects.2.0"),
    ("pretrained.act_postprocess3.3", "neck.reassemble_stage.layers.2.projection"),
    ("pretrained.act_postprocess4.0.project.0", "neck.reassemble_stage.readout_projects.3.0"),
    ("pretrained.act_postprocess4.3", "neck.reassemble_stage.layers.3.projection"),
    ("pretrained.act_postprocess4.4", "neck.reassemble_stage.layers.3.resize"),
    *((f"scratch.layer{n}_rn", f"neck.convs.{n - 1}") for n in range(1, 5)),
    *((f"scratch.refinenet{n}", f"neck.fusion_stage.layers.{4 - n}") for n in range(1, 5)),
    ("scratch.output_conv", "head.head"),
)
# Parts within such a place: of the backbone, of a transformer block, of a fusion layer.
_PARTS = (
    (".blocks.", ".layers."),
    (".attn.proj.", ".attention.output.dense."),
    (".mlp.fc1.", ".intermediate.dense."),
    (".mlp.fc2.", ".output.dense."),
    (".out_conv.", ".projection."),
    (".resConfUnit1.conv", ".residual_layer1.convolution"),
    (".resConfUnit2.conv", ".residual_layer2.convolution"),
)
_BLOCK_NORMS = ((".norm1.", ".layernorm_before."), (".norm2.", ".layernorm_after."))
_QKV = tuple(f".attention.attention.{name}." for name in ("query", "key", "value"))


def to_transformers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict with released keys -> the same tensors with those of ``DPTForDepthEstimation``.

    Query, key and value are views of the file's one matrix. A key that is not known is kept.
    """
    renamed = {}
    for key, tensor in state.items():
        name = _renamed(key, 0)
        if ".attn.qkv." in name:
            parts = (name.replace(".attn.qkv.", part) for part in _QKV)
            renamed.update(zip(parts, tensor.chunk(3), strict=True))
        else:
            renamed[name] = tensor
    return renamed


def to_released(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The way back from ``to_transformers``."""
    released = {}
    for key, tensor in state.items():
        query, *others = _QKV
        if query in key:
            parts = [tensor, *(state[key.replace(query, part)] for part in others)]
            released[_renamed(key.replace(query, ".attn.qkv."), 1)] = torch.cat(parts)
        elif not any(part in key for part in others):
            released[_renamed(key, 1)] = tensor
    return released


def _renamed(key: str, side: int) -> str:
    """The name on the other side; ``side`` is that of the key: 0 released, 1 transformers'."""
    place = next((pair for pair in _PLACES if f"{key}.".startswith(f"{pair[side]}.")), None)
    if place is None:
        return key
    rest = key[len(place[side]) :]
    in_block = place[0] == "pretrained.model.blocks"
    for pair in _BLOCK_NORMS if in_block else ():
        rest = rest.replace(pair[side], pair[1 - side])
    for pair in _PARTS:
        rest = rest.replace(pair[side], pair[1 - side])
    return place[1 - side] + rest
