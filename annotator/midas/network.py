"""MiDaS' DPT hybrid on transformers' modules: for pictures of any size, and with less to compute.

Ranftl, Bochkovskiy, Koltun: Vision Transformers for Dense Prediction (2021),
https://arxiv.org/abs/2103.13413.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from annotator.midas.backbone import rearrange_backbone
from annotator.midas.config import HINT, config_of
from annotator.midas.doubled import ConvolveDoubled
from annotator.midas.released import CLASSIFIER, to_released, to_transformers
from ldm.torchvision_ops import declare_missing_ops
from ldm.weights import WeightsError, load_file_into, map_state_dict

if TYPE_CHECKING:
    from transformers import DPTConfig

PATCH = 16
_MULTIPLE = 2 * PATCH  # the coarsest map is at 1/32 of the picture


class DepthNetwork(nn.Module):
    """``[B, 3, H, W]`` RGB in [-1, 1] -> ``[B, H, W]`` relative inverse depth, 0 or more, in no unit.

    The keys of its state dict are those of the released file. A side that is no multiple of 32 is continued
    by its last pixels up to the next one, and the depth is cut to it again.
    """

    def __init__(self, config: DPTConfig):
        super().__init__()
        declare_missing_ops()
        from transformers import DPTForDepthEstimation

        self.network = DPTForDepthEstimation(config)
        self.last_enlarging: nn.Module = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)
        self._taps = tuple(config.backbone_out_indices[2:])
        self.register_state_dict_post_hook(_rename_saved)
        self.register_load_state_dict_pre_hook(_rename_loaded)

    @classmethod
    def from_file(cls, path: str | Path) -> DepthNetwork:
        """The network whose widths and weights a file holds, in float32 on the CPU.

        Raises:
            WeightsError: the file is missing or damaged, lacks a tensor, or holds others.
        """
        config = config_of(map_state_dict(path), path)
        try:
            with torch.device("meta"):
                network = cls(config)
        except ValueError as error:
            raise WeightsError(f"{path}: no DPT hybrid has these widths ({error}). {HINT}") from error
        load_file_into(network, path, ignore=(CLASSIFIER,), hint=HINT)
        return network

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        x = F.pad(x, (0, -width % _MULTIPLE, 0, -height % _MULTIPLE), mode="replicate")
        fused = self.last_enlarging(self._fuse(self._features(x)))
        return self.network.head.head(fused)[:, 0, :height, :width]

    def _features(self, x: Tensor) -> list[Tensor]:
        """Maps at 1/4, 1/8, 1/16 and 1/32 of the picture: two of the backbone, two of the transformer."""
        encoder, neck = self.network.dpt, self.network.neck
        embedded = encoder.embeddings(x, interpolate_pos_encoding=True)
        hidden, taken = embedded.last_hidden_states, list(embedded.intermediate_activations)
        for index, layer in enumerate(encoder.encoder.layer):
            hidden = layer(hidden)
            if index in self._taps:
                taken.append(hidden)
        maps = neck.reassemble_stage(taken, x.shape[2] // PATCH, x.shape[3] // PATCH)
        return [convolve(level) for convolve, level in zip(neck.convs, maps, strict=True)]

    def _fuse(self, maps: list[Tensor]) -> Tensor:
        """Maps of four sizes -> one of the size of the first, coarse to fine."""
        fused: Tensor | None = None
        for level, layer in zip(maps[::-1], self.network.neck.fusion_stage.layers, strict=True):
            if fused is not None:
                fused = F.interpolate(fused, scale_factor=2, mode="bilinear", align_corners=True)
                level = fused + layer.residual_layer1(level)
            # MiDaS enlarges before this 1x1 convolution. The two may change places, since the shares that a
            # pixel is mixed from sum to 1, and this way round the convolution has a quarter of the pixels.
            fused = layer.projection(layer.residual_layer2(level))
        return fused

    def for_inference(self) -> DepthNetwork:
        """Rearrange in place for the same depth with less to compute; no way leads back to train or save it.

        The backbone's weights are standardised once, not in every pass, and the head convolves before it
        enlarges.
        """
        rearrange_backbone(self.network.dpt.embeddings.backbone)
        first, _, second, *rest = self.network.head.head
        self.network.head.head = nn.Sequential(ConvolveDoubled(first), ConvolveDoubled(second), *rest)
        self.last_enlarging = nn.Identity()
        return self.eval().requires_grad_(False)


def _rename_saved(module: nn.Module, state: dict[str, Tensor], prefix: str, metadata: Any) -> None:
    _rename(state, f"{prefix}network.", prefix, to_released)


def _rename_loaded(module: nn.Module, state: dict[str, Tensor], prefix: str, *args: Any) -> None:
    _rename(state, prefix, f"{prefix}network.", to_transformers)


def _rename(state: dict[str, Tensor], old: str, new: str, renamed: Any) -> None:
    """Give the tensors below a prefix other names and another prefix, in place."""
    own = {key[len(old) :]: state.pop(key) for key in list(state) if key.startswith(old)}
    state.update({f"{new}{key}": tensor for key, tensor in renamed(own).items()})
