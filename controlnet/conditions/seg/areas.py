"""How much each place of a map counts in the loss, so that a person is not drowned by the sky.

A pixel of the sky and a pixel of a boat weigh the same in diffusion's loss, and there are a hundred times as
many of the first: what a boat should look like is learned last. Segmentation knows the remedy as weighting by
inverse frequency.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from controlnet.conditions.base import ConditionError

MOST_COLORS = 1024


@dataclass(frozen=True)
class AreaBalance:
    """``place_weights`` of a `TrainingObjective` for maps as hints: small areas count for more.

    Args:
        power: see `area_weights`.
    """

    power: float

    def __call__(self, cond: Mapping[str, Any]) -> torch.Tensor | None:
        """Weights ``[B, 1, h, w]`` for a condition with a hint ``c_concat``, None for one without."""
        if cond.get("c_concat") is None:
            return None
        return area_weights(torch.cat(list(cond["c_concat"]), dim=1), self.power)


def area_weights(hint: torch.Tensor, power: float) -> torch.Tensor:
    """Weights of a latent's places: a pixel has (share of the hint in its colour) ** -power; they are 1 on
    average.

    Args:
        hint: maps of flat colours, ``[B, C, 8h, 8w]`` in [0, 1].
        power: 0 weighs all places alike, 1 all colours of a map alike.

    Returns:
        ``[B, 1, h, w]``, float32, mean 1 for each of the B.

    Raises:
        ConditionError: a hint has more than `MOST_COLORS` colours, so it is no map.
    """
    levels = (hint[..., ::2, ::2] * 255).round().long()  # [B, C, 4h, 4w]: a quarter of the pixels is enough
    codes = levels[:, 0]
    for channel in levels.unbind(1)[1:]:
        codes = codes * 256 + channel  # [B, 4h, 4w]: one number for each colour
    of_places = []
    for code in codes:
        colors, place, pixels = code.unique(return_inverse=True, return_counts=True)
        if len(colors) > MOST_COLORS:
            raise ConditionError(
                f"A hint has {len(colors)} colours; area_balance is for maps of flat colours, with "
                f"{MOST_COLORS} at most. Set it to 0, or hint_kind to color-map where maps are resized."
            )
        of_places.append((pixels / code.numel()).pow(-power)[place])
    weights = F.avg_pool2d(torch.stack(of_places)[:, None], 4)  # [B, 1, h, w]
    return weights / weights.mean(dim=(1, 2, 3), keepdim=True)
