"""Where networks work, and in which numbers."""

from __future__ import annotations

import importlib.util
import os
import shutil

import torch

from ldm.packing import can_pack

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


def computes_bf16() -> bool:
    """Whether this machine's processor multiplies bf16 numbers itself (AVX512-BF16 or AMX) and torch knows
    how. Others take them apart into fp32, which is slower than fp32.
    """
    knows = torch.cpu.get_capabilities()
    return can_pack() and bool(knows.get("avx512_bf16") or knows.get("amx_bf16"))


def find_precision(name: str, device: torch.device) -> torch.dtype:
    """``auto`` for fp16 on a GPU, bf16 on a processor that computes it, and fp32 elsewhere; or one of
    ``PRECISIONS``.

    Raises:
        ModelError: an unknown name.
    """
    if name == "auto":
        on_cpu = "bf16" if device.type == "cpu" and computes_bf16() else "fp32"
        name = "fp16" if device.type == "cuda" else on_cpu
    if name not in PRECISIONS:
        raise ModelError(f"--precision {name} is not known; choose auto, {', '.join(PRECISIONS)}.")
    return PRECISIONS[name]


def check_compiler(device: torch.device) -> None:
    """What ``torch.compile`` needs for a device: triton on a GPU, a C++ compiler elsewhere.

    Raises:
        ModelError: it is not there.
    """
    if device.type == "cuda":
        found, wanted = importlib.util.find_spec("triton") is not None, "triton"
    else:
        names = (os.environ.get("CXX", "g++"), "clang++", "c++")
        found, wanted = any(map(shutil.which, names)), "a C++ compiler (g++, clang++, or what CXX names)"
    if not found:
        raise ModelError(f"--compile needs {wanted}, and there is none here; leave --compile out.")


def check_graphs(device: torch.device, save_memory: bool) -> None:
    """What CUDA graphs need: a GPU, and networks that stay where they are.

    Raises:
        ModelError: they do not have it.
    """
    if device.type != "cuda":
        raise ModelError(f"--cuda-graphs needs a GPU, and the networks work on {device} here; leave it out.")
    if save_memory:
        raise ModelError("--cuda-graphs needs networks that stay on the GPU; leave out it or --save-memory.")


def precision_name(dtype: torch.dtype) -> str:
    """A type's name in ``PRECISIONS``; of others torch's own."""
    names = {known: name for name, known in PRECISIONS.items()}
    return names.get(dtype, str(dtype).removeprefix("torch."))
