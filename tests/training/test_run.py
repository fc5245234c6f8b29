"""Whole runs of a tiny ControlLDM, put together as `tutorial_train.py` does."""

from __future__ import annotations

import copy
import logging
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from tiny_training import control_model, metrics, tiny_settings, write_model
from weight_samples import lora_factors

from cldm.convert_files import merge_control_to_file
from cldm.model import create_model
from controlnet.training.faults import CheckpointError, NonFiniteError, SettingsError
from controlnet.training.run import TrainingData, make_model, set_checkpointing, train
from ldm.weights import WeightsError, read_state_dict, save_state_dict


def test_a_run_leaves_checkpoints_logs_and_pictures(tmp_path: Path) -> None:
    settings = tiny_settings(
        tmp_path,
        ema=0.9,
        accumulate=2,
        val=str(tmp_path / "circles"),
        val_every=2,
        save_best=1,
        max_steps=4,
        logger_freq=100,
        warmup_steps=2,
        cosine_decay=True,
        flip=0.5,
        empty_prompts=0.5,
    )
    trainer = train(settings)
    checkpoints = {path.name for path in settings.last_checkpoint.parent.iterdir()}
    assert len(checkpoints) == 2 and "last.ckpt" in checkpoints
    pictures = {path.name for path in (settings.folder / "image_log" / "train").iterdir()}
    for kind in ("samples_cfg_scale_9.00", "reconstruction", "control", "conditioning"):
        assert f"{kind}_gs-000000_e-000000_b-000000.png" in pictures
    assert len(metrics(settings, "train/loss")) == 4
    assert len(metrics(settings, "val/loss")) == len(metrics(settings, "val/control_gap")) == 2
    assert list((settings.folder / "tensorboard").rglob("events.out.tfevents.*"))

    # The whole checkpoint is a model, and it holds the average.
    state = torch.load(settings.last_checkpoint, weights_only=True)
    assert state["state_dict"].keys() == trainer.lightning_module.state_dict().keys()
    reloaded = make_model(tiny_settings(tmp_path, base=str(settings.last_checkpoint)))
    key = "control_model.input_blocks.0.0.weight"
    assert torch.equal(reloaded.state_dict()[key], state["state_dict"][key])
    assert not torch.equal(state["current_model_state"][key], state["state_dict"][key])

    with pytest.raises(FileExistsError, match="--resume"):
        train(settings)


def test_a_run_starts_from_the_files_that_people_have(tmp_path: Path) -> None:
    """A base without a control, and beside it a control, a VAE and a LoRA."""
    state = create_model(write_model(tmp_path / "model.yaml")).state_dict()
    control = {key: tensor + 1 for key, tensor in state.items() if key.startswith("control_model.")}
    vae = {key: tensor + 2 for key, tensor in state.items() if key.startswith("first_stage_model.")}
    weight = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight"
    down, up = lora_factors(state[weight])
    module = weight.removeprefix("model.diffusion_").removesuffix(".weight").replace(".", "_")
    module = f"lora_unet_{module.removeprefix('model_')}"
    lora = {f"{module}.lora_down.weight": down, f"{module}.lora_up.weight": up}
    base = {key: tensor for key, tensor in state.items() if key not in control}
    for name, tensors in {"base": base, "control": control, "vae": vae, "lora": lora}.items():
        save_state_dict(tensors, tmp_path / f"{name}.safetensors")
    paths = {name: str(tmp_path / f"{name}.safetensors") for name in ("base", "control", "vae")}
    settings = tiny_settings(tmp_path).from_command_line(
        [f"--{name}={path}" for name, path in paths.items()] + [f"--lora={tmp_path}/lora.safetensors:0.5"]
    )
    found = make_model(settings).state_dict()
    expected = {**state, **control, **vae, weight: state[weight] + 0.5 * up @ down}
    for key, tensor in found.items():
        torch.testing.assert_close(tensor, expected[key], msg=lambda m, k=key: f"{k}: {m}")
    with pytest.raises(WeightsError, match=r"it has no control: give one with --control"):
        make_model(tiny_settings(tmp_path, base=paths["base"]))
    with pytest.raises(SettingsError, match="go beside the weights of a base"):
        make_model(tiny_settings(tmp_path, control=paths["control"]))


