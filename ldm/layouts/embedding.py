"""Textual inversion: a few vectors in the text encoder's token space, used by a name in the prompt.

Source: arXiv 2208.01618, and the files that webui (``string_to_param``), diffusers (``{"<token>": vector}``)
and safetensors trainers (``emb_params``) write.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ldm.layouts.files import open_raw
from ldm.recipes import Entry, tensor_of
from ldm.weight_formats import WeightsError

_GENERIC = ("emb_params", "string_to_param.*", "*")


class Embedding(NamedTuple):
    """Vectors float32 ``[n, width]``, and the names by which a prompt uses them."""

    names: tuple[str, ...]
    vectors: Tensor


def is_embedding(state: Mapping[str, Entry]) -> bool:
    """Whether a state dict is a textual inversion."""
    if any(key.startswith("string_to_param.") or key == "emb_params" for key in state):
        return True
    return len(state) == 1 and all(entry.ndim in (1, 2) and "." not in key for key, entry in state.items())


def read_embedding(path: Path) -> Embedding:
    """Read a textual inversion file.

    Its names are the file's without suffix, and the token where the file says one.

    Raises:
        WeightsError: it is none, or holds NaN or infinite numbers.
    """
    state = {
        k: v
        for k, v in open_raw(path)[0].items()
        if v.ndim in (1, 2) and not k.startswith("string_to_token.")
    }
    if len(state) != 1:
        raise WeightsError(
            f"{path}: this is no textual inversion: it holds {len(state)} vectors, expected one set"
        )
    ((key, entry),) = state.items()
    vectors = torch.atleast_2d(tensor_of(entry)).to(torch.float32, copy=True)
    if not torch.isfinite(vectors).all():
        raise WeightsError(f"{path}: the embedding holds NaN or infinite numbers")
    own = key.removeprefix("string_to_param.")
    names = (path.stem,) if key in _GENERIC or own == "*" else (path.stem, own)
    return Embedding(tuple(dict.fromkeys(names)), vectors)
