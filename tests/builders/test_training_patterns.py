"""Subclasses that train: what the optimizer holds is trained, and methods of the original's form are called
as the original called them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from golden_data import load_golden
from original_style import AdapterLDM, LatentHintLDM
from torch import nn

from cldm.cldm import ControlLDM
from ldm.models.diffusion.ddpm import LatentDiffusion, LatentInpaintDiffusion, disabled_train
from ldm.models.trained_module import held_parameters

UNET = "model.diffusion_model."
UNET_TARGET = "ldm.modules.diffusionmodules.openaimodel.UNetModel"
DECODER = (f"{UNET}output_blocks.", f"{UNET}out.")


def assert_trained(model: nn.Module, changed: set[str], *prefixes: str) -> None:
    """The weights with these prefixes changed, and no others; nor do others take gradients."""
    expected = {name for name, _ in model.named_parameters() if name.startswith(prefixes)}
    assert changed == expected
    assert {name for name, p in model.named_parameters() if p.requires_grad} == expected


# --- configure_optimizers ---


def test_an_added_module_is_trained(build: Callable, fit: Callable) -> None:
    model = build(AdapterLDM, unet=UNET_TARGET)
    model.learning_rate = 1e-3
    losses, changed = fit(model)
    assert_trained(model, changed, "adapter.")
    assert all(torch.isfinite(torch.tensor(losses)))
    x, cond = model.get_input(_batch(model), "jpg")
    assert model.sample_log({**cond, "c_concat": None}, 2, True, 2, size=(8, 8))[0].shape == x.shape


def _batch(model: ControlLDM) -> dict[str, Any]:
    return {"jpg": torch.rand(2, 64, 64, 3), "hint": torch.rand(2, 64, 64, 3), "txt": ["a", "b"]}


def test_layers_of_the_copy_alone(build: Callable, fit: Callable) -> None:
    model = build(LatentHintLDM, control="original_style.LatentHintControlNet")
    _, changed = fit(model)
    chosen = ("extra", "zero_convs", "middle_block_out", "norm")
    assert changed == {
        name
        for name, _ in model.named_parameters()
        if name.startswith("control_model.") and any(word in name for word in chosen)
    }
    assert model.log_images(_batch(model), N=2, ddim_steps=2)["samples_cfg_scale_9.00"].isfinite().all()


class LockedButDecoder(ControlLDM):
    """Trains the UNet's decoder although Stable Diffusion is locked, and leaves the copy alone."""

    def configure_optimizers(self):
        unet = self.model.diffusion_model
        return torch.optim.AdamW([*unet.output_blocks.parameters(), *unet.out.parameters()], lr=1e-3)


def test_the_decoder_although_locked(build: Callable, fit: Callable) -> None:
    model = build(LockedButDecoder)
    assert model.sd_locked
    assert_trained(model, fit(model)[1], *DECODER)


class OneGroupMore(ControlLDM):
    """Adds to what ours trains."""

    def configure_optimizers(self):
        optimizer = super().configure_optimizers()
        optimizer.add_param_group({"params": list(self.model.diffusion_model.out.parameters()), "lr": 1e-4})
        return optimizer


def test_a_group_more_than_ours(build: Callable, fit: Callable) -> None:
    model = build(OneGroupMore)
    assert_trained(model, fit(model)[1], "control_model.", f"{UNET}out.")


def test_a_lock_opened_between_two_runs(build: Callable, fit: Callable) -> None:
    model = build()
    assert_trained(model, fit(model)[1], "control_model.")
    model.sd_locked = False
    assert_trained(model, fit(model)[1], "control_model.", *DECODER)
    model.sd_locked = True
    assert_trained(model, fit(model)[1], "control_model.")


class TextToo(ControlLDM):
    """Hands the frozen text encoder to its optimizer: in the original that did nothing, without a word."""

    def configure_optimizers(self):
        parameters = [*self.control_model.parameters(), *self.cond_stage_model.parameters()]
        return torch.optim.AdamW(parameters, lr=1e-3)


def test_frozen_weights_in_an_optimizer_are_named(build: Callable, fit: Callable) -> None:
    model = build(TextToo)
    with pytest.raises(ValueError, match=r"frozen weights.*cond_stage_model\.transformer.*requires_grad_"):
        fit(model)
    model.unfreeze_text_encoder()
    assert_trained(model, fit(model)[1], "control_model.", "cond_stage_model.")


