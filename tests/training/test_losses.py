"""The autoencoder's loss, learning rates, and runs of the other models that the trainer takes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_training import UNET, VAE, control_model, metrics, tiny_settings, write_model

from ldm.models.autoencoder import AutoencoderKL
from ldm.modules.distributions.distributions import DiagonalGaussianDistribution
from training.losses import ReconstructionKLLoss
from training.run import train
from training.schedules import WarmupSchedule

LOSS = {"target": "training.losses.ReconstructionKLLoss", "params": {"kl_weight": 1e-6, "edge_weight": 0.5}}


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
    settings = tiny_settings(tmp_path, model=write_model(tmp_path / "ldm.yaml", node), max_steps=4, batch_size=8)
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
