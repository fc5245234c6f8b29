"""ControlNet: a locked UNet, and a trainable copy of its encoder that steers it through zero convolutions.

Sources: "Adding Conditional Control to Text-to-Image Diffusion Models" (arXiv 2302.05543), and cldm/cldm.py
of the original.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from cldm.freezing import trainable
from cldm.steering import at_step, control_outputs, each_control, prepared, with_text_memory
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.models.diffusion.guidance import SHARED_HALVES, takes_joined_conditions
from ldm.models.diffusion.image_log import log_latent_images
from ldm.modules.diffusionmodules.openaimodel import TimestepEmbedSequential, UNetModel, UNetParts
from ldm.modules.diffusionmodules.util import conv_nd, timestep_embedding, zero_module
from ldm.modules.regional import context_of
from ldm.modules.sharing import added
from ldm.util import instantiate_from_config


class ControlledUnetModel(UNetModel):
    """Stable Diffusion's UNet, whose decoder also takes the control copy's outputs."""

    def forward(
        self,
        x: torch.Tensor,
        timesteps: torch.Tensor,
        context: torch.Tensor | None = None,
        control: Sequence[torch.Tensor] | None = None,
        only_mid_control: bool = False,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Predict from a noisy latent.

        The encoder never takes a gradient: it is locked, and only the decoder lies behind the control.

        Args:
            x: ``[B, in_channels, H, W]``.
            timesteps: ``[B]``.
            context: text embedding ``[B, M, context_dim]``. It may have kB rows that share x, and timesteps
                too; then the result has kB rows.
            control: `ControlNet`'s outputs, one for each skip connection and the last for the middle block,
                or None. The list is not changed.
            only_mid_control: use only the last.

        Returns:
            ``[B, out_channels, H, W]``, in the type of ``x``.
        """
        with torch.no_grad():
            emb = self.embed_time(timesteps)
            h, skips = self.encode(x, emb, context)
        if control is not None:
            *skip_controls, middle_control = control
            h = h + middle_control
            if not only_mid_control:
                skips = [added(skip, extra) for skip, extra in zip(skips, skip_controls, strict=True)]
        return self.decode(h, reversed(skips), emb, context).to(x.dtype)