def test_every_form_of_optimizers() -> None:
    a, b = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
    first, second = torch.optim.SGD([a], lr=1.0), torch.optim.AdamW([b], lr=1.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(first, lambda step: 1.0)
    for form, held in [
        (first, [a]),
        ([first, second], [a, b]),
        (([first], [schedule]), [a]),
        (([first, second], [{"scheduler": schedule, "interval": "step"}]), [a, b]),
        ({"optimizer": first, "lr_scheduler": {"scheduler": schedule}}, [a]),
        ([{"optimizer": first}, {"optimizer": second, "frequency": 2}], [a, b]),
        (None, []),
    ]:
        assert [id(p) for p in held_parameters(form)] == [id(p) for p in held]


# --- the way from a batch to the loss ---


class OwnLoss(ControlLDM):
    """The loss written anew, an argument that forward hands on, and time steps drawn in forward."""

    def forward(self, x, c, *args, **kwargs):
        t = torch.randint(0, self.num_timesteps, (x.shape[0],), device=self.device).long()
        return self.p_losses(x, c, t, *args, **kwargs)

    def shared_step(self, batch, **kwargs):
        x, c = self.get_input(batch, self.first_stage_key)
        return self(x, c, weight=1.0)

    def p_losses(self, x_start, cond, t, noise=None, weight=0.0):
        noise = torch.randn_like(x_start) if noise is None else noise
        output = self.apply_model(self.q_sample(x_start=x_start, t=t, noise=noise), t, cond)
        simple = self.get_loss(output, noise, mean=False).mean([1, 2, 3])
        logvar = self.logvar.to(self.device)[t]
        loss = self.l_simple_weight * (simple / torch.exp(logvar) + logvar).mean()
        loss = loss + self.original_elbo_weight * (self.lvlb_weights[t] * simple).mean()
        return weight * loss, {"train/loss": loss}


class OwnArguments(ControlLDM):
    """forward with an argument for p_losses, by our own forward."""

    def shared_step(self, batch, **kwargs):
        return self(*self.get_input(batch, self.first_stage_key), weight=1.0)

    def p_losses(self, *args, weight=0.0, **kwargs):
        loss, log = super().p_losses(*args, **kwargs)
        return weight * loss, log


@pytest.mark.parametrize("cls", [OwnLoss, OwnArguments])
def test_an_own_loss_gives_the_same_numbers(cls: type, build: Callable, fit: Callable) -> None:
    expected, changed = fit(build())
    losses, own_changed = fit(build(cls))
    assert losses == pytest.approx(expected, rel=1e-5)
    assert own_changed == changed


class DroppedPrompts(ControlLDM):
    """Gets its input by arguments that the original's get_input has."""

    def get_input(self, batch, k, bs=None, drop=True, *args, **kwargs):
        x, c = super().get_input(batch, k, bs, *args, **kwargs)
        empty = self.get_learned_conditioning([""])
        c["c_crossattn"] = [torch.where(torch.tensor(drop).view(1, 1, 1), empty, c["c_crossattn"][0])]
        return x, c


def test_inputs_of_the_original_s_form(build: Callable, fit: Callable, batch: dict[str, Any]) -> None:
    dropped, _ = fit(build(DroppedPrompts))
    empty, _ = fit(build(), txt=["", ""])
    assert dropped == pytest.approx(empty, rel=1e-5)

    model = build()
    x, cond, picture, reconstruction, raw = LatentDiffusion.get_input(
        model, batch, "jpg", return_first_stage_outputs=True, return_original_cond=True
    )
    assert raw == batch["txt"] and reconstruction.shape == picture.shape == (2, 3, 64, 64)
    torch.testing.assert_close(picture, batch["jpg"].permute(0, 3, 1, 2))
    torch.testing.assert_close(reconstruction, model.decode_first_stage(x))
    torch.testing.assert_close(cond, model.get_learned_conditioning(batch["txt"]))
    *_, only = model.get_input(batch, "jpg", bs=1, return_x=True)
    assert torch.equal(only, picture[:1])
    other = {**batch, "caption": ["a", "b"]}
    _, cond = LatentDiffusion.get_input(model, other, "jpg", cond_key="caption", force_c_encode=True)
    torch.testing.assert_close(cond, model.get_learned_conditioning(["a", "b"]))


class OffsetNoise(ControlLDM):
    """Another forward process."""

    def q_sample(self, x_start, t, noise=None):
        noise = torch.randn_like(x_start) if noise is None else noise
        return super().q_sample(x_start=x_start, t=t, noise=noise + 0.5)

    def register_schedule(self, *args, **kwargs):
        super().register_schedule(*args, **kwargs)
        self.register_buffer("own", self.betas * 2)


def test_another_forward_process(build: Callable, fit: Callable) -> None:
    model = build(OffsetNoise)
    assert torch.equal(model.own, model.betas * 2)
    x, noise, t = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8), torch.tensor([3, 900])
    difference = model.q_sample(x, t, noise) - ControlLDM.q_sample(model, x, t, noise)
    torch.testing.assert_close(difference[:, 0, 0, 0], 0.5 * model.sqrt_one_minus_alphas_cumprod[t])
    assert fit(model)[0] != fit(build())[0]


