"""Where networks work, and in which numbers."""

from __future__ import annotations

import torch

PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class ModelError(ValueError):
    """A model, device or precision that cannot be had as it is asked for; the text says what to do."""


def find_device(name: str) -> torch.device:
    """``auto`` for the first GPU if there is one, or torch's name of a device that is there.

    Raises:
        ModelError: no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ModelError(f"--device {name} cannot be used: {str(error).splitlines()[0]}") from error
    return device


def find_precision(name: str, device: torch.device) -> torch.dtype:
    """``auto`` for fp16 on a GPU and fp32 elsewhere, or one of ``PRECISIONS``.

    Raises:
        ModelError: an unknown name.
    """
    if name == "auto":
        name = "fp16" if device.type == "cuda" else "fp32"
    if name not in PRECISIONS:
        raise ModelError(f"--precision {name} is not known; choose auto, {', '.join(PRECISIONS)}.")
    return PRECISIONS[name]
