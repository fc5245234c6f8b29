"""The original's tools, tutorials and `process()`, in its own words but for the paths and the device."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import einops
import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from golden_data import load_golden, recipe_state, relative_error, tiny_config
from omegaconf import OmegaConf
from pytorch_lightning import seed_everything
from tiny_training import control_model, write_model
from torch.utils.data import DataLoader

from annotator.util import HWC3, resize_image
from cldm.ddim_hacked import DDIMSampler
from cldm.logger import ImageLogger
from cldm.model import create_model, get_state_dict, load_state_dict
from controlnet.training.make_fill50k import make_fill50k
from tutorial_dataset import MyDataset


@pytest.fixture
def config(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A small model of Stable Diffusion's version 1.5 or 2.1, as its YAML file."""
    version = getattr(request, "param", "unet_v15")
    OmegaConf.save({"model": tiny_config(load_golden(version)[1])}, tmp_path / "cldm.yaml")
    return str(tmp_path / "cldm.yaml")


def weights_of(config: str, salt: int = 0) -> dict[str, torch.Tensor]:
    """The model's state dict; no layer is 0."""
    model = create_model(config)
    return {**model.state_dict(), **recipe_state(dict(model.named_parameters()), salt)}


def without_control(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key: tensor for key, tensor in state.items() if not key.startswith("control_")}


def node_name(name: str, parent: str) -> tuple[bool, str]:
    if len(name) <= len(parent) or name[: len(parent)] != parent:
        return False, ""
    return True, name[len(parent) :]


@pytest.mark.parametrize("config", ["unet_v15", "unet_v21"], indirect=True)
def test_tool_add_control(config: str, tmp_path: Path) -> None:
    """tool_add_control.py and tool_add_control_sd21.py."""
    base = without_control(weights_of(config))
    torch.save({"state_dict": base}, tmp_path / "sd.ckpt")
    model = create_model(config_path=config)
    pretrained_weights = torch.load(tmp_path / "sd.ckpt")
    if "state_dict" in pretrained_weights:
        pretrained_weights = pretrained_weights["state_dict"]
    scratch_dict, target_dict, new = model.state_dict(), {}, []
    for k in scratch_dict:
        is_control, name = node_name(k, "control_")
        copy_k = "model.diffusion_" + name if is_control else k
        if copy_k in pretrained_weights:
            target_dict[k] = pretrained_weights[copy_k].clone()
        else:
            target_dict[k] = scratch_dict[k].clone()
            new.append(k)
    model.load_state_dict(target_dict, strict=True)
    torch.save(model.state_dict(), tmp_path / "ini.ckpt")
    added = {key.split(".")[1] for key in new}
    assert added == {"zero_convs", "input_hint_block", "middle_block_out"}

    x, t = torch.randn(1, 4, 8, 8), torch.tensor([500])
    text, hint = model.get_learned_conditioning(["a house"]), torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        steered = model.apply_model(x, t, {"c_crossattn": [text], "c_concat": [hint]})
        plain = model.model.diffusion_model(x, t, context=text)
    assert torch.equal(steered, plain), "the zero layers leave Stable Diffusion as it was"


def test_tool_transfer_control(config: str, tmp_path: Path) -> None:
    """tool_transfer_control.py: the control's offsets from its base, laid over another base."""
    trained, other = weights_of(config), without_control(weights_of(config, salt=1))
    files = {"sd15": without_control(trained), "sd15_with_control": trained, "any3": other}
    for name, state in files.items():
        torch.save(state, tmp_path / f"{name}.pth")
    sd15, with_control, input_state = (
        get_state_dict(load_state_dict(str(tmp_path / f"{name}.pth"), location="cpu")) for name in files
    )
    final_state_dict = {}
    for key in with_control:
        is_first_stage, _ = node_name(key, "first_stage_model")
        is_cond_stage, _ = node_name(key, "cond_stage_model")
        if is_first_stage or is_cond_stage:
            final_state_dict[key] = input_state[key]
            continue
        p, is_control, name = with_control[key], *node_name(key, "control_")
        sd15_key = "model.diffusion_" + name if is_control else key
        final_state_dict[key] = p - sd15[sd15_key] + input_state[sd15_key] if sd15_key in input_state else p
    torch.save(final_state_dict, tmp_path / "out.pth")
    model = create_model(config)
    model.load_state_dict(load_state_dict(str(tmp_path / "out.pth"), location="cpu"))
    state = model.state_dict()
    for key, tensor in other.items():
        torch.testing.assert_close(state[key], tensor, rtol=1e-3, atol=1e-5)
    key = "control_model.zero_convs.0.0.weight"
    assert torch.equal(state[key], trained[key])


