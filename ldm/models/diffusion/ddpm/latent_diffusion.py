"""Diffusion in a VAE's latents, steered by text: the class that ControlNet extends.

Sources: latent diffusion (arXiv 2112.10752), and ldm/models/diffusion/ddpm.py of the original.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ldm.models.diffusion.ddim import DDIMSampler
from ldm.models.diffusion.ddpm.ddpm import DDPM
from ldm.models.diffusion.guidance import takes_joined_conditions
from ldm.models.diffusion.image_log import condition_size, log_latent_images, picture_rows
from ldm.modules.distributions.distributions import DiagonalGaussianDistribution, Purpose, SampleNoise
from ldm.util import instantiate_from_config


def disabled_train(self: nn.Module, mode: bool = True) -> nn.Module:
    """Stands in for the ``train`` of a network that is to stay as it is, in scripts of the original."""
    return self


class LatentDiffusion(DDPM):
    """Diffusion in the latents of a frozen VAE, steered by an embedded condition.

    Args:
        first_stage_config: YAML node of the VAE.
        cond_stage_config: YAML node of the text encoder; ``__is_unconditional__`` for none, and
            ``__is_first_stage__`` for the VAE.
        num_timesteps_cond: above 1, the condition gets noise in training too, in this number of stages.
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
        if conditioning_key is None:
            conditioning_key = "concat" if concat_mode else "crossattn"
        if cond_stage_config == "__is_unconditional__" and not force_null_conditioning:
            conditioning_key = None
        ckpt_path, ignore_keys = kwargs.pop("ckpt_path", None), kwargs.pop("ignore_keys", ())
        super().__init__(conditioning_key=conditioning_key, **kwargs)
        self.num_timesteps_cond = num_timesteps_cond or 1
        self.shorten_cond_schedule = self.num_timesteps_cond > 1
        if self.shorten_cond_schedule:
            self.make_cond_schedule()
        self.concat_mode = concat_mode
        self.cond_stage_key = cond_stage_key
        self.cond_stage_trainable = cond_stage_trainable
        self.cond_stage_forward = cond_stage_forward
        self.force_null_conditioning = force_null_conditioning
        if scale_by_std:
            self.register_buffer("scale_factor", torch.tensor(float(scale_factor)))
        else:
            self.scale_factor = scale_factor
        self.instantiate_first_stage(first_stage_config)
        self.instantiate_cond_stage(cond_stage_config)
        if ckpt_path is not None:
            self.init_from_ckpt(ckpt_path, ignore_keys)

    def make_cond_schedule(self) -> None:
        """For each time step, the one whose noise the condition gets: few small ones, else the last."""
        last, count = self.num_timesteps - 1, self.num_timesteps_cond
        if count > self.num_timesteps:
            raise ValueError(f"got num_timesteps_cond={count}; expected 1 to timesteps={self.num_timesteps}")
        self.cond_ids = torch.full((self.num_timesteps,), last, dtype=torch.long)
        self.cond_ids[:count] = torch.linspace(0, last, count).round().long()

    # ---- VAE and text encoder

    def instantiate_first_stage(self, config: Mapping[str, Any]) -> None:
        """Build ``first_stage_model``, the frozen VAE."""
        self.first_stage_model = instantiate_from_config(config).eval().requires_grad_(False)

    def instantiate_cond_stage(self, config: Mapping[str, Any] | str) -> None:
        """Build ``cond_stage_model``, the text encoder: frozen unless ``cond_stage_trainable``."""
        if config == "__is_first_stage__":
            self.cond_stage_model = self.first_stage_model
            return
        self.cond_stage_model = instantiate_from_config(config)
        if self.cond_stage_model is not None:
            self.cond_stage_model.train(self.cond_stage_trainable).requires_grad_(self.cond_stage_trainable)

    def unfreeze_text_encoder(self) -> None:
        """Train the text encoder too from now on, whatever the configuration said."""
        self.cond_stage_trainable = True
        self.cond_stage_model.unfreeze()
        self.train(self.training)

    def train(self, mode: bool = True) -> LatentDiffusion:
        """As usual, but the VAE and the text encoder stay in eval mode where they are frozen."""
        super().train(mode)
        for stage in (self.first_stage_model, self.cond_stage_model):
            if stage is not None and not any(p.requires_grad for p in stage.parameters()):
                stage.eval()
        return self

    def trained_modules(self) -> list[nn.Module]:
        return [self.model] + ([self.cond_stage_model] if self.cond_stage_trainable else [])

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

    # ---- a training step, where it differs from that on pictures

    def shared_step(self, batch: Mapping[str, Any], **kwargs) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        x, c = self.get_input(batch, self.first_stage_key)
        return self(x, c, **SampleNoise.argument_of(batch))

    @torch.no_grad()
    def get_input(
        self,
        batch: Mapping[str, Any],
        k: str,
        return_first_stage_outputs: bool = False,
        force_c_encode: bool = False,
        cond_key: str | None = None,
        return_original_cond: bool = False,
        bs: int | None = None,
        return_x: bool = False,
    ) -> tuple[Any, ...]:
        """A batch -> scaled latents ``[B, 4, H/8, W/8]`` and the condition.

        The condition is embedded here, unless the text encoder is trained: then the prompts come back as they
        are. Where the batch has the posterior's ``moments [B, 8, H/8, W/8]`` or the prompts' ``context [B, M,
        D]``, computed before, nothing is encoded; where it has ``noise_seed [B]``, the latents are drawn from
        these seeds.

        Args:
            k: key of the pictures.
            return_first_stage_outputs: add the pictures (None for moments) and their reconstructions.
            force_c_encode: embed the condition in either case.
            cond_key: key of the condition, by default ``cond_stage_key``.
            return_original_cond: add the condition before it was embedded.
            bs: take the first ``bs`` items only.
            return_x: add the pictures.
        """
        if "moments" in batch:
            x, posterior = None, DiagonalGaussianDistribution(batch["moments"][:bs].to(self.device))
        else:
            x = super().get_input(batch, k)[:bs]
            posterior = self.encode_first_stage(x)
        latent = self.get_first_stage_encoding(posterior, **SampleNoise.argument_of(batch, bs)).detach()
        raw, condition = self._condition_of(batch, bs, force_c_encode, cond_key or self.cond_stage_key)
        outputs = [latent, condition]
        if return_first_stage_outputs:
            outputs += [x, self.decode_first_stage(latent)]
        if return_x:
            outputs.append(x)
        if return_original_cond:
            outputs.append(raw)
        return tuple(outputs)

    def _condition_of(self, batch: Mapping[str, Any], bs: int | None, encode: bool, key: str) -> tuple:
        """The condition of a batch as it stands there, and as the network takes it."""
        if self.model.conditioning_key is None or self.force_null_conditioning:
            return None, None
        if "context" in batch and key == self.cond_stage_key and not self.cond_stage_trainable:
            return batch[key][:bs] if key in batch else None, batch["context"][:bs].to(self.device)
        raw = batch[key][:bs]
        if torch.is_tensor(raw):
            raw = super().get_input({key: raw}, key) if raw.ndim == 4 else raw.to(self.device)
        encode = encode or not self.cond_stage_trainable
        return raw, self.get_learned_conditioning(raw) if encode else raw

    def condition_at(self, c: Any, t: torch.Tensor) -> Any:
        """Embed what `get_input` left raw, with gradients; and where the condition has a schedule of its own,
        add noise.
        """
        if self.cond_stage_trainable and self.model.conditioning_key is not None:
            c = self._embed_raw(c)
        return self.q_sample(c, self.cond_ids.to(t.device)[t]) if self.shorten_cond_schedule else c

    def _embed_raw(self, c: Any) -> Any:
        """Embed prompts, also where they stand as ``c_crossattn`` of a condition."""
        if isinstance(c, Mapping):
            embedded = [self.get_learned_conditioning(prompts) for prompts in c["c_crossattn"]]
            return {**c, "c_crossattn": embedded}
        return self.get_learned_conditioning(c)

    @takes_joined_conditions
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

    # ---- pictures for the log

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

    def _get_denoise_row_from_list(self, samples: Sequence[torch.Tensor], desc: str = "") -> torch.Tensor:
        """Latents over time, T times ``[B, 4, h, w]`` -> one sheet of pictures ``[3, B H, T W]``."""
        return picture_rows([self.decode_first_stage(z) for z in samples])[0]

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
