"""The VAE between pictures and latents.

Sources: latent diffusion (arXiv 2112.10752), and ldm/models/autoencoder.py of the original.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ldm.models.trained_module import TrainedModule
from ldm.modules.diffusionmodules.model import Decoder, Encoder
from ldm.modules.distributions.distributions import DiagonalGaussianDistribution, Purpose, SampleNoise
from ldm.util import instantiate_from_config


class AutoencoderKL(TrainedModule):
    """Autoencoder with a Gaussian posterior.

    Args:
        ddconfig: parameters of `Encoder` and `Decoder`.
        lossconfig: YAML node of the loss, needed for training alone: a module called as
            ``loss(pictures, reconstructions, posterior, optimizer_idx, global_step, last_layer=...,
            split=...)``, which returns the loss and a dictionary for the log. Released files have
            ``torch.nn.Identity``.
        embed_dim: channels of the latents.
        ckpt_path: weights to start from, without the keys that begin with one of ``ignore_keys``.
        image_key: key of the picture in a batch, ``[B, H, W, C]`` in [-1, 1].
        monitor: metric that checkpoints are ranked by.
        colorize_nlabels, ema_decay, learn_logvar: kept for the YAML, without effect.
    """

    def __init__(
        self,
        ddconfig: Mapping[str, Any],
        lossconfig: Mapping[str, Any],
        embed_dim: int,
        ckpt_path: str | None = None,
        ignore_keys: Sequence[str] = (),
        image_key: str = "image",
        colorize_nlabels: int | None = None,
        monitor: str | None = None,
        ema_decay: float | None = None,
        learn_logvar: bool = False,
    ):
        super().__init__()
        if not ddconfig["double_z"]:
            raise ValueError(
                "ddconfig.double_z is false; a KL autoencoder's encoder must give means and variances"
            )
        self.image_key = image_key
        self.embed_dim = embed_dim
        self.monitor = monitor
        self.encoder = Encoder(**ddconfig)
        self.decoder = Decoder(**ddconfig)
        self.loss = instantiate_from_config(lossconfig)
        self.quant_conv = nn.Conv2d(2 * ddconfig["z_channels"], 2 * embed_dim, 1)
        self.post_quant_conv = nn.Conv2d(embed_dim, ddconfig["z_channels"], 1)
        if ckpt_path is not None:
            self.init_from_ckpt(ckpt_path, ignore_keys)

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights, which inputs are cast to."""
        return self.quant_conv.weight.dtype

    def encode(self, x: torch.Tensor) -> DiagonalGaussianDistribution:
        """Pictures ``[B, 3, H, W]`` in [-1, 1] -> posterior of latents ``[B, embed_dim, H/f, W/f]``, in
        float32.
        """
        moments = self.quant_conv(self.encoder(x.to(self.dtype)))
        return DiagonalGaussianDistribution(moments.to(torch.promote_types(moments.dtype, torch.float32)))

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        """Latents ``[B, embed_dim, h, w]`` -> pictures ``[B, 3, f h, f w]``, about in [-1, 1], in the type of
        z.
        """
        return self.decoder(self.post_quant_conv(z.to(self.dtype))).to(z.dtype)

    def forward(
        self, input: torch.Tensor, sample_posterior: bool = True
    ) -> tuple[torch.Tensor, DiagonalGaussianDistribution]:
        """Pictures -> their reconstructions ``[B, 3, H, W]``, and the posterior."""
        posterior = self.encode(input)
        return self.decode(posterior.sample() if sample_posterior else posterior.mode()), posterior

    # ---- training

    def get_input(self, batch: Mapping[str, Any], k: str) -> torch.Tensor:
        """Pictures ``[B, H, W, C]`` or ``[B, H, W]`` of a batch -> float32 ``[B, C, H, W]``."""
        x = torch.as_tensor(batch[k]).to(self.device)
        x = x[..., None] if x.ndim == 3 else x
        return x.permute(0, 3, 1, 2).to(memory_format=torch.contiguous_format).float()

    def training_step(self, batch: Mapping[str, Any], batch_idx: int) -> torch.Tensor:
        return self._step(batch, "train", prog_bar=True, on_step=True, on_epoch=False)

    def validation_step(self, batch: Mapping[str, Any], batch_idx: int) -> torch.Tensor:
        return self._step(batch, "val", on_step=False, on_epoch=True)

    def _step(self, batch: Mapping[str, Any], split: str, **log_options: bool) -> torch.Tensor:
        if isinstance(self.loss, nn.Identity):
            raise ValueError(
                "this autoencoder's lossconfig is torch.nn.Identity, that of released files; training needs "
                "a loss, such as controlnet.training.losses.ReconstructionKLLoss"
            )
        pictures = self.get_input(batch, self.image_key)
        posterior = self.encode(pictures)
        noise = None
        if "noise_seed" in batch:
            noise = SampleNoise(batch["noise_seed"]).normal(Purpose.POSTERIOR, like=posterior.mean)
        reconstructions = self.decode(posterior.sample(noise=noise))
        loss, log = self.loss(
            pictures,
            reconstructions,
            posterior,
            0,
            self.global_step,
            last_layer=self.decoder.last_layer,
            split=split,
        )
        self.log_dict(log, batch_size=len(pictures), sync_dist=True, **log_options)
        return loss

    def freeze_encoder(self) -> None:
        """Train the decoder alone: latents stay as they are, for diffusion models that have learnt from
        them.
        """
        self.encoder.requires_grad_(False)
        self.quant_conv.requires_grad_(False)

    def trained_parameters(self) -> list[nn.Parameter]:
        """All that nobody has frozen."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    def default_optimizer(self, parameters: Sequence[nn.Parameter], lr: float) -> torch.optim.Optimizer:
        """Adam with the betas that VQGAN uses."""
        return torch.optim.Adam(parameters, lr=lr, betas=(0.5, 0.9), fused=True)

    @torch.no_grad()
    def log_images(
        self, batch: Mapping[str, Any], only_inputs: bool = False, **kwargs
    ) -> dict[str, torch.Tensor]:
        """``inputs``, ``reconstructions`` and ``samples`` from noise, ``[B, 3, H, W]`` in [-1, 1]."""
        pictures = self.get_input(batch, self.image_key)
        if only_inputs:
            return {"inputs": pictures}
        reconstructions, posterior = self(pictures)
        return {
            "inputs": pictures,
            "reconstructions": reconstructions,
            "samples": self.decode(torch.randn_like(posterior.mean)),
        }


class IdentityFirstStage(nn.Module):
    """Stands where a VAE would, for diffusion on pictures themselves."""

    def __init__(self, vq_interface: bool = False):
        super().__init__()
        self.vq_interface = vq_interface

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        return x

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        return z

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x