def test_the_hint_is_learnt(
    tmp_path: Path, fill_by_recipe: Callable, caplog: pytest.LogCaptureFixture
) -> None:
    """Eight pictures are learnt by heart from their hints alone; with the hints of others the loss is far
    higher.
    """
    node = control_model()
    node["params"] |= {"parameterization": "x0", "scale_factor": 2.0}
    model = fill_by_recipe(create_model(write_model(tmp_path / "x0.yaml", node)))
    with torch.no_grad():
        for zero_conv in (model.control_model.zero_convs, model.control_model.middle_block_out):
            for parameter in zero_conv.parameters():
                parameter.zero_()
        moments = model.first_stage_model.quant_conv
        moments.weight[4:] = 0  # a posterior without spread: a random VAE's would drown the picture in noise
        moments.bias[4:] = -20
    save_state_dict(model.state_dict(), tmp_path / "base.safetensors")
    settings = tiny_settings(
        tmp_path,
        model=str(tmp_path / "x0.yaml"),
        base=str(tmp_path / "base.safetensors"),
        batch_size=4,
        learning_rate=3e-3,
        warmup_steps=10,
        empty_prompts=1.0,
        cache_latents=True,
        val=str(tmp_path / "circles"),
        val_every=10,
        save_best=0,
        max_steps=70,
        save_every=1000,
    )
    with caplog.at_level(logging.INFO, logger="controlnet.training"):
        train(settings)
    right, shuffled = metrics(settings, "val/loss_right_hint"), metrics(settings, "val/loss_shuffled_hint")
    assert shuffled[0] == pytest.approx(right[0], rel=0.05)  # at first the hint makes no difference
    assert shuffled[-1] > 2 * right[-1], (right, shuffled)
    assert caplog.text.count("Sudden convergence") == 1


def test_cached_latents_train_the_same(tmp_path: Path) -> None:
    plain = tiny_settings(tmp_path, max_steps=3, flip=0.5, output=str(tmp_path / "plain"))
    cached = tiny_settings(
        tmp_path, max_steps=3, flip=0.5, output=str(tmp_path / "cached"), cache_latents=True, logger_freq=100
    )
    train(plain)
    train(cached)
    np.testing.assert_allclose(metrics(cached, "train/loss"), metrics(plain, "train/loss"), rtol=1e-4)
    assert list(
        (cached.folder / "image_log").rglob("reconstruction_gs-000000*.png")
    )  # nor do the pictures change it
    entries = sorted((cached.folder / "cache").rglob("*.safetensors"))
    assert len(entries) == 8 * 2 + 8  # each picture and its mirror image, each prompt

    # A killed fill goes on: what is whole stays, what is missing or broken is made anew, the same as before.
    contents = {path: path.read_bytes() for path in entries}
    entries[0].unlink()
    entries[1].write_bytes(entries[1].read_bytes()[:50])
    times = {path: path.stat().st_mtime_ns for path in entries[2:]}
    model = make_model(cached)
    data = TrainingData(cached, model)
    data.trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    data.setup("fit")
    assert {path: path.read_bytes() for path in entries} == contents
    assert times == {path: path.stat().st_mtime_ns for path in entries[2:]}

    # Other weights of the encoders make other entries.
    other = TrainingData(cached, make_model(tiny_settings(tmp_path, seed=1)))
    other.trainer = data.trainer
    other.setup("fit")
    assert len(list((cached.folder / "cache").rglob("*.safetensors"))) == 2 * len(entries)


