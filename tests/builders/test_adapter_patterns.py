"""More of what people build: adapters inside the layers, a second control, encoders and blocks of their own.

Where they add nothing, their numbers are ours.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from golden_data import load_golden, relative_error
from torch import nn

from cldm.cldm import ControlLDM, ControlNet
from cldm.logger import ImageLogger
from ldm.models.diffusion.ddim import DDIMSampler
from ldm.modules.attention import BasicTransformerBlock, CrossAttention, attend
from ldm.modules.diffusionmodules.openaimodel import ResBlock, TimestepEmbedSequential
from ldm.modules.diffusionmodules.util import conv_nd, zero_module
from ldm.modules.encoders.modules import AbstractEncoder
from ldm.util import instantiate_from_config

SHAPE = (4, 8, 8)


def sample(model: ControlLDM, batch: dict[str, Any], sampler: type = DDIMSampler) -> torch.Tensor:
    model.eval()
    _, cond = model.get_input(batch, "jpg")
    guidance = {"unconditional_guidance_scale": 3.0}
    guidance["unconditional_conditioning"] = model.unconditional_like(cond)
    torch.manual_seed(4)
    return sampler(model).sample(4, 2, SHAPE, cond, verbose=False, **guidance)[0]


# --- inside the layers ---


class LoRA(nn.Module):
    """A linear layer, and a change of low rank that begins at 0."""

    def __init__(self, base: nn.Linear):
        super().__init__()
        self.base = base
        self.lora_down = nn.Linear(base.in_features, 2, bias=False)
        self.lora_up = zero_module(nn.Linear(2, base.out_features, bias=False))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base(x) + self.lora_up(self.lora_down(x))


class LoRALDM(ControlLDM):
    """Trains low-rank changes of the UNet's attention alone."""

    def inject(self) -> None:
        for layer in self.model.diffusion_model.modules():
            if isinstance(layer, CrossAttention):
                layer.to_q, layer.to_out[0] = LoRA(layer.to_q), LoRA(layer.to_out[0])

    def configure_optimizers(self):
        return torch.optim.AdamW([p for name, p in self.named_parameters() if "lora_" in name], lr=1e-3)


def test_layers_put_in_place_of_linear_ones(build: Callable, fit: Callable, batch: dict[str, Any]) -> None:
    expected = sample(build(), batch)
    model = build(LoRALDM)
    model.inject()
    assert relative_error(sample(model, batch), expected) < 1e-5
    _, changed = fit(model)
    assert changed and all("lora_" in name for name in changed)
    assert relative_error(sample(model, batch), expected) > 1e-6


def test_inner_forwards_in_the_original_s_words(build: Callable, batch: dict[str, Any]) -> None:
    called = set()

    def res_forward(self, x, emb):
        called.add("res")
        emb_out = self.emb_layers(emb).type(x.dtype)[..., None, None]
        return self.skip_connection(x) + self.out_layers(self.in_layers(x) + emb_out)

    def block_forward(self, x, context=None):
        called.add("block")
        x = self.attn1(self.norm1(x), context=context if self.disable_self_attn else None) + x
        x = self.attn2(self.norm2(x), context=context, mask=None) + x
        return self.ff(self.norm3(x)) + x

    expected = sample(build(), batch)
    model = build()
    for layer in model.modules():
        if isinstance(layer, ResBlock):
            layer._forward = types.MethodType(res_forward, layer)
        elif isinstance(layer, BasicTransformerBlock):
            layer._forward = types.MethodType(block_forward, layer)
    assert relative_error(sample(model, batch), expected) < 1e-5
    assert called == {"res", "block"}


@pytest.mark.parametrize("slice_size", [None, 1, 3])
def test_attention_does_not_look_at_what_is_masked(slice_size: int | None) -> None:
    layer = CrossAttention(16, 8, heads=2, dim_head=8)
    layer.slice_size = slice_size
    x, context, mask = torch.randn(2, 5, 16), torch.randn(2, 7, 8), torch.ones(2, 7, dtype=torch.bool)
    mask[:, 4:] = False
    torch.testing.assert_close(layer(x, context, mask=mask), layer(x, context[:, :4]))
    mask[1] = True
    torch.testing.assert_close(layer(x, context, mask=mask)[1], layer(x, context)[1])
    q = torch.randn(2, 2, 5, 8)
    causal = torch.ones(5, 5, dtype=torch.bool).tril()
    torch.testing.assert_close(attend(q, q, q, slice_size, mask=causal)[:, :, 0], q[:, :, 0])


