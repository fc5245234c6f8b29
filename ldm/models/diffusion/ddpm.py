"""Diffusion in a VAE's latents, steered by text: the class that ControlNet extends.

Sources: latent diffusion (arXiv 2112.10752), and ldm/models/diffusion/ddpm.py of the original.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ldm.models.diffusion.ddim import DDIMSampler
from ldm.models.diffusion.image_log import condition_size, log_latent_images
from ldm.models.diffusion.pixel import DDPM, DiffusionWrapper
from ldm.models.diffusion.sample_noise import Purpose, SampleNoise
from ldm.modules.distributions.distributions import DiagonalGaussianDistribution
from ldm.util import instantiate_from_config

__all__ = ["DDPM", "DiffusionWrapper", "LatentDiffusion"]


class LatentDiffusion(DDPM):
    """Diffusion in the latents of a frozen VAE, steered by an embedded condition.

    Args:
        first_stage_config: YAML node of the VAE.
        cond_stage_config: YAML node of the text encoder; ``__is_unconditional__`` for none.
        num_timesteps_cond: kept for the YAML; 1.
        cond_stage_key: key of the condition in a batch.
        cond_stage_trainable: train the text encoder too.
        concat_mode: the condition is channels beside the latent, where no conditioning_key is given.
        cond_stage_forward: name of the text encoder's method, by default ``encode``.
        conditioning_key: see `DiffusionWrapper`.
        scale_factor: latents are the VAE's times this, so that their variance is about 1.
        scale_by_std: keep the factor in the checkpoint, as a buffer.
        force_null_conditioning: use an unconditional encoder although there is a conditioning_key.
        others: see `DDPM`.
    """

    def __init__(
        self,
        first_stage_config: Mapping[str, Any],
        cond_stage_config: Mapping[str, Any] | str,
        num_timesteps_cond: int | None = None,
        cond_stage_key: str = "image",
        cond_stage_trainable: bool = False,
        concat_mode: bool = True,
        cond_stage_forward: str | None = None,
        conditioning_key: str | None = None,
        scale_factor: float = 1.0,
        scale_by_std: bool = False,
        force_null_conditioning: bool = False,
        **kwargs,
    ):
        if num_timesteps_cond not in (None, 1):
            raise ValueError(f"got num_timesteps_cond={num_timesteps_cond}; only 1 is supported")
        if conditioning_key is None:
            conditioning_key = "concat" if concat_mode else "crossattn"
        if cond_stage_config == "__is_unconditional__" and not force_null_conditioning:
            conditioning_key = None
        ckpt_path, ignore_keys = kwargs.pop("ckpt_path", None), kwargs.pop("ignore_keys", ())
        super().__init__(conditioning_key=conditioning_key, **kwargs)
        self.cond_stage_key = cond_stage_key
        self.cond_stage_trainable = cond_stage_trainable
        self.cond_stage_forward = cond_stage_forward
        if scale_by_std:
            self.register_buffer("scale_factor", torch.tensor(float(scale_factor)))
        else:
            self.scale_factor = scale_factor
        self.first_stage_model = instantiate_from_config(first_stage_config)
        self.cond_stage_model = instantiate_from_config(cond_stage_config)
        self._freeze_stages()
        if ckpt_path is not None:
            self.init_from_ckpt(ckpt_path, ignore_keys)

    def _frozen_stages(self) -> list[nn.Module]:
        stages = [self.first_stage_model]
        if not self.cond_stage_trainable and self.cond_stage_model is not None:
            stages.append(self.cond_stage_model)
        return stages

    def _freeze_stages(self) -> None:
        for stage in self._frozen_stages():
            stage.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> LatentDiffusion:
        """As usual, but the frozen VAE and a frozen text encoder stay in eval mode."""
        super().train(mode)
        for stage in self._frozen_stages():
            stage.eval()
        return self

    def trained_modules(self) -> list[nn.Module]:
        return [self.model] + ([self.cond_stage_model] if self.cond_stage_trainable else [])

    def unfreeze_text_encoder(self) -> None:
        """Train the text encoder too from now on, whatever the configuration said."""
        self.cond_stage_trainable = True
        self.cond_stage_model.unfreeze()
        self.train(self.training)

    # ---- stages

    @torch.no_grad()
    def encode_first_stage(self, x: torch.Tensor) -> DiagonalGaussianDistribution:
        """Pictures ``[B, 3, H, W]`` in [-1, 1] -> distribution of the VAE's latents."""
        return self.first_stage_model.encode(x)

    def get_first_stage_encoding(
        self,
        encoder_posterior: DiagonalGaussianDistribution | torch.Tensor,
        random: SampleNoise | None = None,
    ) -> torch.Tensor:
        """A sample of the posterior (or the given latents), scaled for the diffusion: ``[B, 4, H/8,
        W/8]``.
        """
        if isinstance(encoder_posterior, DiagonalGaussianDistribution):
            noise = None if random is None else random.normal(Purpose.POSTERIOR, like=encoder_posterior.mean)
            encoder_posterior = encoder_posterior.sample(noise=noise)
        return self.scale_factor * encoder_posterior

    def differentiable_decode_first_stage(self, z: torch.Tensor) -> torch.Tensor:
        """Scaled latents ``[B, 4, h, w]`` -> pictures ``[B, 3, 8h, 8w]``, about in [-1, 1]."""
        return self.first_stage_model.decode(z / self.scale_factor)

    @torch.no_grad()
    def decode_first_stage(self, z: torch.Tensor) -> torch.Tensor:
        """`differentiable_decode_first_stage` without gradients."""
        return self.differentiable_decode_first_stage(z)

    def get_learned_conditioning(self, c: Any) -> Any:
        """Prompts (B strings) -> their embedding ``[B, M, D]``."""
        if self.cond_stage_forward is not None:
            return getattr(self.cond_stage_model, self.cond_stage_forward)(c)
        encoded = getattr(self.cond_stage_model, "encode", self.cond_stage_model)(c)
        return encoded.mode() if isinstance(encoded, DiagonalGaussianDistribution) else encoded

    def get_unconditional_conditioning(self, N: int) -> torch.Tensor:
        """The embedding of N empty prompts, for guidance."""
        return self.get_learned_conditioning([""] * N)

    # ---- training

    @torch.no_grad()
    def get_input(
        self, batch: Mapping[str, Any], k: str, bs: int | None = None, force_c_encode: bool = False
    ) -> tuple[torch.Tensor, Any]:
        """A batch -> scaled latents ``[B, 4, H/8, W/8]`` and the condition.

        The condition is embedded here, unless the text encoder is trained: then the prompts come back as they
        are. Where the batch has the posterior's ``moments [B, 8, H/8, W/8]`` or the prompts' ``context [B, M,
        D]``, computed before, nothing is encoded; where it has ``noise_seed [B]``, the latents are drawn from
        these seeds.

        Args:
            k: key of the pictures.
            bs: take so many items only.
            force_c_encode: embed the condition in either case.
        """
        if "moments" in batch:
            posterior = DiagonalGaussianDistribution(batch["moments"][:bs].to(self.device))
        else:
            posterior = self.encode_first_stage(super().get_input(batch, k)[:bs])
        latent = self.get_first_stage_encoding(posterior, SampleNoise.of_batch(batch, bs)).detach()
        if self.model.conditioning_key is None:
            return latent, None
        if "context" in batch and not self.cond_stage_trainable:
            return latent, batch["context"][:bs].to(self.device)
        condition = batch[self.cond_stage_key][:bs]
        if torch.is_tensor(condition):
            condition = condition.to(self.device)
        if not self.cond_stage_trainable or force_c_encode:
            condition = self.get_learned_conditioning(condition)
        return latent, condition

    def shared_step(self, batch: Mapping[str, Any], **kwargs) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        return self(*self.get_input(batch, self.first_stage_key), random=SampleNoise.of_batch(batch))

    def forward(
        self, x: torch.Tensor, c: Any = None, random: SampleNoise | None = None
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """`p_losses` at random time steps; a condition that `get_input` left raw is embedded with
        gradients.
        """
        if self.cond_stage_trainable:
            c = self._embed_raw(c)
        return super().forward(x, c, random)

    def _embed_raw(self, c: Any) -> Any:
        """Embed prompts, also where they stand as ``c_crossattn`` of a condition."""
        if isinstance(c, Mapping):
            return {
                **c,
                "c_crossattn": [self.get_learned_conditioning(prompts) for prompts in c["c_crossattn"]],
            }
        return self.get_learned_conditioning(c)

    def apply_model(self, x_noisy: torch.Tensor, t: torch.Tensor, cond: Any = None) -> torch.Tensor:
        """The network's output for noisy latents ``[B, 4, h, w]`` at time steps ``[B]``.

        Args:
            cond: a tensor or a list of tensors for the model's own conditioning_key, or a dictionary of
                `DiffusionWrapper`'s arguments.
        """
        if not isinstance(cond, Mapping):
            cond = cond if isinstance(cond, list | None) else [cond]
            key = "c_concat" if self.model.conditioning_key == "concat" else "c_crossattn"
            cond = {} if cond is None else {key: cond}
        return self.model(x_noisy, t, **cond)

    # ---- pictures

    @torch.no_grad()
    def sample_log(
        self,
        cond: Any,
        batch_size: int,
        ddim: bool,
        ddim_steps: int,
        size: Sequence[int] | None = None,
        **kwargs,
    ) -> tuple[torch.Tensor, Any]:
        """Samples for a condition, and the sampler's intermediate results: DDIM, or all of DDPM's steps.

        ``size`` is the latents' (height, width); by default it follows from the hint, or is the model's own.
        """
        size = size or condition_size(cond) or (self.image_size, self.image_size)
        if not ddim:
            return self.p_sample_loop((batch_size, self.channels, *size), cond, verbose=False)
        return DDIMSampler(self).sample(
            ddim_steps, batch_size, (self.channels, *size), cond, verbose=False, **kwargs
        )

    def unconditional_like(self, cond: Any) -> Any:
        """The empty prompt in the form of ``cond``, for guidance."""
        return self.get_unconditional_conditioning(len(cond))

    @torch.no_grad()
    def log_images(
        self,
        batch: Mapping[str, Any],
        N: int = 8,
        n_row: int = 4,
        sample: bool = True,
        ddim_steps: int = 200,
        ddim_eta: float = 1.0,
        return_keys: Sequence[str] | None = None,
        plot_denoise_rows: bool = False,
        plot_diffusion_rows: bool = True,
        unconditional_guidance_scale: float = 1.0,
        use_ema_scope: bool = True,
        **kwargs,
    ) -> dict[str, torch.Tensor]:
        """Pictures of how training goes, float ``[B, 3, H, W]`` in [-1, 1], by name; see
        `ControlLDM.log_images`.
        """
        latent, cond = self.get_input(batch, self.first_stage_key, bs=N, force_c_encode=True)
        captions = list(batch[self.cond_stage_key])[:N] if cond is not None else []
        log = {} if "moments" in batch else {"inputs": super().get_input(batch, self.first_stage_key)[:N]}
        log |= log_latent_images(
            self,
            latent,
            cond,
            captions,
            ddim_steps=ddim_steps,
            ddim_eta=ddim_eta,
            diffusion_rows=min(n_row, len(latent)) if plot_diffusion_rows else 0,
            sample=sample,
            plot_denoise_rows=plot_denoise_rows,
            guidance_scale=unconditional_guidance_scale if cond is not None else 1.0,
            use_ema_scope=use_ema_scope,
        )
        return {name: log[name] for name in return_keys if name in log} if return_keys else log
