"""Text that reaches a part of the picture only: further prompts beside the whole one, each with the places
where it holds.

Where a prompt holds with weight w, attention to the text gives w times what it gives for that prompt alone,
and 1 - w times what it gives for the whole one: a blend of what is found, so that no word outside a place is
looked at there. The weights are shares of area at each level's own size, with soft edges therefore.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ldm.modules.sharing import TEXT_MEMORY

REGIONAL = "regional_prompts"
"""Key of a condition: its `RegionalPrompts`, beside ``c_crossattn``."""

REST = 0.1
"""How much an area without a prompt of its own counts beside one with: a boat that fills a tenth of a pixel
of a coarse level would hardly hear of its color otherwise."""


@dataclass(frozen=True, eq=False)
class RegionalPrompts:
    """Prompts for parts of the picture.

    Attributes:
        texts: their embeddings ``[R or 1, K, L, D]``: K for each of R pictures, or the same K for all.
        shares: of each pixel of the latent ``[R, K, h, w]``, in [0, 1], together 1 at most.
    """

    texts: torch.Tensor
    shares: torch.Tensor
    _weights: dict[tuple[int, int], torch.Tensor] = field(default_factory=dict, repr=False)
    _found: dict[nn.Module, tuple[torch.Tensor, ...]] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        shapes = list(self.texts.shape), list(self.shares.shape)
        fits = len(shapes[0]) == len(shapes[1]) == 4 and shapes[0][0] in (1, shapes[1][0])
        if not fits or shapes[0][1] != shapes[1][1]:
            raise ValueError(
                f"got texts {shapes[0]} with shares {shapes[1]}; expected [R or 1, K, L, D] and [R, K, h, w]"
            )

    def __len__(self) -> int:
        return len(self.shares)

    def to(self, dtype: torch.dtype) -> RegionalPrompts:
        """The same in another type."""
        return (
            self
            if self.texts.dtype == dtype
            else RegionalPrompts(self.texts.to(dtype), self.shares.to(dtype))
        )

    def rows(self, count: int) -> RegionalPrompts:
        """The first ``count`` pictures."""
        if count >= len(self):
            return self
        return RegionalPrompts(self.texts[:count], self.shares[:count])

    def weights(self, height: int, width: int) -> torch.Tensor:
        """How much each prompt says at each pixel of a level: ``[R, K, height * width]``, together 1 at
        most.
        """
        if (height, width) not in self._weights:
            shares = F.adaptive_avg_pool2d(self.shares.float(), (height, width))
            together = shares.sum(1, keepdim=True)
            weights = shares / (together + REST * (1 - together)).clamp(min=REST)
            self._weights[height, width] = weights.flatten(2).to(self.shares.dtype)
        return self._weights[height, width]

    def keys_and_values(self, layer: nn.Module) -> tuple[torch.Tensor, ...]:
        """What a layer's ``to_k`` and ``to_v`` make of the texts, ``[R or 1, K, L, inner]`` each: the same at
        every step of a run.
        """
        if layer not in self._found:
            flat = self.texts.flatten(0, 1)
            rows = self.texts.shape[:2]
            self._found[layer] = tuple(part(flat).unflatten(0, rows) for part in (layer.to_k, layer.to_v))
        return self._found[layer]


@dataclass(frozen=True, eq=False)
class RegionalContext:
    """What attention looks at where a condition has `RegionalPrompts`, in place of a context ``[B, M, D]``.

    Attributes:
        whole: the text of the whole picture ``[B, M, D]``.
        prompts: of the first rows; the others have none.
        level: height and width of the feature map that looks, once they are known.
    """

    whole: torch.Tensor
    prompts: RegionalPrompts
    level: tuple[int, int] | None = None

    def __len__(self) -> int:
        return len(self.whole)

    def __getitem__(self, rows: slice) -> RegionalContext:
        whole = self.whole[rows]
        return RegionalContext(whole, self.prompts.rows(len(whole)), self.level)

    def to(self, dtype: torch.dtype) -> RegionalContext:
        """The same in another type."""
        return RegionalContext(self.whole.to(dtype), self.prompts.to(dtype), self.level)

    def seen_from(self, height: int, width: int) -> RegionalContext:
        """The same for a feature map of this size."""
        return RegionalContext(self.whole, self.prompts, (height, width))

    @property
    def weights(self) -> torch.Tensor:
        """`RegionalPrompts.weights` at the feature map's size."""
        if self.level is None:
            raise ValueError("the size of the feature map is not known: call seen_from first")
        return self.prompts.weights(*self.level)


def context_of(cond: Mapping[str, Any]) -> torch.Tensor | RegionalContext:
    """What attention looks at for a condition: the embeddings of its ``c_crossattn`` one behind the other,
    with its regional prompts where it has some.
    """
    whole = torch.cat(list(cond["c_crossattn"]), dim=1)
    memory = cond.get(TEXT_MEMORY)
    if memory is not None and memory.is_of(cond["c_crossattn"]):
        whole = memory.attach(whole)
    return whole if cond.get(REGIONAL) is None else RegionalContext(whole, cond[REGIONAL])
