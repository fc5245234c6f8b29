"""The names of text encoders: transformers' CLIP, with and without ``text_model.``, and open_clip's.

Below ``cond_stage_model.`` SD 1.x has ``transformer.text_model.*`` (transformers' names), SD 2.x has
``model.*`` (open_clip's). diffusers writes either with transformers' names, and leaves out what the embedding
never uses.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from ldm.recipes import Entry, Recipe, joined_rows, tensor_of

HUGGING_FACE, OPEN_CLIP = "transformer.text_model.", "model."

_OPEN_CLIP_NAMES = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm.weight": "ln_final.weight",
    "final_layer_norm.bias": "ln_final.bias",
}
_BLOCK_NAMES = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "self_attn.out_proj": "attn.out_proj",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}
_QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
_UNUSED = ("model.text_projection", "model.logit_scale")
_BLOCKS = "model.transformer.resblocks."


def to_original(entries: Mapping[str, Entry], wanted: Mapping[str, Tensor]) -> dict[str, Entry]:
    """A text encoder under the names of the original.

    Parts of SD 2.x's encoder that its embedding never uses (the last block, the projection) may be missing;
    they become zeros.

    Args:
        entries: the encoder, under any of its names.
        wanted: keys and shapes (below ``cond_stage_model.``) of the model that it is for.
    """
    state = {_canonical(name): entry for name, entry in entries.items()}
    if not any(name.startswith(OPEN_CLIP) for name in wanted):
        return state
    state = _to_open_clip(state)
    last = f"{_BLOCKS}{max(int(name.split('.')[3]) for name in wanted if name.startswith(_BLOCKS))}."
    unused = [name for name in wanted if name in _UNUSED or name.startswith(last)]
    if any(name.startswith(last) for name in state):
        unused = [name for name in unused if name in _UNUSED]
    zeros = {name: _zeros(wanted[name]) for name in unused if name not in state}
    return {**zeros, **state}


def _zeros(like: Tensor) -> Recipe:
    shape, dtype = like.shape, like.dtype
    return Recipe(shape, dtype, lambda: torch.zeros(shape, dtype=dtype))


def _canonical(name: str) -> str:
    """The name with the prefix that the original gives it."""
    if name.startswith(("transformer.resblocks.", "token_embedding.", "positional_embedding", "ln_final.")):
        return OPEN_CLIP + name
    if name.startswith(OPEN_CLIP):
        return name
    bare = name.removeprefix("transformer.").removeprefix("text_model.")
    is_text = bare.split(".")[0] in ("embeddings", "encoder", "final_layer_norm")
    return HUGGING_FACE + bare if is_text else name


def _to_open_clip(state: Mapping[str, Entry]) -> dict[str, Entry]:
    result: dict[str, Entry] = {}
    rows: dict[str, dict[str, Entry]] = {}
    for name, entry in state.items():
        if name in ("text_projection.weight", "transformer.text_projection.weight"):
            result["model.text_projection"] = _transposed(entry)
        elif name in ("logit_scale", "transformer.logit_scale"):
            result["model.logit_scale"] = entry
        elif not name.startswith(HUGGING_FACE):
            result[name] = entry
        elif part := _row(name[len(HUGGING_FACE) :]):
            rows.setdefault(part[0], {})[part[1]] = entry
        else:
            result[OPEN_CLIP + open_clip_name(name[len(HUGGING_FACE) :])] = entry
    for name, thirds in rows.items():
        if len(thirds) == len(_QKV):
            result[OPEN_CLIP + name] = joined_rows([thirds[third] for third in _QKV])
    return result


def _transposed(entry: Entry) -> Recipe:
    return Recipe(torch.Size(entry.shape[::-1]), entry.dtype, lambda: tensor_of(entry).T.contiguous())


def _row(name: str) -> tuple[str, str] | None:
    """For a third of the joined matrix of queries, keys and values: the whole's name, and which third."""
    if match := re.fullmatch(r"encoder\.layers\.(\d+)\.(self_attn\.[qkv]_proj)\.(weight|bias)", name):
        return f"transformer.resblocks.{match[1]}.attn.in_proj_{match[3]}", match[2]
    return None


def open_clip_name(name: str) -> str:
    """open_clip's name for one of transformers' (below ``text_model.``); those of queries, keys and values
    share one, see :func:`third_of`.
    """
    if name in _OPEN_CLIP_NAMES:
        return _OPEN_CLIP_NAMES[name]
    if part := _row(name):
        return part[0]
    match = re.fullmatch(r"encoder\.layers\.(\d+)\.(.+)\.(weight|bias)", name)
    if match is None or match[2] not in _BLOCK_NAMES:
        return name
    return f"transformer.resblocks.{match[1]}.{_BLOCK_NAMES[match[2]]}.{match[3]}"


def third_of(name: str) -> int | None:
    """0, 1 or 2 for a name of queries, keys or values: its place in open_clip's joined matrix; else None."""
    part = _row(name)
    return None if part is None else _QKV.index(part[1])


def to_hugging_face(entries: Mapping[str, Entry], skipped_layers: int = 0) -> dict[str, Entry]:
    """The original's text encoder (keys below ``cond_stage_model.``) under the names of transformers'
    ``CLIPTextModel``, as diffusers' folders hold it.

    Args:
        skipped_layers: so many blocks of an open_clip encoder are left out at the end: 1 for SD 2.x, which
            takes its embedding from the block before. The projection, never used either, goes as well.
    """
    if any(name.startswith(HUGGING_FACE) for name in entries):
        kept = [name for name in entries if name.startswith(HUGGING_FACE) and "position_ids" not in name]
        return {name.removeprefix("transformer."): entries[name] for name in kept}
    blocks = {int(name.split(".")[3]) for name in entries if name.startswith(_BLOCKS)}
    inverse = {ours: theirs for theirs, ours in _OPEN_CLIP_NAMES.items()}
    inner = {ours: theirs for theirs, ours in _BLOCK_NAMES.items()}
    state: dict[str, Entry] = {}
    for name, entry in entries.items():
        bare = name.removeprefix(OPEN_CLIP)
        match = re.fullmatch(r"transformer\.resblocks\.(\d+)\.(.+?)[._](weight|bias)", bare)
        if bare in inverse:
            state[f"text_model.{inverse[bare]}"] = entry
        elif match and int(match[1]) <= max(blocks) - skipped_layers:
            place = f"text_model.encoder.layers.{match[1]}"
            if match[2] == "attn.in_proj":
                thirds = tensor_of(entry).chunk(len(_QKV))
                state |= {f"{place}.{n}.{match[3]}": third for n, third in zip(_QKV, thirds, strict=True)}
            else:
                state[f"{place}.{inner[match[2]]}.{match[3]}"] = entry
    return state