class ControlNet(UNetParts):
    """The trainable copy: the UNet's encoder, a small network for the hint, and a zero convolution at every
    output.

    Args:
        hint_channels: channels of the control picture, 3 for RGB.
        n_embed: kept for the YAML, without effect.
        others: see `UNetParts`.

    Attributes:
        global_average_pooling: every output is averaged over the picture (ControlNet 1.1 shuffle).
    """

    def __init__(
        self,
        image_size: int,
        in_channels: int,
        model_channels: int,
        hint_channels: int,
        num_res_blocks: int | Sequence[int],
        attention_resolutions: Sequence[int],
        *,
        n_embed: int | None = None,
        **options: Any,
    ):
        super().__init__(
            image_size, in_channels, model_channels, num_res_blocks, attention_resolutions, **options
        )
        self.hint_channels = hint_channels
        self.global_average_pooling = False

        self.time_embed = self.make_time_embed()
        self.input_blocks, widths = self.make_input_blocks()
        self.zero_convs = nn.ModuleList(self.make_zero_conv(width) for width in widths)
        self.input_hint_block = self._make_hint_block()
        self.middle_block = self.make_middle_block(widths[-1])
        self.middle_block_out = self.make_zero_conv(widths[-1])

    def make_zero_conv(self, channels: int) -> TimestepEmbedSequential:
        """A 1x1 convolution that starts at 0, so that training begins with the unsteered model."""
        return TimestepEmbedSequential(zero_module(conv_nd(self.dims, channels, channels, 1)))

    def _make_hint_block(self) -> TimestepEmbedSequential:
        """``[B, hint_channels, 8H, 8W] -> [B, model_channels, H, W]``: from pixels to the latent's size."""
        widths_and_strides = [(16, 1), (16, 1), (32, 2), (32, 1), (96, 2), (96, 1), (256, 2)]
        channels, layers = self.hint_channels, []
        for width, stride in widths_and_strides:
            layers += [conv_nd(self.dims, channels, width, 3, padding=1, stride=stride), nn.SiLU()]
            channels = width
        layers.append(zero_module(conv_nd(self.dims, channels, self.model_channels, 3, padding=1)))
        return TimestepEmbedSequential(*layers)

    def embed_hint(self, hint: torch.Tensor) -> torch.Tensor:
        """Hint ``[B, hint_channels, 8H, 8W]`` in [0, 1] -> ``[B, model_channels, H, W]``; no time step enters
        here.
        """
        # A block of somebody's own, put in place of ours, may take others than hint_channels.
        weights = (weight for weight in self.input_hint_block.parameters() if weight.ndim == 4)
        channels = next((weight.shape[1] for weight in weights), self.hint_channels)
        if hint.ndim != 4 or hint.shape[1] != channels:
            raise ValueError(f"got a hint of shape {tuple(hint.shape)}; expected [B, {channels}, H, W]")
        return self.input_hint_block(hint.to(self.dtype), None)

    @property
    def knows_embeddings(self) -> bool:
        """Whether it takes embedded hints and shared halves: unless a subclass has a ``forward`` of its
        own.
        """
        return type(self).forward is ControlNet.forward

    def forward(
        self,
        x: torch.Tensor,
        hint: torch.Tensor | None,
        timesteps: torch.Tensor,
        context: torch.Tensor,
        hint_embedding: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> list[torch.Tensor]:
        """Outputs to be added to the UNet's skip connections, from first to last, and then to its middle
        block.

        Args:
            x: noisy latent ``[B, in_channels, H, W]``; as in `ControlledUnetModel` it may be shared, and the
                hint along with it.
            hint: ``[B, hint_channels, 8H, 8W]`` in [0, 1].
            timesteps: ``[B]``.
            context: text embedding ``[B, M, context_dim]``.
            hint_embedding: `embed_hint`'s result, where it is there already; ``hint`` may then be None.
        """
        guided = hint_embedding  # [B, C, H, W]
        if guided is None:
            if hint is None:
                raise ValueError("got no hint; give one, or what embed_hint makes of it")
            guided = self.embed_hint(hint)
        emb = self.time_embed(timestep_embedding(timesteps, self.model_channels).to(self.dtype))
        h, context = x.to(self.dtype), context.to(self.dtype)
        if guided.shape[-2:] != h.shape[-2:]:
            raise ValueError(
                f"the hint gives {tuple(guided.shape[-2:])} and the latent is {tuple(h.shape[-2:])}: "
                "the hint's sides must be 8 times the latent's"
            )
        outputs: list[torch.Tensor] = []
        for block, zero_conv in zip(self.input_blocks, self.zero_convs, strict=True):
            h = block(h, emb, context)  # [B, C, H / 2^level, W / 2^level]
            if not outputs:
                h = h + guided[: len(h)]
            outputs.append(zero_conv(h, emb, context))
        h = self.middle_block(h, emb, context)
        outputs.append(self.middle_block_out(h, emb, context))
        if self.global_average_pooling:
            return [output.mean(dim=(2, 3), keepdim=True) for output in outputs]  # [B, C, 1, 1]
        return outputs


class ControlLDM(LatentDiffusion):
    """Latent diffusion with a control copy.

    Args:
        control_stage_config: YAML node of the `ControlNet`.
        control_key: key of the hint in a batch, ``[B, H, W, C]`` in [0, 1].
        only_mid_control: feed only the middle block's control to the UNet.
        global_average_pooling: see `ControlNet`.

    Attributes:
        control_scales: a factor for each of the control copy's outputs (13 for Stable Diffusion). A condition
            may carry its own under the key "control_scales", which two requests on one model need.
        sd_locked: train the control copy alone; False trains the UNet's decoder too.
    """

    def __init__(
        self,
        control_stage_config: Mapping[str, Any],
        control_key: str,
        only_mid_control: bool,
        *args: Any,
        global_average_pooling: bool = False,
        **kwargs: Any,
    ):
        super().__init__(*args, **kwargs)
        self.control_model = instantiate_from_config(control_stage_config)
        self.control_model.global_average_pooling = global_average_pooling
        self.control_key = control_key
        self.only_mid_control = only_mid_control
        outputs = len(getattr(self.control_model, "zero_convs", range(12))) + 1
        self.control_scales = [1.0] * outputs
        self.sd_locked = True

    @torch.no_grad()
    def get_input(
        self, batch: Mapping[str, Any], k: str, bs: int | None = None, *args: Any, **kwargs: Any
    ) -> tuple[Any, ...]:
        """A batch from the loader -> latents ``[B, 4, H/8, W/8]``, the condition, and what else is asked for.

        Args:
            batch: ``jpg [B, H, W, 3]`` in [-1, 1], ``hint [B, H, W, 3]`` in [0, 1], ``txt`` B strings.
            k: ignored as in the original, which reads the model's ``first_stage_key``.
            bs: take the first ``bs`` items only.
            others: see `LatentDiffusion.get_input`.
        """
        kwargs = {**kwargs, "bs": bs}
        latent, context, *others = super().get_input(batch, self.first_stage_key, *args, **kwargs)
        hint = torch.as_tensor(batch[self.control_key])[:bs].to(latent.device)
        hint = hint.permute(0, 3, 1, 2).to(memory_format=torch.contiguous_format).float()  # [B, 3, H, W]
        return latent, {"c_crossattn": [context], "c_concat": [hint]}, *others

    @takes_joined_conditions
    def apply_model(
        self, x_noisy: torch.Tensor, t: torch.Tensor, cond: Mapping[str, Any], *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        """The steered UNet's output for noisy latents ``[B, 4, h, w]`` at time steps ``[B]``.

        Args:
            cond: ``c_crossattn``: list of text embeddings ``[B, M, D]``; ``c_concat``: list of hints ``[B, 3,
                8h, 8w]`` in [0, 1], or None for no control. Hints with fewer than B rows steer the first rows
                only. Optional: ``control_scales``; ``control_model``, a `ControlNet` that steers instead of
                the model's own; ``hint_embedding`` as `prepare_condition` adds it; and what
                `cldm.steering.steering` reads. ``further_controls`` is a list of mappings with these keys but
                ``c_crossattn``: their outputs are added. ``regional_prompts``: see `RegionalPrompts`.
        """
        context: Any = context_of(cond)
        control = control_outputs(self, x_noisy, t, context, cond)
        unet = self.model.diffusion_model
        if cond.get(SHARED_HALVES) and type(unet).forward is ControlledUnetModel.forward:
            x_noisy = x_noisy[: len(x_noisy) // 2]
        return unet(
            x=x_noisy, timesteps=t, context=context, control=control, only_mid_control=self.only_mid_control
        )

    def network_of(self, cond: Mapping[str, Any]) -> ControlNet:
        """The network that a condition, or one of its further controls, is steered by."""
        return cond.get("control_model") or self.control_model

    def prepare_condition(self, cond: Mapping[str, Any]) -> Mapping[str, Any]:
        """Add what stays the same over a whole sampling: the embedding of each hint, and whether the networks
        are ours throughout, so that the halves of guidance may share their first part, and a memory for what
        attention makes of the text.

        A control copy with a ``forward`` of its own, or without a network for hints, takes the hint as it is.
        """
        unet = self.model.diffusion_model
        return with_text_memory(each_control(cond, lambda part: prepared(part, unet, self.network_of(part))))

    def condition_at_step(self, cond: Mapping[str, Any], step: int, steps: int) -> Mapping[str, Any]:
        """The condition without the controls that do not act in this step; see `cldm.steering.at_step`."""
        return at_step(cond, step, steps, self.control_scales)

    @torch.no_grad()
    def log_images(
        self,
        batch: Mapping[str, Any],
        N: int = 4,
        n_row: int = 2,
        sample: bool = False,
        ddim_steps: int = 50,
        ddim_eta: float = 0.0,
        return_keys: Sequence[str] | None = None,
        quantize_denoised: bool = True,
        inpaint: bool = True,
        plot_denoise_rows: bool = False,
        plot_progressive_rows: bool = True,
        plot_diffusion_rows: bool = False,
        unconditional_guidance_scale: float = 9.0,
        unconditional_guidance_label: str | None = None,
        use_ema_scope: bool = True,
        **kwargs: Any,
    ) -> dict[str, torch.Tensor]:
        """Pictures that show how training goes, float ``[B, 3, H, W]`` in [-1, 1], by name.

        Args:
            N: the greatest number of items to show.
            n_row: the greatest number of them in diffusion rows.
            sample: also sample without guidance.
            ddim_steps, ddim_eta: of the sampler.
            return_keys: only these pictures.
            plot_denoise_rows: with ``sample``, also the way from noise to picture.
            plot_diffusion_rows: also the way from picture to noise.
            unconditional_guidance_scale: above 1, samples with guidance are made, named after the scale.
            use_ema_scope: sample with the averaged weights, where there are any.
            quantize_denoised, inpaint, plot_progressive_rows, unconditional_guidance_label: kept from the
                original, which never used them.
        """
        latent, cond = self.get_input(batch, self.first_stage_key, bs=N)
        captions = list(batch[self.cond_stage_key])[:N]
        log = {"control": cond["c_concat"][0] * 2.0 - 1.0}
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
            guidance_scale=unconditional_guidance_scale,
            use_ema_scope=use_ema_scope,
        )
        return {name: log[name] for name in return_keys if name in log} if return_keys else log

    def unconditional_like(self, cond: Mapping[str, Any]) -> dict[str, Any]:
        """The empty prompt, with the same hint."""
        rows = len(cond["c_crossattn"][0])
        return {"c_concat": cond["c_concat"], "c_crossattn": [self.get_unconditional_conditioning(rows)]}

    def trained_modules(self) -> list[nn.Module]:
        """What `configure_optimizers` trains: the control copy, the UNet's decoder where SD is not locked,
        and the text encoder where it is trainable."""
        unet = self.model.diffusion_model
        decoder = [] if self.sd_locked else [unet.output_blocks, unet.out]
        text = [self.cond_stage_model] if self.cond_stage_trainable else []
        return [self.control_model, *decoder, *text]

    def freeze_all_but(self, trained: Iterable[nn.Parameter]) -> None:
        super().freeze_all_but(trainable(self, trained))

    def low_vram_shift(self, is_diffusing: bool) -> None:
        """Keep on the accelerator only what the next stage needs: UNet and control copy, or VAE and text
        encoder.
        """
        device = next((p.device for p in self.parameters() if p.device.type != "cpu"), torch.device("cpu"))
        for module in (self.model, self.control_model):
            module.to(device if is_diffusing else "cpu")
        for module in (self.first_stage_model, self.cond_stage_model):
            module.to("cpu" if is_diffusing else device)