# --- controls and encoders ---


class TwoControls(ControlLDM):
    """A second control copy beside the first, and sampling for the log by the original's method."""

    def __init__(self, control_stage_config, *args, **kwargs):
        super().__init__(control_stage_config, *args, **kwargs)
        self.second = instantiate_from_config(control_stage_config)

    def apply_model(self, x_noisy, t, cond, *args, **kwargs):
        text, hint = torch.cat(cond["c_crossattn"], 1), torch.cat(cond["c_concat"], 1)
        inputs = {"x": x_noisy, "hint": hint, "timesteps": t, "context": text}
        both = zip(self.control_model(**inputs), self.second(**inputs), self.control_scales, strict=False)
        control = [(a + b) * scale for a, b, scale in both]
        return self.model.diffusion_model(x=x_noisy, timesteps=t, context=text, control=control)

    def sample_log(self, cond, batch_size, ddim, ddim_steps, **kwargs):
        self.sampled = True
        _, _, h, w = cond["c_concat"][0].shape
        sampler = DDIMSampler(self)
        return sampler.sample(
            ddim_steps, batch_size, (self.channels, h // 8, w // 8), cond, verbose=False, **kwargs
        )

    def configure_optimizers(self):
        parameters = list(self.control_model.parameters()) + list(self.second.parameters())
        return torch.optim.AdamW(parameters, lr=self.learning_rate)


def test_two_controls(build: Callable, fit: Callable, batch: dict[str, Any]) -> None:
    model = build(TwoControls)
    _, changed = fit(model)
    assert {name.partition(".")[0] for name in changed} == {"control_model", "second"}
    assert model.log_images(batch, N=2, ddim_steps=2)["samples_cfg_scale_9.00"].isfinite().all()
    assert model.sampled


class LatentHintBlock(ControlNet):
    """Takes hints as latents: another block in place of ours, which knows no more hint_channels."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.input_hint_block = TimestepEmbedSequential(
            nn.SiLU(), conv_nd(self.dims, 4, self.model_channels, 3, padding=1)
        )


class LatentHints(ControlLDM):
    """Encodes its hints by the VAE when a batch comes in."""

    def get_input(self, batch, k, bs=None, *args, **kwargs):
        x, c = super().get_input(batch, k, bs, *args, **kwargs)
        hint = self.encode_first_stage(c["c_concat"][0] * 2 - 1)
        return x, {**c, "c_concat": [self.get_first_stage_encoding(hint).detach()]}


def test_a_hint_block_of_ones_own(build: Callable, fit: Callable, batch: dict[str, Any]) -> None:
    model = build(LatentHints)
    params = load_golden("train")[1]["config"]["params"]["control_stage_config"]["params"]
    model.control_model = LatentHintBlock(**params)
    _, changed = fit(model)
    assert {name.partition(".")[0] for name in changed} == {"control_model"}
    assert model.log_images(batch, N=2, ddim_steps=2)["samples_cfg_scale_9.00"].isfinite().all()
    with pytest.raises(ValueError, match=r"expected \[B, 4, H, W\]"):
        model.control_model.embed_hint(batch["hint"].permute(0, 3, 1, 2))


class Numbers(AbstractEncoder):
    """An encoder of conditions that are no prompts."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 32)

    def forward(self, prompts):
        return self.layer(torch.tensor([[[float(len(prompt)), 1.0, 0.0]] * 5 for prompt in prompts]))

    def encode(self, prompts):
        return self(prompts)


def test_an_encoder_of_ones_own(build: Callable, fit: Callable, batch: dict[str, Any]) -> None:
    model = build()
    model.cond_stage_model = Numbers().eval().requires_grad_(False)
    losses, changed = fit(model)
    assert len(losses) == 2 and {name.partition(".")[0] for name in changed} == {"control_model"}
    assert sample(model, batch).isfinite().all()
    with pytest.raises(NotImplementedError, match="no method encode"):
        AbstractEncoder().encode(["a"])


# --- training in ways of their own ---


class Filtered(ControlLDM):
    """Freezes in its constructor, and trains what is left."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.control_model.requires_grad_(False)
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad = "attn2" in name

    def configure_optimizers(self):
        return torch.optim.AdamW(filter(lambda p: p.requires_grad, self.parameters()), lr=1e-3)


class FreezesLate(ControlLDM):
    """Freezes where it makes its optimizer, with a schedule over all the steps of the run."""

    def configure_optimizers(self):
        chosen = [p for name, p in self.named_parameters() if "attn2" in name and "control" not in name]
        self.requires_grad_(False)
        for parameter in chosen:
            parameter.requires_grad = True
        optimizer = torch.optim.AdamW(chosen, lr=1e-3)
        steps = int(self.trainer.estimated_stepping_batches)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-3, total_steps=steps + 1)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


@pytest.mark.parametrize("cls", [Filtered, FreezesLate])
def test_what_is_left_unfrozen_is_trained(cls: type, build: Callable, fit: Callable) -> None:
    model = build(cls, unet="original_style.TrainedUNet")
    expected = {n for n, _ in model.named_parameters() if "attn2" in n and "control" not in n}
    for _ in range(2):
        assert fit(model)[1] == expected


def test_the_encoder_that_takes_no_gradients_is_told(
    build: Callable, fit: Callable, caplog: pytest.LogCaptureFixture
) -> None:
    model = build(Filtered)
    _, changed = fit(model)
    assert changed and all("output_blocks" in name for name in changed)
    assert "weights of the UNet's encoder, which will not change" in caplog.text
    assert not model.model.diffusion_model.input_blocks[0][0].weight.requires_grad
    caplog.clear()
    fit(build())
    assert "encoder" not in caplog.text


class ByHand(ControlLDM):
    """Two optimizers that it steps itself."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.automatic_optimization = False
        self.judge = nn.Conv2d(4, 1, 3)

    def configure_optimizers(self):
        modules = (self.control_model, self.judge)
        return [torch.optim.AdamW(module.parameters(), lr=1e-3) for module in modules], []

    def training_step(self, batch, batch_idx):
        latents, _ = self.get_input(batch, self.first_stage_key)
        for optimizer, loss in zip(
            self.optimizers(), (self.shared_step(batch)[0], self.judge(latents).mean()), strict=True
        ):
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
        return loss


def test_two_optimizers_by_hand(build: Callable, fit: Callable) -> None:
    _, changed = fit(build(ByHand))
    assert {name.partition(".")[0] for name in changed} == {"control_model", "judge"}


# --- sampling and logging in ways of their own ---


class Guided(DDIMSampler):
    """Looks at each step's gradient of the predicted picture, and then takes the step."""

    def p_sample_ddim(self, x, c, t, index, **kwargs):
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            a = self.model.alphas_cumprod[t[0]]
            start = (x - (1 - a).sqrt() * self.model.apply_model(x, t, c)) / a.sqrt()
            (gradient,) = torch.autograd.grad(start.pow(2).mean(), x)
        assert gradient.abs().sum() > 0
        return super().p_sample_ddim(x.detach(), c, t, index, **kwargs)


def test_a_sampler_that_takes_gradients(build: Callable, batch: dict[str, Any]) -> None:
    assert relative_error(sample(build(), batch, Guided), sample(build(), batch)) < 1e-5


class LogsAtTheEnd(ImageLogger):
    """Calls log_img after every batch, as the original does: log_img knows when pictures are due."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0):
        if not self.disabled:
            self.log_img(pl_module, batch, batch_idx, split="train")


@pytest.mark.parametrize("cls", [ImageLogger, LogsAtTheEnd])
def test_pictures_are_logged_when_they_are_due(
    cls: type, build: Callable, batch: dict[str, Any], tmp_path: Path
) -> None:
    model = build()
    model.log_images = lambda batch, **options: {"control": torch.zeros(1, 3, 8, 8)}
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=5,
        callbacks=[cls(batch_frequency=2)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(model, torch.utils.data.DataLoader([batch] * 5, batch_size=None))
    names = sorted(path.name for path in (tmp_path / "image_log" / "train").iterdir())
    assert [name.partition("_e-")[0] for name in names] == [f"control_gs-00000{step}" for step in (0, 2, 4)]
