"""Classes as people write them who build on the original: with its signatures, and methods that replace whole
ones of ours. Where such a class computes what ours computes, its numbers must be ours.
"""

from __future__ import annotations

import torch
from torch import nn

from cldm.cldm import ControlLDM, ControlNet
from ldm.models.diffusion.ddim import DDIMSampler
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.modules.diffusionmodules.openaimodel import UNetModel
from ldm.modules.diffusionmodules.util import (
    make_ddim_sampling_parameters,
    make_ddim_timesteps,
    noise_like,
    timestep_embedding,
)


class PoppingUNet(UNetModel):
    """Takes the control from the end of the list, and uses it up."""

    def forward(self, x, timesteps=None, context=None, control=None, only_mid_control=False, **kwargs):
        skips = []
        with torch.no_grad():
            emb = self.time_embed(timestep_embedding(timesteps, self.model_channels, repeat_only=False))
            h = x.type(self.dtype)
            for block in self.input_blocks:
                h = block(h, emb, context)
                skips.append(h)
            h = self.middle_block(h, emb, context)
        if control is not None:
            h = h + control.pop()
        for block in self.output_blocks:
            skip = skips.pop()
            if control is not None and not only_mid_control:
                skip = skip + control.pop()
            h = block(torch.cat([h, skip], dim=1), emb, context)
        return self.out(h.type(x.dtype))


class TrainedUNet(UNetModel):
    """Takes gradients in its encoder too, and has no use for a control copy."""

    def forward(self, x, timesteps=None, context=None, control=None, only_mid_control=False, **kwargs):
        return super().forward(x, timesteps, context=context)


class OwnForwardControlNet(ControlNet):
    """Embeds its hint within its own forward, which knows no embedding made before."""

    def forward(self, x, hint, timesteps, context):
        emb = self.time_embed(timestep_embedding(timesteps, self.model_channels, repeat_only=False))
        guided = self.input_hint_block(hint, emb, context)
        outputs, h = [], x.type(self.dtype)
        for block, zero_conv in zip(self.input_blocks, self.zero_convs, strict=True):
            h = block(h, emb, context)
            if guided is not None:
                h, guided = h + guided, None
            outputs.append(zero_conv(h, emb, context))
        h = self.middle_block(h, emb, context)
        return [*outputs, self.middle_block_out(h, emb, context)]


class LatentHintControlNet(ControlNet):
    """Has no network for hints: they come as latents, in place of the noisy ones."""

    def __init__(self, extra_width=4, *args, **kwargs):
        super().__init__(*args, **kwargs)
        del self.input_hint_block
        self.extra = nn.Linear(extra_width, extra_width)

    def forward(self, hint, timesteps, context, **kwargs):
        emb = self.time_embed(timestep_embedding(timesteps, self.model_channels))
        outputs, h = [], self.extra(hint.movedim(1, -1)).movedim(-1, 1).type(self.dtype)
        for block, zero_conv in zip(self.input_blocks, self.zero_convs, strict=True):
            h = block(h, emb, context)
            outputs.append(zero_conv(h, emb, context))
        return [*outputs, self.middle_block_out(self.middle_block(h, emb, context), emb, context)]


class OwnApplyModel(ControlLDM):
    """Knows one condition at a time, with as many hints as latents, or None."""

    def apply_model(self, x_noisy, t, cond, *args, **kwargs):
        assert isinstance(cond, dict)
        text, control = torch.cat(cond["c_crossattn"], 1), None
        if cond["c_concat"] is not None:
            hint = torch.cat(cond["c_concat"], 1)
            assert len(hint) == len(x_noisy) == len(text)
            control = self.control_model(x=x_noisy, hint=hint, timesteps=t, context=text)
            control = [c * scale for c, scale in zip(control, self.control_scales, strict=False)]
        return self.model.diffusion_model(
            x=x_noisy, timesteps=t, context=text, control=control, only_mid_control=self.only_mid_control
        )


class LatentHintLDM(ControlLDM):
    """Encodes its hints by the VAE, and trains a few layers of the copy."""

    def apply_model(self, x_noisy, t, cond, *args, **kwargs):
        text, control = torch.cat(cond["c_crossattn"], 1), None
        if cond["c_concat"] is not None:
            hint = self.get_first_stage_encoding(self.encode_first_stage(torch.cat(cond["c_concat"], 1)))
            control = list(self.control_model(hint=hint, timesteps=t, context=text))
        return self.model.diffusion_model(x=x_noisy, timesteps=t, context=text, control=control)

    def configure_optimizers(self):
        chosen = ("extra", "zero_convs", "middle_block_out", "norm")
        named = self.control_model.named_parameters()
        return torch.optim.AdamW(
            [p for name, p in named if any(word in name for word in chosen)], lr=self.learning_rate
        )


