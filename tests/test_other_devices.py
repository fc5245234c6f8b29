"""Whole models on another device than the CPU: torch's ``meta``, which computes shapes alone.

A tensor that anything makes on the wrong device is an error there, as it would be on a GPU. Only the noise
schedule is read from the CPU, as samplers read it from a GPU.
"""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from golden_data import load_golden, tiny_config

from annotator.hed import ControlNetHED_Apache2
from annotator.mlsd.network import MobileV2_MLSD_Large
from annotator.openpose.model import bodypose_model, handpose_model
from cldm.cldm import ControlLDM
from controlnet.conditions import all_conditions, find_condition
from controlnet.generation.from_source import feathered
from controlnet.generation.memory import MemorySaver
from controlnet.generation.passes import Origin
from controlnet.generation.samplers import SAMPLERS
from controlnet.generation.sampling import Control, control_scales, guided_conditions, sample_latents
from controlnet.generation.words import regional_prompts
from ldm.models.diffusion import ddim
from ldm.modules import strips
from ldm.util import instantiate_from_config

META = torch.device("meta")
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@pytest.fixture(params=DTYPES, ids=str)
def model(request, monkeypatch) -> ControlLDM:
    """The golden sampling model on meta, its schedule to be read from the CPU as from any device."""
    _, case = load_golden("sampling")
    there = instantiate_from_config(tiny_config(case)).eval()
    there.control_scales = [1.0] * 13
    schedule = copy.deepcopy(there.alphas_cumprod)
    to_cpu = torch.Tensor.cpu

    def cpu(tensor: torch.Tensor, *arguments: object) -> torch.Tensor:
        return schedule if tensor.is_meta and tensor.shape == schedule.shape else to_cpu(tensor, *arguments)

    monkeypatch.setattr(torch.Tensor, "cpu", cpu)
    for parameter in there.parameters():
        parameter.data = parameter.data.to(request.param)
    return there.to(META)


def conditions(model: ControlLDM, guess_mode: bool = False) -> tuple[dict, dict]:
    scales = control_scales(1.0, 13, guess_mode)
    picture = np.zeros((64, 64, 3), np.uint8)
    share = float(not guess_mode)
    return guided_conditions(model, picture, ["a", "b"], ["", ""], scales, unconditional=share)


@pytest.mark.parametrize("guess_mode", [False, True])
def test_text_hint_sampling_and_decoding(model, guess_mode, monkeypatch):
    with torch.inference_mode():
        cond, uncond = conditions(model, guess_mode)
        assert cond["c_crossattn"][0].device == cond["c_concat"][0].device == META
        latents = sample_latents(model, cond, uncond, steps=2, scale=9.0, eta=1.0, generator=None)
        assert latents.device == META and latents.dtype == torch.float32 and latents.shape == (2, 4, 8, 8)
        pictures = model.decode_first_stage(latents)
        monkeypatch.setattr(strips, "LARGE_MAP", 0)
        in_strips = model.decode_first_stage(latents)
    assert pictures.device == in_strips.device == META
    assert pictures.shape == in_strips.shape == (2, 3, 64, 64)


@pytest.mark.parametrize("name", SAMPLERS)
def test_several_controls_in_parts_of_run_and_picture(model, name):
    scales, picture = control_scales(1.0, 13), np.zeros((64, 64, 3), np.uint8)
    region = np.full((32, 32), 100, np.uint8)
    further = [
        Control(picture, scales, True, copy.deepcopy(model.control_model), (0.5, 1.0), region),
        Control(picture, scales, region=region),
    ]
    with torch.inference_mode():
        cond, uncond = guided_conditions(
            model, picture, ["a", "b"], ["", ""], scales, window=(0.0, 0.5), region=region, further=further
        )
        latents = sample_latents(
            model,
            cond,
            uncond,
            steps=4,
            scale=9.0,
            sampler=name,
            generator=None,
            guidance_interval=(0.0, 0.5),
        )
    assert latents.device == META and latents.shape == (2, 4, 8, 8)