def test_what_is_saved_can_be_small(tmp_path: Path) -> None:
    base = tmp_path / "base.ckpt"
    save_state_dict(make_model(tiny_settings(tmp_path, seed=4)).state_dict(), base)
    options = {"sd_locked": True, "base": str(base)}
    whole = tiny_settings(tmp_path, max_steps=2, output=str(tmp_path / "whole"), **options)
    train(whole)
    expected = torch.load(whole.last_checkpoint, weights_only=True)

    small = tiny_settings(
        tmp_path, max_steps=1, output=str(tmp_path / "small"), save="control-only", **options
    )
    train(small)
    small.max_steps, small.resume = 2, "last"
    train(small)
    state = torch.load(small.last_checkpoint, weights_only=True)["state_dict"]
    assert state.keys() == {key for key in expected["state_dict"] if key.startswith("control_model.")}
    assert all(torch.equal(state[key], expected["state_dict"][key]) for key in state)

    merge_control_to_file(base, small.last_checkpoint, tmp_path / "merged.ckpt", Path(small.model))
    merged = read_state_dict(tmp_path / "merged.ckpt")
    assert merged.keys() == expected["state_dict"].keys()
    assert all(torch.equal(merged[key], expected["state_dict"][key]) for key in merged)

    small.sd_locked = False
    with pytest.raises(ValueError, match="sd_locked"):
        train(small)


class Poison(pl.Callback):
    """Makes the hint of one batch infinite."""

    def on_train_batch_start(
        self, trainer: pl.Trainer, module: Any, batch: dict[str, Any], batch_idx: int
    ) -> None:
        if trainer.global_step == 2:
            batch["hint"].fill_(float("inf"))


def test_a_loss_of_nan_stops_the_run(tmp_path: Path) -> None:
    settings = tiny_settings(tmp_path, max_steps=5, save_every=1)
    with pytest.raises(NonFiniteError) as error:
        train(settings, Poison())
    text = str(error.value)
    assert "The loss is nan at step 2" in text
    assert text.count(str(tmp_path / "circles" / "target")) == 2  # the files of the batch
    assert str(settings.last_checkpoint) in text
    state = torch.load(settings.last_checkpoint, weights_only=True)
    assert state["global_step"] == 2
    assert all(tensor.isfinite().all() for tensor in state["state_dict"].values())


class SmallDisk(pl.Callback):
    """After two steps no file may grow beyond a megabyte."""

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == 2:
            resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def test_a_full_disk_leaves_the_earlier_checkpoint(tmp_path: Path) -> None:
    settings = tiny_settings(tmp_path, max_steps=5, save_every=2)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with pytest.raises(CheckpointError, match="File too large") as error:
            train(settings, SmallDisk())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "step 4" in str(error.value) and f"--resume {settings.last_checkpoint}" in str(error.value)
    assert torch.load(settings.last_checkpoint, weights_only=True)["global_step"] == 2
    assert [path.name for path in settings.last_checkpoint.parent.iterdir()] == ["last.ckpt"]

    settings.resume = "last"
    assert train(settings).global_step == 5


def test_text_encoder_learns_along_where_that_is_wanted(tmp_path: Path) -> None:
    prefix = "cond_stage_model."
    for wanted in (False, True):
        start = make_model(tiny_settings(tmp_path, train_text=wanted)).state_dict()
        output = str(tmp_path / str(wanted))
        trainer = train(
            tiny_settings(tmp_path, train_text=wanted, output=output, max_steps=2, learning_rate=1e-2)
        )
        end = trainer.lightning_module.state_dict()
        text_keys = [key for key in end if key.startswith(prefix)]
        assert any(not torch.equal(end[key], start[key]) for key in text_keys) == wanted
    with pytest.raises(ValueError, match="no text encoder"):
        make_model(tiny_settings(tmp_path, train_text=True, model="models/tiny/autoencoder_tiny.yaml"))


@pytest.mark.parametrize("locked", [True, False])
def test_gradients_do_not_depend_on_checkpointing(
    tmp_path: Path, fill_by_recipe: Callable, locked: bool
) -> None:
    settings = tiny_settings(tmp_path, sd_locked=locked)
    model = fill_by_recipe(make_model(settings))
    item = {
        "jpg": torch.rand(2, 64, 64, 3) * 2 - 1,
        "hint": torch.rand(2, 64, 64, 3),
        "txt": ["a", "b"],
        "noise_seed": torch.tensor([1, 2]),
    }
    gradients = {}
    for whose in ("none", "control", "all"):
        set_checkpointing(model, whose)
        model.zero_grad(set_to_none=True)
        model.shared_step(item)[0].backward()
        gradients[whose] = {key: p.grad for key, p in model.named_parameters() if p.grad is not None}
    assert all(key.startswith("control_model.") for key in gradients["none"]) == locked
    for whose in ("control", "all"):
        torch.testing.assert_close(gradients[whose], gradients["none"], rtol=1e-4, atol=1e-6)