# --- stages ---


class OwnStages(ControlLDM):
    """Builds its stages itself."""

    def instantiate_first_stage(self, config):
        super().instantiate_first_stage(config)
        self.first_stage_model.train = disabled_train.__get__(self.first_stage_model)

    def instantiate_cond_stage(self, config):
        super().instantiate_cond_stage(config)
        self.projection = nn.Linear(32, 32)

    def get_learned_conditioning(self, c):
        return self.projection(super().get_learned_conditioning(c))


def test_own_stages(build: Callable, fit: Callable) -> None:
    model = build(OwnStages).train()
    assert not model.first_stage_model.training and model.projection.training
    assert_trained(model, fit(model)[1], "control_model.")


def test_the_first_stage_as_condition(build: Callable) -> None:
    model = build(Recorded, unet=UNET_TARGET, cond_stage_config="__is_first_stage__")
    assert model.cond_stage_model is model.first_stage_model


def test_a_condition_with_a_schedule_of_its_own(build: Callable, batch: dict[str, Any]) -> None:
    model = build(Recorded, unet=UNET_TARGET, num_timesteps_cond=5)
    assert model.shorten_cond_schedule
    assert model.cond_ids[:5].tolist() == [0, 250, 500, 749, 999]
    assert set(model.cond_ids[5:].tolist()) == {999}
    x, c = LatentDiffusion.get_input(model, batch, "jpg")
    model(x, c)
    difference = model.seen - model.sqrt_alphas_cumprod[999] * c
    torch.testing.assert_close(difference.std(), model.sqrt_one_minus_alphas_cumprod[999], rtol=0.05, atol=0)


class Recorded(LatentDiffusion):
    """Remembers the condition that the loss is taken with."""

    def __init__(self, control_stage_config, control_key, only_mid_control, **kwargs):
        super().__init__(**kwargs)

    def p_losses(self, x_start, cond, t, noise=None):
        self.seen = cond
        return super().p_losses(x_start, cond, t, noise)


class Inpainting(LatentInpaintDiffusion):
    """Without the parameters of a control."""

    def __init__(self, control_stage_config, control_key, only_mid_control, **kwargs):
        super().__init__(**kwargs)


def test_inpainting(build: Callable, fit: Callable, batch: dict[str, Any]) -> None:
    plain = build(Recorded, unet=UNET_TARGET)
    network = load_golden("train")[1]["config"]["params"]["unet_config"]["params"] | {"in_channels": 9}
    network = {"target": UNET_TARGET, "params": network}
    model = build(Inpainting, unet_config=network, conditioning_key="hybrid")
    hole = torch.zeros(2, 64, 64, 1)
    hole[:, 16:48, 16:48] = 1
    batch = {**batch, "mask": hole, "masked_image": batch["jpg"] * (1 - hole)}
    _, cond = model.get_input(batch, "jpg")
    assert cond["c_concat"][0].shape == (2, 5, 8, 8)
    assert cond["c_concat"][0][:, 0].unique().tolist() == [0, 1]
    model.learning_rate = 1e-3
    _, changed = fit(model, **batch)
    assert_trained(model, changed, "model.")
    log = model.log_images(batch, N=2, ddim_steps=2, unconditional_guidance_scale=3.0)
    assert log["samples_cfg_scale_3.00"].shape == (2, 3, 64, 64)
    assert len(plain.state_dict()) == len(model.state_dict())
    with pytest.raises(ValueError, match="masked_image_key='other'"):
        build(Inpainting, unet_config=network, masked_image_key="other")
