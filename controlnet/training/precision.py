"""Which arithmetic a run trains in."""

from __future__ import annotations

import torch

from controlnet.generation import devices


def find_precision(name: str, accelerator: str) -> str:
    """``auto`` for bf16-mixed where GPU or processor compute it themselves, and 32-true elsewhere; any other
    of the settings' ``PRECISIONS`` as it is.

    Args:
        accelerator: Lightning's name of it: cpu, gpu, auto, ...
    """
    if name != "auto":
        return name
    on_gpu = accelerator in ("gpu", "cuda") or (accelerator == "auto" and torch.cuda.is_available())
    if on_gpu:
        native = torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = accelerator in ("cpu", "auto") and devices.computes_bf16()
    return "bf16-mixed" if native else "32-true"