def test_channels_last_trains_the_same_and_saves_the_same_shapes(tmp_path: Path) -> None:
    losses, shapes = {}, {}
    for last in (False, True):
        settings = tiny_settings(tmp_path, channels_last=last, max_steps=3, output=str(tmp_path / str(last)))
        weights = train(settings).lightning_module.control_model.input_blocks[0][0].weight
        assert weights.is_contiguous(memory_format=torch.channels_last) == last
        losses[last] = metrics(settings, "train/loss")
        state = torch.load(settings.last_checkpoint, weights_only=True)["state_dict"]
        shapes[last] = {name: tensor.shape for name, tensor in state.items()}
    np.testing.assert_allclose(losses[True], losses[False], rtol=1e-4)
    assert shapes[True] == shapes[False]


def test_reduced_precision_trains_nearly_the_same(tmp_path: Path) -> None:
    losses = {}
    for precision in ("32-true", "bf16-mixed"):
        settings = tiny_settings(tmp_path, precision=precision, max_steps=3, output=str(tmp_path / precision))
        trainer = train(settings)
        assert all(parameter.dtype == torch.float32 for parameter in trainer.lightning_module.parameters())
        losses[precision] = metrics(settings, "train/loss")
    assert losses["bf16-mixed"] != losses["32-true"]
    np.testing.assert_allclose(losses["bf16-mixed"], losses["32-true"], rtol=0.03)


@pytest.mark.parametrize("parameterization", ["eps", "x0", "v"])
def test_min_snr_weights_are_the_same_for_every_parameterization(
    tmp_path: Path, parameterization: str
) -> None:
    """The weighted loss is min(SNR, gamma) times the error of x_0, whatever the network says."""
    node = control_model()
    node["params"] |= {"parameterization": parameterization, "min_snr_gamma": 5.0}
    model = create_model(write_model(tmp_path / "model.yaml", node))
    x, noise, guess = torch.randn(3, 4, 8, 8), torch.randn(3, 4, 8, 8), torch.randn(3, 4, 8, 8)
    t = torch.tensor([20, 400, 900])
    model.apply_model = lambda *_: guess
    loss, log = model.p_losses(x, None, t, noise)

    signal = model.alphas_cumprod[t].double()
    start = model.predict_start(model.q_sample(x, t, noise), t, guess)
    errors = (start - x).square().mean(dim=(1, 2, 3))
    expected = ((signal / (1 - signal)).clamp(max=5.0) * errors).mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-3)
    plain = torch.nn.functional.mse_loss(guess, model.loss_target(x, t, noise))
    assert log["train/loss_simple"].item() == pytest.approx(
        plain.item(), rel=1e-5
    )  # as without weights, to compare


def test_crops_of_cached_latents_and_their_hints_are_of_one_place(tmp_path: Path) -> None:
    settings = tiny_settings(tmp_path, cache_latents=True, empty_prompts=0.5, dropped_prompt="anything")
    data = TrainingData(settings, make_model(settings))
    data.trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    data.setup("fit")
    whole, places = data.train_set, set()
    cropped = copy.copy(whole)
    cropped.crop = 4
    for index in range(len(whole)):
        item, part = whole[index], cropped[index]
        assert part["moments"].shape == (8, 4, 4) and part["hint"].shape == (32, 32, 3)
        (place,) = (
            (top, left)
            for top in range(5)
            for left in range(5)
            if torch.equal(item["moments"][:, top : top + 4, left : left + 4], part["moments"])
        )
        top, left = (8 * start for start in place)
        assert np.array_equal(item["hint"][top : top + 32, left : left + 32], part["hint"])
        places.add(place)
    assert len(places) > 3
    assert {whole[index]["txt"] for index in range(len(whole))} > {"anything"}
    with pytest.raises(ValueError, match="needs cache_latents"):
        tiny_settings(tmp_path, latent_crop=4)
