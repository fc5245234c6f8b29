"""A mend for one broken pairing: a CPU build of torch beside a CUDA build of torchvision.

torchvision registers Python kernels for ``torchvision::nms`` when it is imported. Where its compiled library
cannot be loaded, that operator was never declared and every import that touches torchvision dies with
"operator torchvision::nms does not exist", although neither we nor the libraries we use ever call it.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch

_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


def declare_missing_ops() -> None:
    """Declare ``torchvision::nms`` and ``torchvision::qnms`` if torchvision's own library cannot.

    Silent, safe to call often, and without effect where torchvision is absent or whole. Call it before the
    first import that touches torchvision (pytorch_lightning through torchmetrics, open_clip, mmcv).
    """
    if _is_declared("nms") or _loads_own_library():
        return
    for name in ("nms", "qnms"):
        if not _is_declared(name):
            torch.library.define(f"torchvision::{name}", _SCHEMA)


def _is_declared(name: str) -> bool:
    return hasattr(torch.ops.torchvision, name)


def _loads_own_library() -> bool:
    """Load torchvision's compiled operators as its own import would; True also where there is no
    torchvision.
    """
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return True
    libraries = [
        path for path in Path(spec.origin).parent.glob("_C*") if path.suffix in (".so", ".pyd", ".dylib")
    ]
    try:
        for library in libraries:
            torch.ops.load_library(str(library))
    except OSError:
        return False
    return bool(libraries)
