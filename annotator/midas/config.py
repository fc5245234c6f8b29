"""The widths of a DPT hybrid, and how they are read off the tensors of a file."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from ldm.weights import WeightsError

if TYPE_CHECKING:
    from transformers import DPTConfig

HINT = "The released file is dpt_hybrid-midas-501f0c75.pt."
_HEAD_WIDTH = 64


def dpt_config(
    *,
    stem: int,
    widths: Sequence[int],
    depths: Sequence[int],
    hidden_size: int,
    layers: int,
    mlp: int,
    side: int,
    laterals: Sequence[int],
    fusion: int,
) -> DPTConfig:
    """A DPT hybrid of any width; the rest follows from the released network by fixed rules.

    Attention heads have 64 channels; the backbone's normalisation has one group for each 8 channels of its
    first stage; hidden states are taken after three quarters of the transformer's layers and after the last.

    Args:
        stem: channels of the backbone's first convolution.
        widths, depths: channels and blocks of the backbone's three stages.
        hidden_size, layers, mlp: channels, blocks and hidden channels of the transformer.
        side: patches of 16 pixels along the side of the pictures that it is trained with.
        laterals: channels of the four maps that are fused.
        fusion: channels of the fused map.
    """
    from transformers import DPTConfig

    backbone = {
        "model_type": "bit",
        "global_padding": "same",
        "layer_type": "bottleneck",
        "embedding_dynamic_padding": True,
        "embedding_size": stem,
        "hidden_sizes": list(widths),
        "depths": list(depths),
        "num_groups": widths[0] // 8,
        "out_features": ["stage1", "stage2", "stage3"],
    }
    return DPTConfig(
        is_hybrid=True,
        hidden_size=hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=hidden_size // _HEAD_WIDTH,
        intermediate_size=mlp,
        layer_norm_eps=1e-6,
        image_size=16 * side,
        backbone_featmap_shape=[1, widths[-1], side, side],
        backbone_out_indices=[0, 1, 3 * layers // 4 - 1, layers - 1],  # the first two are the backbone's
        neck_hidden_sizes=list(laterals),
        neck_ignore_stages=[0, 1],
        fusion_hidden_size=fusion,
        backbone_config=backbone,
    )


def config_of(state: Mapping[str, Tensor], source: str | Path) -> DPTConfig:
    """The config of the network that the tensors of a file belong to; only keys and shapes are looked at.

    Args:
        state: tensors with released keys.
        source: the file, for the error.

    Raises:
        WeightsError: a tensor is missing that a width is read off, or no DPT hybrid has these widths.
    """
    model = "pretrained.model"
    stages = [f"{model}.patch_embed.backbone.stages.{stage}.blocks" for stage in range(3)]
    layers = _count(state, f"{model}.blocks")
    try:
        hidden_size = state[f"{model}.cls_token"].shape[-1]
        laterals = [state[f"scratch.layer{level}_rn.weight"].shape for level in range(1, 5)]
        widths = [state[f"{stage}.0.conv3.weight"].shape[0] for stage in stages]
        if hidden_size % _HEAD_WIDTH or layers < 2 or widths[0] % 32:
            raise WeightsError(
                f"{source}: a transformer of {layers} layers and {hidden_size} channels behind a first stage "
                f"of {widths[0]}; at least 2 layers and multiples of {_HEAD_WIDTH} and 32 are wanted. {HINT}"
            )
        return dpt_config(
            stem=state[f"{model}.patch_embed.backbone.stem.conv.weight"].shape[0],
            widths=widths,
            depths=[_count(state, stage) for stage in stages],
            hidden_size=hidden_size,
            layers=layers,
            mlp=state[f"{model}.blocks.0.mlp.fc1.weight"].shape[0],
            side=round((state[f"{model}.pos_embed"].shape[1] - 1) ** 0.5),
            laterals=[shape[1] for shape in laterals],
            fusion=laterals[0][0],
        )
    except (KeyError, IndexError) as error:
        text = f"{source}: these are not the weights of a DPT hybrid ({error} is missing or a scalar). {HINT}"
        raise WeightsError(text) from error


def _count(state: Mapping[str, Tensor], place: str) -> int:
    """How many numbered modules lie at a place."""
    found = (re.match(rf"{re.escape(place)}\.(\d+)\.", key) for key in state)
    return len({match[1] for match in found if match})
