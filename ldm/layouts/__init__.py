"""Weights as other programs write them, read and written.

The names that everything here works with are those of the original's released checkpoints ("the original's
layout"). One module each: :mod:`~ldm.layouts.parts` takes a file apart, :mod:`~ldm.layouts.diffusers` and
:mod:`~ldm.layouts.clip` rename, :mod:`~ldm.layouts.lora` and :mod:`~ldm.layouts.embedding` read what changes
a model, :mod:`~ldm.layouts.recognise` says what a file is, :mod:`~ldm.layouts.foreign` names what has no use
here.
"""

from __future__ import annotations

UNET = "model.diffusion_model."
VAE = "first_stage_model."
TEXT = "cond_stage_model."
CONTROL = "control_model."

PREFIXES = {"unet": UNET, "vae": VAE, "text": TEXT, "control": CONTROL}
"""Where each part of a model stands in the original's layout."""
