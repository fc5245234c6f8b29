"""The original's switches under its names. Each changes the whole process: models that are there and models
to come.

What they switch on are options of ours, which a single model may have instead: ``long_prompts`` and
``clip_skip`` of `FrozenCLIPEmbedder`, and `ldm.modules.attention.set_attention_slice`.
"""

from __future__ import annotations

from ldm.modules.attention import CrossAttention
from ldm.modules.diffusionmodules.blocks import AttentionBlock
from ldm.modules.encoders.modules import FrozenCLIPEmbedder


def disable_verbosity() -> None:
    """Let transformers say nothing but errors."""
    from transformers import logging

    logging.set_verbosity_error()


def enable_sliced_attention() -> None:
    """Let attention layers work on one head at a time, for little memory."""
    CrossAttention.slice_size = AttentionBlock.slice_size = 1


def hack_everything(clip_skip: int = 0) -> None:
    """Let CLIP encode prompts in three chunks of 75 tokens, and leave out its last layers.

    Args:
        clip_skip: 0 or 1 for all layers, 2 for all but the last, and so on. A layer or length that a model's
            own definition names stays.
    """
    if clip_skip < 0:
        raise ValueError(f"got clip_skip={clip_skip}; expected 0 or more, the layers to count from the end")
    disable_verbosity()
    FrozenCLIPEmbedder.long_prompts = "chunk"
    FrozenCLIPEmbedder.clip_skip = max(1, clip_skip)
