"""The loss of the autoencoder."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ldm.modules.distributions.distributions import DiagonalGaussianDistribution


class ReconstructionKLLoss(nn.Module):
    """Reconstruction and KL divergence, and optionally sharp edges; ``lossconfig`` of an AutoencoderKL.

    The first two terms are those of latent diffusion (arXiv 2112.10752, ldm/modules/losses/contrastive.py
    there), per value of the picture instead of summed over it, so that the weights do not depend on the
    resolution. Adversarial and perceptual losses are left out, since they need networks to be downloaded or
    trained beside; the edge term does their most useful work for flat drawings. The module has neither
    parameters nor buffers, so checkpoints have no keys of it.

    Args:
        kl_weight: of the divergence from a standard normal distribution.
        edge_weight: of the l1 distance between differences of neighbouring pixels, at ``edge_scales`` scales.
        edge_scales: the picture itself and its halvings.
    """

    def __init__(self, kl_weight: float = 1e-6, edge_weight: float = 0.0, edge_scales: int = 3):
        super().__init__()
        if kl_weight < 0 or edge_weight < 0 or edge_scales < 1:
            raise ValueError(
                f"Weights must not be negative and scales at least 1, got kl_weight={kl_weight}, "
                f"edge_weight={edge_weight}, edge_scales={edge_scales}."
            )
        self.kl_weight = kl_weight
        self.edge_weight = edge_weight
        self.edge_scales = edge_scales

    def forward(
        self,
        inputs: torch.Tensor,
        reconstructions: torch.Tensor,
        posteriors: DiagonalGaussianDistribution,
        optimizer_idx: int = 0,
        global_step: int = 0,
        last_layer: Any = None,
        split: str = "train",
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The loss, and its parts for the log.

        Args:
            inputs, reconstructions: ``[B, 3, H, W]`` in [-1, 1].
            posteriors: of the latents.
            optimizer_idx, global_step, last_layer: for losses with a discriminator; not used.
            split: "train" or "val".
        """
        reconstruction = F.l1_loss(reconstructions, inputs)
        divergence = posteriors.kl().sum() / inputs.numel()
        loss = reconstruction + self.kl_weight * divergence
        log = {f"{split}/rec_loss": reconstruction, f"{split}/kl_loss": divergence}
        if self.edge_weight:
            edges = self.edge_distance(inputs, reconstructions)
            loss = loss + self.edge_weight * edges
            log[f"{split}/edge_loss"] = edges
        log[f"{split}/loss"] = loss
        return loss, {name: value.detach() for name, value in log.items()}

    def edge_distance(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """Mean absolute difference of the pictures' horizontal and vertical gradients, averaged over the
        scales.
        """
        distance = a.new_zeros(())
        for scale in range(self.edge_scales):
            if scale:
                a, b = F.avg_pool2d(a, 2), F.avg_pool2d(b, 2)
            for dim in (2, 3):
                distance = distance + F.l1_loss(a.diff(dim=dim), b.diff(dim=dim))
        return distance / (2 * self.edge_scales)