def test_tutorial_dataset_and_train(tmp_path: Path) -> None:
    """tutorial_dataset_test.py and tutorial_train.py."""
    make_fill50k(tmp_path / "fill50k", 8, size=64, workers=1, progress=False)
    dataset = MyDataset(str(tmp_path / "fill50k"))
    assert len(dataset) == 8
    item = dataset[3]
    assert item["jpg"].shape == item["hint"].shape == (64, 64, 3) and isinstance(item["txt"], str)
    assert item["jpg"].min() >= -1 and item["hint"].min() >= 0 and item["hint"].max() <= 1

    # Configs
    resume_path = str(tmp_path / "ini.ckpt")
    batch_size, logger_freq, learning_rate, sd_locked, only_mid_control = 4, 300, 1e-5, False, False
    torch.save(weights_of(write_model(tmp_path / "cldm.yaml", control_model())), resume_path)

    # First use cpu to load models. Pytorch Lightning will automatically move it to GPUs.
    model = create_model(str(tmp_path / "cldm.yaml")).cpu()
    model.load_state_dict(load_state_dict(resume_path, location="cpu"))
    model.learning_rate = learning_rate
    model.sd_locked = sd_locked
    model.only_mid_control = only_mid_control
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}

    # Misc
    dataloader = DataLoader(dataset, num_workers=0, batch_size=batch_size, shuffle=True)
    logger = ImageLogger(batch_frequency=logger_freq, log_images_kwargs={"ddim_steps": 2})
    where: dict[str, Any] = {"accelerator": "cpu", "default_root_dir": tmp_path, "max_epochs": 1}
    trainer = pl.Trainer(precision=32, callbacks=[logger], enable_progress_bar=False, **where)

    # Train!
    trainer.fit(model, dataloader)
    changed = {key for key, tensor in model.state_dict().items() if not torch.equal(before[key], tensor)}
    assert changed
    assert all(key.startswith(("control_model.", "model.diffusion_model.out")) for key in changed)
    pictures = {path.name for path in tmp_path.rglob("image_log/train/*.png")}
    assert "samples_cfg_scale_9.00_gs-000000_e-000000_b-000000.png" in pictures


def test_process(config: str, tmp_path: Path) -> None:
    """``process`` of gradio_*2image.py: a hint to pictures, twice the same by its seed, guess mode too."""
    torch.save(weights_of(config), tmp_path / "control.pth")
    model = create_model(config).cpu()
    model.load_state_dict(load_state_dict(str(tmp_path / "control.pth"), location="cpu"))
    model = model.eval()
    ddim_sampler = DDIMSampler(model)
    input_image = np.random.default_rng(0).integers(0, 256, (70, 80, 3), dtype=np.uint8)

    def process(guess_mode: bool, seed: int, num_samples: int = 2, strength: float = 1.0) -> np.ndarray:
        with torch.no_grad():
            detected_map = HWC3(resize_image(HWC3(input_image), 64))
            H, W, _ = detected_map.shape
            control = torch.from_numpy(detected_map.copy()).float() / 255.0
            control = torch.stack([control for _ in range(num_samples)], dim=0)
            control = einops.rearrange(control, "b h w c -> b c h w").clone()
            if seed == -1:
                seed = random.randint(0, 65535)
            seed_everything(seed)
            model.low_vram_shift(is_diffusing=False)
            cond = {
                "c_concat": [control],
                "c_crossattn": [model.get_learned_conditioning(["a house, best quality"] * num_samples)],
            }
            un_cond = {
                "c_concat": None if guess_mode else [control],
                "c_crossattn": [model.get_learned_conditioning(["lowres"] * num_samples)],
            }
            shape = (4, H // 8, W // 8)
            model.low_vram_shift(is_diffusing=True)
            guessed = [strength * (0.825 ** float(12 - i)) for i in range(13)]
            model.control_scales = guessed if guess_mode else [strength] * 13
            samples, _intermediates = ddim_sampler.sample(
                3,
                num_samples,
                shape,
                cond,
                verbose=False,
                eta=0.0,
                unconditional_guidance_scale=9.0,
                unconditional_conditioning=un_cond,
            )
            model.low_vram_shift(is_diffusing=False)
            x_samples = model.decode_first_stage(samples)
            x_samples = einops.rearrange(x_samples, "b c h w -> b h w c") * 127.5 + 127.5
            return x_samples.cpu().numpy().clip(0, 255).astype(np.uint8)

    first = process(guess_mode=False, seed=12345)
    assert first.shape == (2, 64, 64, 3) and first.std() > 1
    assert np.array_equal(first, process(guess_mode=False, seed=12345))
    guessed = process(guess_mode=True, seed=12345)
    assert relative_error(torch.tensor(guessed), torch.tensor(first)) > 1e-3
