"""Tensors that are made when they are read, so that a state dict can be changed without reading it.

A weights file opens as a mapping from keys to views of a memory map. What a layout renames stays a view; what
it computes (three matrices joined to one, a LoRA added) becomes a :class:`Recipe`, whose shape and type are
known before anything is read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Recipe:
    """A tensor of known ``shape`` and ``dtype`` that ``make`` computes on the CPU, anew with each call."""

    shape: torch.Size
    dtype: torch.dtype
    make: Callable[[], Tensor]

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        return self.shape.numel() * self.dtype.itemsize


Entry = Tensor | Recipe
"""What a state dict holds while nothing is read yet."""

Opened = tuple[dict[str, Entry], bool]
"""A state dict, and whether its tensors are views of memory maps (or recipes on such)."""


def tensor_of(entry: Entry) -> Tensor:
    """The tensor itself; a recipe is carried out."""
    return entry.make() if isinstance(entry, Recipe) else entry


def tensors_of(state: Mapping[str, Entry]) -> dict[str, Tensor]:
    """A state dict of tensors; every recipe is carried out and its result held."""
    return {key: tensor_of(entry) for key, entry in state.items()}


def reshaped(entry: Entry, shape: torch.Size) -> Entry:
    """The same numbers in another shape."""
    if isinstance(entry, Recipe):
        return Recipe(shape, entry.dtype, lambda: entry.make().reshape(shape))
    return entry.reshape(shape)


def joined_rows(entries: list[Entry]) -> Recipe:
    """Matrices or vectors laid below each other."""
    first = entries[0]
    shape = torch.Size([sum(entry.shape[0] for entry in entries), *first.shape[1:]])
    return Recipe(shape, first.dtype, lambda: torch.cat([tensor_of(entry) for entry in entries]))


def sum_of(entry: Entry, delta: Callable[[], Tensor]) -> Recipe:
    """``entry + delta()``, in float32 or wider whatever the file has: nothing is rounded twice."""
    wide = torch.float64 if entry.dtype == torch.float64 else torch.float32
    return Recipe(entry.shape, wide, lambda: tensor_of(entry).to(wide) + delta().to(wide))
