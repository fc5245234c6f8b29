"""The diffusion modules: process formulas, losses, averages, logs, what is trained and what stays frozen."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from golden_data import fill_by_recipe, load_golden, tiny_config
from omegaconf import OmegaConf

from cldm.cldm import ControlLDM
from ldm.models.autoencoder import AutoencoderKL, IdentityFirstStage
from ldm.models.diffusion.ddpm import DDPM, LatentDiffusion
from ldm.modules.distributions.distributions import DiagonalGaussianDistribution
from ldm.modules.ema import LitEma
from ldm.util import instantiate_from_config

UNET = {
    "target": "ldm.modules.diffusionmodules.openaimodel.UNetModel",
    "params": {
        "image_size": 8,
        "in_channels": 3,
        "out_channels": 3,
        "model_channels": 32,
        "num_res_blocks": 1,
        "attention_resolutions": [],
        "channel_mult": [1],
        "num_heads": 2,
    },
}


def control_model(name: str = "train") -> tuple[ControlLDM, dict[str, torch.Tensor], dict[str, Any]]:
    tensors, case = load_golden(name)
    return fill_by_recipe(instantiate_from_config(tiny_config(case))), tensors, case


@pytest.mark.parametrize("parameterization", ["eps", "x0", "v"])
def test_every_parameterization_recovers_the_start(parameterization: str) -> None:
    model = DDPM(UNET, use_ema=False, parameterization=parameterization)
    start, noise = torch.randn(2, 3, 3, 8, 8).unbind()
    t = torch.tensor([1, 400, 900])
    noisy = model.q_sample(start, t, noise)
    target = model.loss_target(start, t, noise)
    torch.testing.assert_close(model.predict_start(noisy, t, target), start, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(
        model.predict_eps_from_z_and_v(noisy, t, model.get_v(start, noise, t)), noise, rtol=1e-4, atol=1e-4
    )
    loss, log = model.p_losses(start, None, t, noise)
    # The last convolution starts at 0, so the prediction is 0 and the loss is the target's power.
    torch.testing.assert_close(loss, target.square().mean())
    assert set(log) == {"train/loss_simple", "train/loss_vlb", "train/loss"}


def test_posterior_agrees_with_bayes() -> None:
    """Mean and variance of q(x_{t-1} | x_t, x_0) by the product of two Gaussians."""
    model = DDPM(UNET, use_ema=False, linear_start=0.001, linear_end=0.02)
    t = torch.tensor([500])
    start, noisy = torch.randn(2, 1, 3, 8, 8).unbind()
    mean, variance, log_variance = model.q_posterior(start, noisy, t)
    beta, before = model.betas[500].double(), model.alphas_cumprod_prev[500].double()
    precision = (1 - beta) / beta + 1 / (1 - before)
    expected = ((1 - beta).sqrt() / beta * noisy + before.sqrt() / (1 - before) * start) / precision
    torch.testing.assert_close(mean.double(), expected.double(), rtol=1e-3, atol=1e-4)
    assert math.isclose(variance.item(), 1 / precision.item(), rel_tol=1e-3)
    assert math.isclose(log_variance.item(), math.log(variance.item()), rel_tol=1e-5)


def test_ancestral_sampling_finds_a_known_point(monkeypatch: pytest.MonkeyPatch) -> None:
    model = DDPM(UNET, use_ema=False, timesteps=50, image_size=8, parameterization="x0", log_every_t=10)
    monkeypatch.setattr(model, "apply_model", lambda x, t, cond: torch.full_like(x, 0.25))
    samples, intermediates = model.sample(batch_size=2, return_intermediates=True, verbose=False)
    assert samples.shape == (2, 3, 8, 8) and len(intermediates) == 6
    torch.testing.assert_close(samples, torch.full_like(samples, 0.25))


def test_learned_variance_and_variational_bound_enter_the_loss() -> None:
    model = DDPM(UNET, use_ema=False, learn_logvar=True, logvar_init=0.5, original_elbo_weight=0.1)
    loss, log = model.p_losses(torch.randn(2, 3, 8, 8), None, torch.tensor([3, 700]))
    simple = log["train/loss_simple"]
    torch.testing.assert_close(
        loss.detach(), simple / math.exp(0.5) + 0.5 + 0.1 * log["train/loss_vlb"], rtol=1e-5, atol=1e-6
    )
    loss.backward()
    assert model.logvar.grad[3] != 0 and model.logvar.grad[4] == 0
    assert any(p is model.logvar for p in model.configure_optimizers().param_groups[0]["params"])


@pytest.mark.parametrize(
    "options, message",
    [({"parameterization": "score"}, "'score' unknown"), ({"loss_type": "l3"}, "'l3' unknown")],
)
def test_impossible_options_are_named(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DDPM(UNET, **options)


def test_average_follows_the_weights_and_gives_them_back() -> None:
    model = DDPM(UNET, use_ema=True)
    keys = [key for key in model.state_dict() if key.startswith("model_ema.")]
    assert "model_ema.diffusion_modeltime_embed0weight" in keys, "the released files' names"
    weight = model.model.diffusion_model.time_embed[0].weight
    before = weight.detach().clone()
    with torch.no_grad():
        weight.add_(1.0)
    model.on_train_batch_end()
    # The first update keeps (1 + 1) / (10 + 1) of the old average.
    with model.ema_scope("test"):
        torch.testing.assert_close(weight.detach(), before + 9 / 11)
    torch.testing.assert_close(weight.detach(), before + 1.0)
    with pytest.raises(ValueError, match=r"EMA decay of 1\.5"):
        LitEma(model.model, decay=1.5)


@pytest.mark.parametrize("locked", [True, False])
def test_only_what_is_trained_takes_gradients(locked: bool) -> None:
    model, tensors, case = control_model()
    model.sd_locked = locked
    optimizer = model.configure_optimizers()
    model.freeze_untrained()
    trained = {id(p) for p in optimizer.param_groups[0]["params"]}
    prefixes = ("control_model.",) if locked else ("control_model.", "model.diffusion_model.out")
    for name, parameter in model.named_parameters():
        assert (id(parameter) in trained) == parameter.requires_grad == name.startswith(prefixes), name
    model.train()
    assert not model.first_stage_model.training and not model.cond_stage_model.training
    loss, _ = model.shared_step({"jpg": tensors["jpg"], "hint": tensors["hint"], "txt": case["txt"]})
    loss.backward()
    assert not any(p.grad is not None for n, p in model.named_parameters() if not n.startswith(prefixes))


def test_text_encoder_can_be_trained() -> None:
    _, _, case = control_model()
    config = tiny_config(case).params
    params = OmegaConf.to_container(config)
    for key in ("control_stage_config", "control_key", "only_mid_control"):
        params.pop(key)
    params["unet_config"]["target"] = "ldm.modules.diffusionmodules.openaimodel.UNetModel"
    params["cond_stage_config"]["params"]["freeze"] = False
    model = LatentDiffusion(**{**params, "cond_stage_trainable": True})
    fill_by_recipe(model)
    model.configure_optimizers()
    batch = {"jpg": torch.rand(2, 64, 64, 3), "txt": ["a house", "the sea"]}
    loss, _ = model.shared_step(batch)
    loss.backward()
    assert (
        model.cond_stage_model.transformer.text_model.embeddings.token_embedding.weight.grad.abs().sum() > 0
    )
    log = model.log_images(
        batch, N=1, ddim_steps=2, plot_diffusion_rows=False, unconditional_guidance_scale=2.0
    )
    assert set(log) == {"inputs", "reconstruction", "conditioning", "samples", "samples_cfg_scale_2.00"}


def test_pictures_for_the_log() -> None:
    model, tensors, case = control_model()
    batch = {"jpg": tensors["jpg"], "hint": tensors["hint"], "txt": case["txt"]}
    log = model.log_images(
        batch,
        N=2,
        n_row=1,
        sample=True,
        ddim_steps=2,
        plot_denoise_rows=True,
        plot_diffusion_rows=True,
        unconditional_guidance_scale=3.0,
    )
    shapes = {name: tuple(pictures.shape) for name, pictures in log.items()}
    assert shapes == {
        "control": (2, 3, 64, 64),
        "reconstruction": (2, 3, 64, 64),
        "conditioning": (2, 3, 64, 64),
        "diffusion_row": (1, 3, 64, 64 * 6),
        "samples": (2, 3, 64, 64),
        "denoise_row": (1, 3, 128, 64 * 3),
        "samples_cfg_scale_3.00": (2, 3, 64, 64),
    }
    torch.testing.assert_close(log["control"], tensors["hint"].permute(0, 3, 1, 2) * 2 - 1)
    assert set(model.log_images(batch, N=1, ddim_steps=1, return_keys=["control"])) == {"control"}


def test_gaussian_distribution() -> None:
    mean, logvar = torch.randn(2, 4, 3, 3), torch.randn(2, 4, 3, 3)
    distribution = DiagonalGaussianDistribution(torch.cat([mean, logvar], dim=1))
    peer = torch.distributions.Normal(mean, (0.5 * logvar).exp())
    standard = torch.distributions.Normal(0.0, 1.0)
    other = DiagonalGaussianDistribution(torch.zeros(2, 8, 3, 3) + 0.3)
    torch.testing.assert_close(
        distribution.kl(),
        torch.distributions.kl_divergence(peer, standard).sum((1, 2, 3)),
        rtol=1e-4,
        atol=1e-4,
    )
    peer_other = torch.distributions.Normal(other.mean, other.std)
    torch.testing.assert_close(
        distribution.kl(other),
        torch.distributions.kl_divergence(peer, peer_other).sum((1, 2, 3)),
        rtol=1e-4,
        atol=1e-4,
    )
    sample = distribution.sample()
    torch.testing.assert_close(
        distribution.nll(sample), -peer.log_prob(sample).sum((1, 2, 3)), rtol=1e-4, atol=1e-4
    )
    fixed = DiagonalGaussianDistribution(distribution.parameters, deterministic=True)
    assert torch.equal(fixed.sample(), fixed.mode()) and not fixed.kl().any()
    assert DiagonalGaussianDistribution(torch.full((1, 2, 1, 1), 99.0)).logvar.max() == 20


def test_autoencoder_needs_a_loss_to_train() -> None:
    _, case = load_golden("autoencoder")
    params = OmegaConf.to_container(tiny_config(case).params.first_stage_config.params)
    vae = AutoencoderKL(**params, image_key="jpg")
    with pytest.raises(ValueError, match=r"training\.losses"):
        vae.training_step({"jpg": torch.zeros(1, 32, 32, 3)}, 0)
    pictures = vae.log_images({"jpg": torch.rand(1, 32, 32, 3)})
    assert {name: tuple(p.shape) for name, p in pictures.items()} == dict.fromkeys(
        ("inputs", "reconstructions", "samples"), (1, 3, 32, 32)
    )
    params["ddconfig"]["double_z"] = False
    with pytest.raises(ValueError, match="double_z is false"):
        AutoencoderKL(**params)
    assert IdentityFirstStage().decode(3) == 3
