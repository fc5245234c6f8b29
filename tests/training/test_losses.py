"""The autoencoder's loss, learning rates, and runs of the other models that the trainer takes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_training import UNET, VAE, control_model, metrics, tiny_settings, write_model

from controlnet.conditions.seg.areas import area_weights
from controlnet.training.losses import ReconstructionKLLoss
from controlnet.training.run import make_model, train
from controlnet.training.schedules import WarmupSchedule
from controlnet.training.settings import Settings
from ldm.models.autoencoder import AutoencoderKL
from ldm.modules.distributions.distributions import DiagonalGaussianDistribution, SampleNoise

LOSS = {
    "target": "controlnet.training.losses.ReconstructionKLLoss",
    "params": {"kl_weight": 1e-6, "edge_weight": 0.5},
}


def test_the_loss_is_what_it_says() -> None:
    inputs, reconstructions = torch.rand(2, 3, 16, 16), torch.rand(2, 3, 16, 16)
    posterior = DiagonalGaussianDistribution(torch.randn(2, 8, 2, 2))
    loss, log = ReconstructionKLLoss(kl_weight=0.1)(inputs, reconstructions, posterior, split="val")
    expected = (inputs - reconstructions).abs().mean()
    divergence = torch.distributions.kl_divergence(
        torch.distributions.Normal(posterior.mean, posterior.std), torch.distributions.Normal(0.0, 1.0)
    )
    torch.testing.assert_close(loss, expected + 0.1 * divergence.sum() / inputs.numel())
    assert set(log) == {"val/loss", "val/rec_loss", "val/kl_loss"}


def test_the_edge_term_sees_edges_alone() -> None:
    loss = ReconstructionKLLoss(edge_weight=1.0, edge_scales=2)
    a = torch.zeros(1, 3, 8, 8)
    assert loss.edge_distance(a, a + 0.7) == 0  # another brightness, no edge
    b = a.clone()
    b[..., 4:] = 1  # one upright edge: 1 of 7 differences at full size, 1 of 3 at half size, none across
    assert loss.edge_distance(a, b).item() == pytest.approx((1 / 7 + 1 / 3) / 4)
    with pytest.raises(ValueError, match="kl_weight=-1"):
        ReconstructionKLLoss(kl_weight=-1)


def test_the_loss_adds_no_keys() -> None:
    with_loss = AutoencoderKL(VAE, LOSS, embed_dim=4)
    without = AutoencoderKL(VAE, {"target": "torch.nn.Identity"}, embed_dim=4)
    assert with_loss.state_dict().keys() == without.state_dict().keys()


def test_learning_rates() -> None:
    schedule = WarmupSchedule(warmup_steps=4, decay_steps=14, final=0.1).schedule
    assert [schedule(step) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]
    assert schedule(9) == pytest.approx(0.55) and schedule(14) == schedule(99) == pytest.approx(0.1)
    assert WarmupSchedule().schedule(0) == WarmupSchedule().schedule(10**6) == 1
    with pytest.raises(ValueError, match="10 steps"):
        WarmupSchedule(10, 10)


def test_an_autoencoder_learns(tmp_path: Path) -> None:
    node = {
        "target": "ldm.models.autoencoder.AutoencoderKL",
        "params": {"embed_dim": 4, "ddconfig": VAE, "lossconfig": LOSS, "image_key": "jpg"},
    }
    settings = tiny_settings(
        tmp_path,
        model=write_model(tmp_path / "vae.yaml", node),
        val=str(tmp_path / "circles"),
        val_every=8,
        save_best=1,
        max_steps=16,
        warmup_steps=5,
        ema=0.5,
        learning_rate=2e-3,
        logger_freq=100,
    )
    train(settings)
    first, last = metrics(settings, "val/loss")
    assert last < first < metrics(settings, "train/loss")[0]
    assert {path.name.split("_gs")[0] for path in (settings.folder / "image_log" / "train").iterdir()} == {
        "inputs",
        "reconstructions",
        "samples",
    }


def test_a_decoder_learns_alone_and_latents_stay(tmp_path: Path) -> None:
    node = {
        "target": "ldm.models.autoencoder.AutoencoderKL",
        "params": {"embed_dim": 4, "ddconfig": VAE, "lossconfig": LOSS, "image_key": "jpg"},
    }
    model = write_model(tmp_path / "vae.yaml", node)
    settings = tiny_settings(tmp_path, model=model, decoder_only=True, max_steps=2, learning_rate=1e-2)
    start = make_model(settings).state_dict()
    end = train(settings).lightning_module.state_dict()
    moved = {key.split(".")[0] for key in end if not torch.equal(end[key], start[key])}
    assert moved == {"decoder", "post_quant_conv"}
    with pytest.raises(ValueError, match=r"cldm_tiny\.yaml is no autoencoder"):
        make_model(tiny_settings(tmp_path, model="models/tiny/cldm_tiny.yaml", decoder_only=True))


@pytest.mark.parametrize("train_text", [True, False])
def test_latent_diffusion_learns(tmp_path: Path, train_text: bool) -> None:
    node = control_model()
    node["target"] = "ldm.models.diffusion.ddpm.LatentDiffusion"
    for name in ("control_stage_config", "control_key", "only_mid_control"):
        del node["params"][name]
    node["params"]["unet_config"] = {
        "target": "ldm.modules.diffusionmodules.openaimodel.UNetModel",
        "params": {**UNET, "out_channels": 4},
    }
    node["params"]["cond_stage_trainable"] = train_text
    settings = tiny_settings(
        tmp_path, model=write_model(tmp_path / "ldm.yaml", node), max_steps=4, batch_size=8
    )
    trainer = train(settings)
    losses = metrics(settings, "train/loss")
    assert len(losses) == 4 and losses[-1] < losses[0] * 1.1
    moved = trainer.optimizers[0].param_groups[0]["params"]
    text = {id(parameter) for parameter in trainer.lightning_module.cond_stage_model.parameters()}
    assert bool(text & set(map(id, moved))) == train_text
    if train_text:
        settings.output, settings.cache_latents = str(tmp_path / "cached"), True
        train(settings)  # the pictures are cached, the prompts are encoded anew
        np.testing.assert_allclose(metrics(settings, "train/loss"), losses, rtol=1e-4)


def test_small_areas_weigh_more_and_all_together_weigh_one() -> None:
    hint = torch.zeros(2, 3, 64, 64)
    hint[0, :, :16, :16] = torch.tensor([1.0, 0.5, 0.2])[:, None, None]  # a sixteenth of the first map
    hint[1, 0, :32] = 1.0
    weights = area_weights(hint, 0.5)
    assert weights.shape == (2, 1, 8, 8)
    torch.testing.assert_close(weights.mean(dim=(1, 2, 3)), torch.ones(2))
    small, large = weights[0, 0, 0, 0], weights[0, 0, -1, -1]
    torch.testing.assert_close(small / large, torch.tensor(15.0) ** 0.5)
    torch.testing.assert_close(weights[1], torch.ones(1, 8, 8))
    sums = area_weights(hint, 1.0)[0, 0]
    torch.testing.assert_close(sums[:2, :2].sum(), sums.sum() / 2)  # power 1: either colour has a half


def test_a_photo_is_no_map() -> None:
    with pytest.raises(ValueError, match=r"A hint has \d+ colours"):
        area_weights(torch.rand(1, 3, 256, 256, generator=torch.Generator().manual_seed(0)), 0.5)


def test_the_balance_changes_the_loss_and_not_what_is_reported(tmp_path: Path) -> None:
    settings = tiny_settings(tmp_path, max_steps=1)
    plain, balanced = (make_model(replace(settings, area_balance=power)).train() for power in (0.0, 0.5))
    hint = torch.zeros(2, 64, 64, 3)
    hint[:, :16, :16] = 1.0
    batch = {
        "jpg": torch.rand(2, 64, 64, 3) * 2 - 1,
        "hint": hint,
        "txt": ["a", "b"],
        "noise_seed": torch.arange(2),
    }
    (loss, log), (other_loss, other_log) = plain.shared_step(batch), balanced.shared_step(batch)
    assert log["train/loss_simple"] == other_log["train/loss_simple"]
    assert loss != other_loss
    latent, cond = plain.get_input(batch, "jpg")
    errors = torch.linspace(0, 1, latent.numel()).view_as(latent)
    balanced.apply_model = lambda *_: errors
    balanced.loss_target = lambda *_: torch.zeros_like(errors)
    loss, _ = balanced.p_losses(latent, cond, torch.zeros(2, dtype=torch.long))
    torch.testing.assert_close(loss, (errors**2 * area_weights(hint.permute(0, 3, 1, 2), 0.5)).mean())


def test_a_balance_beyond_one_is_refused() -> None:
    with pytest.raises(ValueError, match="area_balance must be from 0"):
        Settings(area_balance=1.5)


def test_only_noisy_time_steps_are_trained_where_that_is_asked_for(tmp_path: Path) -> None:
    model = make_model(tiny_settings(tmp_path, first_time_step=900))
    seen = []
    model.p_losses = lambda x, c, t, noise=None: seen.append(t)
    model(torch.zeros(400, 4, 8, 8))
    model(torch.zeros(400, 4, 8, 8), random=SampleNoise(range(400)))
    for t in seen:
        assert t.min() >= 900
        assert t.max() < 1000
        assert len(t.unique()) > 80


def test_a_first_time_step_beyond_the_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="first_time_step is 1000, and the model has 1000 time steps"):
        make_model(tiny_settings(tmp_path, first_time_step=1000))
    with pytest.raises(ValueError, match="first_time_step must be 0 or more, got -1"):
        Settings(first_time_step=-1)
