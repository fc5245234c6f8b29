"""Whether this torch has oneDNN, whose products of laid-out weights are what is fast on a CPU."""

import torch


def can_pack() -> bool:
    """Whether this torch has oneDNN."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_convolution_pointwise")