class AdapterLDM(LatentDiffusion):
    """Steers Stable Diffusion by an adapter of its own instead of a control copy."""

    def __init__(self, control_key, control_stage_config=None, only_mid_control=False, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.control_key = control_key
        self.adapter = nn.Conv2d(3, 4, 8, stride=8)

    @torch.no_grad()
    def get_input(self, batch, k, bs=None, *args, **kwargs):
        x, c = super().get_input(batch, self.first_stage_key, *args, **kwargs)
        hint = batch[self.control_key].to(self.device).permute(0, 3, 1, 2).float()
        return x, {"c_crossattn": [c], "hints": [hint], "unused": [None]}

    def apply_model(self, x_noisy, t, cond, *args, **kwargs):
        x = x_noisy + self.adapter(torch.cat(cond["hints"], 1))
        return self.model.diffusion_model(x, t, context=torch.cat(cond["c_crossattn"], 1))

    def configure_optimizers(self):
        return torch.optim.AdamW(list(self.adapter.parameters()), lr=self.learning_rate)


class OwnStepSampler(DDIMSampler):
    """One step written anew, with the arguments that the original's has, and no others."""

    def p_sample_ddim(
        self, x, c, t, index, repeat_noise=False, use_original_steps=False, quantize_denoised=False,
        temperature=1., noise_dropout=0., score_corrector=None, corrector_kwargs=None,
        unconditional_guidance_scale=1., unconditional_conditioning=None, dynamic_threshold=None,
    ):  # fmt: skip
        e_t = self.model.apply_model(x, t, c)
        if unconditional_conditioning is not None:
            without = self.model.apply_model(x, t, unconditional_conditioning)
            e_t = without + unconditional_guidance_scale * (e_t - without)
        alphas = self.model.alphas_cumprod if use_original_steps else self.ddim_alphas
        befores = self.model.alphas_cumprod_prev if use_original_steps else self.ddim_alphas_prev
        sigmas = self.ddim_sigmas_for_original_num_steps if use_original_steps else self.ddim_sigmas
        shape = (x.shape[0], 1, 1, 1)
        alpha, before, sigma = (torch.full(shape, float(v[index])) for v in (alphas, befores, sigmas))
        start = (x - (1 - alpha).sqrt() * e_t) / alpha.sqrt()
        noise = sigma * noise_like(x.shape, x.device, repeat_noise) * temperature
        return before.sqrt() * start + (1 - before - sigma**2).sqrt() * e_t + noise, start


class OwnLoopSampler(OwnStepSampler):
    """The loop too, and the schedule, as the original's attributes and nothing else."""

    def make_schedule(self, ddim_num_steps, ddim_discretize="uniform", ddim_eta=0.0, verbose=True):
        self.ddim_timesteps = make_ddim_timesteps(
            ddim_discretize, ddim_num_steps, self.ddpm_num_timesteps, verbose=verbose
        )
        self.register_buffer("alphas_cumprod", self.model.alphas_cumprod.clone().float())
        sigmas, alphas, befores = make_ddim_sampling_parameters(
            alphacums=self.alphas_cumprod.cpu(), ddim_timesteps=self.ddim_timesteps, eta=ddim_eta,
            verbose=verbose,
        )  # fmt: skip
        self.register_buffer("ddim_sigmas", sigmas)
        self.register_buffer("ddim_alphas", alphas)
        self.register_buffer("ddim_alphas_prev", befores)

    def ddim_sampling(
        self, cond, shape, x_T=None, ddim_use_original_steps=False, callback=None, timesteps=None,
        quantize_denoised=False, mask=None, x0=None, img_callback=None, log_every_t=100, temperature=1.,
        noise_dropout=0., score_corrector=None, corrector_kwargs=None, unconditional_guidance_scale=1.,
        unconditional_conditioning=None, dynamic_threshold=None, ucg_schedule=None,
    ):  # fmt: skip
        x = torch.randn(shape) if x_T is None else x_T
        for index in reversed(range(len(self.ddim_timesteps))):
            t = torch.full((shape[0],), int(self.ddim_timesteps[index]), dtype=torch.long)
            x, start = self.p_sample_ddim(
                x, cond, t, index=index, use_original_steps=ddim_use_original_steps,
                unconditional_guidance_scale=unconditional_guidance_scale,
                unconditional_conditioning=unconditional_conditioning,
            )  # fmt: skip
        return x, {"pred_x0": [start]}