def test_prompts_with_weights_and_for_classes(model):
    labels = np.zeros((64, 64), np.uint8)
    with torch.inference_mode():
        local = regional_prompts(model, {"wall": "a (b:1.2)"}, labels, 2, (8, 8), added="c", syntax=True)
        assert local.texts.device == local.shares.device == META
        picture, scales = np.zeros((64, 64, 3), np.uint8), control_scales(1.0, 13)
        cond, uncond = guided_conditions(
            model, picture, ["a (b:1.2) BREAK c"] * 2, [""] * 2, scales, prompt_syntax=True, regional=local
        )
        assert cond["c_crossattn"][0].shape == uncond["c_crossattn"][0].shape == (2, 154, 32)
        latents = sample_latents(model, cond, uncond, steps=2, scale=9.0, generator=None)
    assert latents.device == META and latents.shape == (2, 4, 8, 8)


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_with_a_mask(model, name):
    with torch.inference_mode():
        cond, uncond = conditions(model)
        noise = torch.empty(2, 4, 8, 8, device=META)
        latents, kept = SAMPLERS[name].make(model).sample(
            3, 2, (4, 8, 8), cond, x_T=noise, mask=noise[:, :1], x0=noise, verbose=False,
            unconditional_guidance_scale=5.0, unconditional_conditioning=uncond,
        )  # fmt: skip
    assert latents.device == META and {each.device for each in kept["x_inter"]} == {META}


@pytest.mark.parametrize("name", SAMPLERS)
def test_from_a_source_with_a_mask(model, name, monkeypatch):
    """The encoder, whole and in strips, and every sampler from the middle of its steps."""
    with torch.inference_mode():
        painted, saver = feathered(np.eye(64, dtype=np.uint8) * 255, 2), MemorySaver(model, META, False)
        start = Origin(np.zeros((1, 64, 64, 3), np.uint8), 0.5, painted).start(saver, 2)
        assert start.latents.device == start.keep.device == META and start.latents.dtype == torch.float32
        assert start.latents.shape == (2, 4, 8, 8) and start.keep.shape == (2, 1, 8, 8)
        monkeypatch.setattr(strips, "LARGE_MAP", 0)
        in_strips = saver.encode(torch.zeros(1, 3, 64, 64, device=META))
        assert in_strips.device == META and in_strips.shape == (1, 4, 8, 8)
        cond, uncond = conditions(model)
        latents = sample_latents(
            model, cond, uncond, steps=4, scale=5.0, generator=None, sampler=name, start=start
        )
    assert latents.device == META and latents.shape == (2, 4, 8, 8)


def test_encoding_back_and_ancestral_sampling(model):
    with torch.inference_mode():
        cond, _ = conditions(model)
        latent = model.get_first_stage_encoding(
            model.encode_first_stage(torch.zeros(2, 3, 64, 64, device=META))
        )
        assert latent.device == META and latent.shape == (2, 4, 8, 8)
        image_to_image = ddim.DDIMSampler(model)
        image_to_image.make_schedule(4, verbose=False)
        noisy = model.q_sample(latent, torch.zeros(2, dtype=torch.long, device=META))
        assert image_to_image.decode(noisy, cond, 2, verbose=False).device == META
        assert model.p_sample(noisy, torch.ones(2, dtype=torch.long, device=META), cond).device == META


def test_a_training_step(model):
    model.train()
    batch = {
        "jpg": torch.zeros(2, 64, 64, 3),
        "hint": torch.zeros(2, 64, 64, 3),
        "txt": ["a", "b"],
    }
    loss, log = model.shared_step(batch)
    loss.backward()
    assert loss.device == META and log
    trained = [parameter for parameter in model.control_model.parameters() if parameter.grad is not None]
    assert len(trained) > 50 and {parameter.grad.device for parameter in trained} == {META}


@pytest.mark.parametrize("model", [torch.float16], indirect=True)
def test_the_control_picture_of_every_condition_is_what_models_take(model):
    """Conditions give arrays; what becomes of them lies on the model's device."""
    for name in all_conditions():
        condition = find_condition(name)
        hint = np.zeros((64, 64, 3)[: condition.hint_dimensions], np.uint8)
        control = condition().control(hint)
        assert control.dtype == np.uint8 and control.shape == (64, 64, 3), name
        cond, _ = guided_conditions(model, control, ["a"], [""], control_scales(1.0, 13))
        assert cond["c_concat"][0].device == META and cond["c_concat"][0].shape == (1, 3, 64, 64)


NETWORKS = {
    "hed": (ControlNetHED_Apache2, 3),
    "mlsd": (MobileV2_MLSD_Large, 4),
    "body": (bodypose_model, 3),
    "hand": (handpose_model, 3),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", NETWORKS)
def test_detectors(name, dtype):
    kind, channels = NETWORKS[name]
    with torch.inference_mode():
        found = kind().eval().to(META, dtype)(torch.zeros(1, channels, 64, 64, device=META, dtype=dtype))
    assert {each.device for each in (found if isinstance(found, tuple | list) else [found])} == {META}
