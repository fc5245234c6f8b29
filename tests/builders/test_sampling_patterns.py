"""Networks, models and samplers with methods of the original's form: their pictures are those of ours."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
from golden_data import relative_error
from original_style import OwnApplyModel, OwnLoopSampler, OwnStepSampler

from cldm.cldm import ControlLDM
from ldm.models.diffusion.ddim import DDIMSampler
from ldm.models.diffusion.plms import PLMSSampler
from ldm.modules.attention import CrossAttention

SHAPE = (4, 8, 8)
POPPING = {"unet": "original_style.PoppingUNet"}
OWN_FORWARD = {"control": "original_style.OwnForwardControlNet"}


def conditions(model: ControlLDM, batch: dict[str, Any], guess: bool = False) -> tuple[dict, dict]:
    """Prompts and no prompts, with hints; in guess mode the second has none."""
    _, cond = model.get_input(batch, "jpg")
    uncond = model.unconditional_like(cond)
    return cond, {**uncond, "c_concat": None} if guess else uncond


def sample(model: ControlLDM, batch: dict[str, Any], sampler: type = DDIMSampler, **options: Any):
    model.eval()
    cond, uncond = conditions(model, batch, options.pop("guess", False))
    torch.manual_seed(4)
    guidance = {"unconditional_guidance_scale": 3.0, "unconditional_conditioning": uncond}
    return sampler(model).sample(4, 2, SHAPE, cond, verbose=False, **guidance, **options)[0]


@pytest.mark.parametrize("guess", [False, True])
@pytest.mark.parametrize(
    ("cls", "networks"),
    [
        (ControlLDM, POPPING),
        (ControlLDM, OWN_FORWARD),
        (OwnApplyModel, {}),
        (OwnApplyModel, {**POPPING, **OWN_FORWARD}),
    ],
)
def test_networks_and_models_give_our_numbers(
    cls: type, networks: dict[str, str], guess: bool, build: Callable, fit: Callable, batch: dict[str, Any]
) -> None:
    expected = sample(build(), batch, guess=guess)
    model = build(cls, **networks)
    assert relative_error(sample(model, batch, guess=guess), expected) < 1e-5
    if not guess:
        assert fit(model)[0] == pytest.approx(fit(build())[0], rel=1e-5)


def test_only_the_middle_is_steered_by_an_own_unet_too(build: Callable, batch: dict[str, Any]) -> None:
    expected = sample(build(only_mid_control=True), batch)
    assert relative_error(sample(build(**POPPING, only_mid_control=True), batch), expected) < 1e-5
    assert relative_error(sample(build(), batch), expected) > 1e-2


def test_a_model_with_its_own_apply_model_is_asked_once_for_each_condition(
    build: Callable, batch: dict[str, Any]
) -> None:
    rows = []

    class Counting(OwnApplyModel):
        def apply_model(self, x_noisy, t, cond, *args, **kwargs):
            rows.append((len(x_noisy), set(cond)))
            return super().apply_model(x_noisy, t, cond)

    sample(build(Counting), batch)
    assert rows == [(2, {"c_crossattn", "c_concat"})] * 8

    model = build()
    plain = model.apply_model
    model.apply_model = lambda x, t, cond: rows.append(len(x)) or plain(x, t, cond)
    rows.clear()
    sample(model, batch)
    assert rows == [2] * 8, "nor does one that was put in its place"


def test_an_attention_that_was_written_anew(build: Callable, batch: dict[str, Any]) -> None:
    def forward(self, x, context=None, mask=None):
        context = x if context is None else context
        q, k, v = self.to_q(x), self.to_k(context), self.to_v(context)
        q, k, v = (
            part.view(part.shape[0], -1, self.heads, part.shape[-1] // self.heads).transpose(1, 2)
            for part in (q, k, v)
        )
        weights = (q @ k.transpose(-1, -2) * self.scale).softmax(-1)
        return self.to_out((weights @ v).transpose(1, 2).reshape(x.shape[0], x.shape[1], -1))

    expected = sample(build(), batch)
    model = build()
    for module in model.modules():
        if isinstance(module, CrossAttention):
            module.forward = types.MethodType(forward, module)
    assert relative_error(sample(model, batch), expected) < 1e-5
    model = build()
    for module in model.modules():
        if isinstance(module, CrossAttention):
            module.scale *= 2
    assert relative_error(sample(model, batch), expected) > 1e-3, "the attribute counts"


# --- samplers ---


@pytest.mark.parametrize("sampler", [OwnStepSampler, OwnLoopSampler])
@pytest.mark.parametrize("eta", [0.0, 0.7])
def test_samplers_give_our_numbers(sampler: type, eta: float, build: Callable, batch: dict[str, Any]) -> None:
    model = build()
    noise = torch.randn(2, *SHAPE)
    expected = sample(model, batch, eta=eta, x_T=noise)
    assert relative_error(sample(model, batch, sampler, eta=eta, x_T=noise), expected) < 1e-5


def test_a_sampler_s_attributes(build: Callable) -> None:
    model = build()
    for cls in (DDIMSampler, PLMSSampler):
        sampler = cls(model)
        sampler.make_schedule(ddim_num_steps=5, ddim_eta=0.0, verbose=False)
        assert torch.equal(sampler.betas, model.betas)
        assert torch.equal(sampler.sqrt_recipm1_alphas_cumprod, model.sqrt_recipm1_alphas_cumprod)
        assert len(sampler.ddim_alphas) == len(sampler.ddim_sigmas) == len(sampler.ddim_timesteps) == 5
        assert sampler.ddim_sigmas_for_original_num_steps.shape == (1000,)
        sampler.register_buffer("own", torch.ones(2))
        assert sampler.own.device == model.device
    sampler = DDIMSampler(model)
    sampler.make_schedule(5, ddim_eta=1.0, verbose=False)
    t = torch.tensor(500)
    before, now = model.alphas_cumprod_prev[t].double(), model.alphas_cumprod[t].double()
    expected = ((1 - before) / (1 - now) * (1 - now / before)).sqrt()
    torch.testing.assert_close(sampler.ddim_sigmas_for_original_num_steps[t].double(), expected)


def test_the_original_s_ways_through_the_time_steps(build: Callable, batch: dict[str, Any]) -> None:
    model = build(timesteps=20).eval()
    cond, _ = conditions(model, batch)
    noise = torch.randn(2, *SHAPE)
    sampler = DDIMSampler(model)
    sampler.make_schedule(5, verbose=False)
    every, _ = sampler.ddim_sampling(cond, (2, *SHAPE), x_T=noise, ddim_use_original_steps=True)
    steps = DDIMSampler(model).sample(20, 2, SHAPE, cond, x_T=noise, verbose=False)[0]
    assert every.isfinite().all() and steps.isfinite().all()

    def by_hand(visited: list[int], **options: Any) -> torch.Tensor:
        x = noise
        for index, step in reversed(list(enumerate(visited))):
            x, _ = sampler.p_sample_ddim(x, cond, torch.tensor([step, step]), index, **options)
        return x

    assert torch.equal(every, by_hand(list(range(20)), use_original_steps=True))
    few, _ = sampler.ddim_sampling(cond, (2, *SHAPE), x_T=noise, ddim_use_original_steps=True, timesteps=7)
    assert torch.equal(few, by_hand(list(range(7)), use_original_steps=True))
    few, _ = sampler.ddim_sampling(cond, (2, *SHAPE), x_T=noise, timesteps=4)
    assert torch.equal(few, by_hand([int(step) for step in sampler.ddim_timesteps[:3]]))
    with pytest.raises(ValueError, match="quantize_denoised: not supported"):
        sampler.p_sample_ddim(noise, cond, torch.tensor([1, 1]), 0, quantize_denoised=True)


# --- PLMS ---


def test_plms_by_its_formulas(build: Callable, batch: dict[str, Any]) -> None:
    """Liu et al., arXiv 2202.09778, equations 11 (DDIM's step), 12 and 13, with the weights of table 1."""
    model = build().eval()
    cond, uncond = conditions(model, batch)
    noise = torch.randn(2, *SHAPE)
    steps = [1, 201, 401, 601, 801]
    a = {step: model.alphas_cumprod[max(step, 0)].double() for step in [-199, *steps]}

    def eps(x: torch.Tensor, step: int) -> torch.Tensor:
        t = torch.tensor([step, step])
        with torch.no_grad():
            with_cond, without = (model.apply_model(x.float(), t, c).double() for c in (cond, uncond))
        return without + 3.0 * (with_cond - without)

    def transfer(x: torch.Tensor, e: torch.Tensor, step: int) -> torch.Tensor:
        start = (x - (1 - a[step]).sqrt() * e) / a[step].sqrt()
        return a[step - 200].sqrt() * start + (1 - a[step - 200]).sqrt() * e

    x, seen = noise.double(), []
    for step in reversed(steps):
        e = eps(x, step)
        if len(seen) == 0:
            mean = (e + eps(transfer(x, e, step), step - 200)) / 2
        elif len(seen) == 1:
            mean = (3 * e - seen[-1]) / 2
        elif len(seen) == 2:
            mean = (23 * e - 16 * seen[-1] + 5 * seen[-2]) / 12
        else:
            mean = (55 * e - 59 * seen[-1] + 37 * seen[-2] - 9 * seen[-3]) / 24
        seen.append(e)
        x = transfer(x, mean, step)

    calls = []
    samples, intermediates = PLMSSampler(model).sample(
        5,
        2,
        SHAPE,
        cond,
        x_T=noise,
        unconditional_guidance_scale=3.0,
        unconditional_conditioning=uncond,
        img_callback=lambda start, i: calls.append(i),
        verbose=False,
    )
    assert relative_error(samples, x) < 1e-4
    assert calls == [0, 1, 2, 3, 4] and len(intermediates["x_inter"]) == 3


def test_plms_finds_a_known_point_and_keeps_what_is_masked(build: Callable) -> None:
    model = build(parameterization="v")
    a = model.alphas_cumprod

    def velocity(x: torch.Tensor, t: torch.Tensor, cond: object) -> torch.Tensor:
        alpha = a[t].view(-1, 1, 1, 1)
        e = (x - alpha.sqrt() * 0.5) / (1 - alpha).sqrt()
        return alpha.sqrt() * e - (1 - alpha).sqrt() * 0.5

    model.apply_model = velocity
    sampler = PLMSSampler(model)
    samples, _ = sampler.sample(20, 2, SHAPE, verbose=False)
    assert (samples - 0.5).abs().max() < 0.15
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., :4, :] = 1
    samples, _ = sampler.sample(20, 2, SHAPE, verbose=False, mask=mask, x0=torch.full((2, *SHAPE), -2.0))
    assert samples[..., :4, :].mean() < 0 and (samples[..., 4:, :] - 0.5).abs().max() < 0.15
    with pytest.raises(ValueError, match=r"eta=0\.5; PLMS is deterministic"):
        sampler.sample(5, 1, SHAPE, eta=0.5)
