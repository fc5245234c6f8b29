"""Names, attributes and switches of the original that people's code uses."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from golden_data import relative_error
from torch import nn

from annotator.util import nms
from cldm import hack
from ldm.models.diffusion.ddpm import disabled_train
from ldm.models.diffusion.sampling_util import norm_thresholding, spatial_norm_thresholding
from ldm.modules import attention
from ldm.modules.diffusionmodules import openaimodel
from ldm.modules.diffusionmodules.blocks import AttentionBlock
from ldm.modules.distributions.distributions import normal_kl
from ldm.modules.encoders.modules import FrozenCLIPEmbedder
from ldm.util import allow_targets, instantiate_from_config

ROOT = Path(__file__).resolve().parents[2]
UNET = {
    "image_size": 8,
    "in_channels": 4,
    "model_channels": 32,
    "out_channels": 4,
    "num_res_blocks": 1,
    "attention_resolutions": [1, 2],
    "channel_mult": [1, 2],
    "num_heads": 4,
    "use_spatial_transformer": True,
    "context_dim": 8,
}


def run(code: str) -> str:
    """The last line that a fresh process prints."""
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()[-1]


# --- share.py, config.py, cldm/hack.py ---


def test_libraries_may_be_imported_after_share() -> None:
    code = "from share import *\nimport torchvision, open_clip, pytorch_lightning\nprint(config.save_memory)"
    assert run(code) == "False"


def test_share_saves_memory_where_the_configuration_says_so() -> None:
    code = "import config\nconfig.save_memory = True\nfrom share import *\n"
    code += "from ldm.modules.attention import CrossAttention\nprint(CrossAttention(8).slice_size)"
    assert run(code) == "1"


def test_sliced_attention_holds_for_all_models(monkeypatch: pytest.MonkeyPatch) -> None:
    for cls in (attention.CrossAttention, AttentionBlock):
        monkeypatch.setattr(cls, "slice_size", None)
    layer, x = attention.CrossAttention(32, heads=4, dim_head=8), torch.randn(2, 10, 32)
    expected = layer(x)
    seen, attend = [], attention.attend
    monkeypatch.setattr(attention, "attend", lambda *args: seen.append(args[3]) or attend(*args))
    hack.enable_sliced_attention()
    torch.testing.assert_close(layer(x), expected)
    attention.set_attention_slice(layer, 3)
    torch.testing.assert_close(layer(x), expected)
    attention.set_attention_slice(layer, None)
    layer(x)
    assert seen == [1, 3, 1], "what holds for all is the default again"


def test_long_prompts_and_skipped_layers_hold_for_all_models(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("long_prompts", "clip_skip"):
        monkeypatch.setattr(FrozenCLIPEmbedder, name, getattr(FrozenCLIPEmbedder, name))
    text = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
    torch.manual_seed(0)
    encoder, fixed = FrozenCLIPEmbedder(text_config=text), FrozenCLIPEmbedder(text_config=text, clip_skip=1)
    wanted = FrozenCLIPEmbedder(text_config=text, clip_skip=2, long_prompts="chunk")
    wanted.load_state_dict(encoder.state_dict())
    plain = encoder("a house")
    hack.hack_everything(clip_skip=2)
    assert plain.shape == (1, 77, 32)
    assert torch.equal(encoder("a house"), wanted("a house"))
    assert FrozenCLIPEmbedder(text_config=text).clip_skip == 2 and fixed.clip_skip == 1
    hack.hack_everything()
    assert torch.equal(encoder("a house")[:, :77], plain)
    with pytest.raises(ValueError, match="clip_skip=-1"):
        hack.hack_everything(clip_skip=-1)


def test_transformers_can_be_quiet() -> None:
    from transformers import logging

    before = logging.get_verbosity()
    hack.disable_verbosity()
    assert logging.get_verbosity() == logging.ERROR
    logging.set_verbosity(before)


# --- networks ---


@pytest.mark.parametrize("kind", ["unet", "control"])
def test_networks_keep_the_values_of_their_constructor(kind: str, build: Callable) -> None:
    model = build()
    network = model.control_model if kind == "control" else model.model.diffusion_model
    for name, value in {
        "image_size": 32,
        "in_channels": 4,
        "model_channels": 32,
        "num_res_blocks": [1, 1],
        "attention_resolutions": (2, 1),
        "channel_mult": (1, 2),
        "num_heads": 4,
        "num_head_channels": -1,
        "num_heads_upsample": 4,
        "conv_resample": True,
        "dropout": 0,
        "use_checkpoint": True,
        "dtype": torch.float32,
    }.items():
        assert getattr(network, name) == value, name
    hint = {"hint": torch.rand(1, 3, 64, 64)} if kind == "control" else {}
    inputs = {"x": torch.randn(1, 4, 8, 8), "timesteps": torch.tensor([3]), "context": torch.randn(1, 7, 32)}
    network.convert_to_fp16()
    assert network.dtype == torch.float16
    network.convert_to_fp32()
    network.dtype = torch.float64
    assert network.dtype == torch.float64
    network.double()
    output = network(**inputs, **hint)
    assert (output[0] if kind == "control" else output).isfinite().all()
    network.float()
    network.dtype = torch.float32


def test_more_positional_arguments_than_are_needed_are_refused() -> None:
    with pytest.raises(TypeError, match="positional"):
        openaimodel.UNetModel(8, 4, 32, 4, 1, [1], 0.0, num_heads=4)
    network = openaimodel.UNetModel(*(UNET[name] for name in list(UNET)[:6]), num_heads=4)
    assert isinstance(network.middle_block[1], AttentionBlock)


def test_attention_by_its_other_names() -> None:
    assert not attention.XFORMERS_IS_AVAILBLE
    assert isinstance(attention.MemoryEfficientCrossAttention(8), attention.CrossAttention)
    norm = attention.Normalize(64)
    assert (norm.num_groups, norm.eps) == (32, 1e-6)
    assert attention.CrossAttention(8, heads=2, dim_head=16).scale == 0.25
    for name in ("normalization", "checkpoint", "avg_pool_nd", "SpatialTransformer", "exists", "conv_nd"):
        assert callable(getattr(openaimodel, name))


def test_an_encoder_s_device_and_parts(build: Callable, batch: dict[str, Any]) -> None:
    encoder = build().cond_stage_model
    encoder.device = "cpu"
    assert encoder.device == torch.device("cpu")
    tokens = encoder.tokenizer(
        batch["txt"],
        truncation=True,
        max_length=encoder.max_length,
        return_overflowing_tokens=False,
        padding="max_length",
        return_tensors="pt",
    )["input_ids"].to(encoder.device)
    outputs = encoder.transformer(input_ids=tokens, output_hidden_states=encoder.layer == "hidden")
    torch.testing.assert_close(outputs.last_hidden_state, encoder.encode(batch["txt"]))


# --- functions ---


def test_divergence_of_normal_distributions() -> None:
    mean1, logvar1, mean2, logvar2 = torch.randn(4, 3, 5)
    first = torch.distributions.Normal(mean1, (0.5 * logvar1).exp())
    second = torch.distributions.Normal(mean2, (0.5 * logvar2).exp())
    expected = torch.distributions.kl_divergence(first, second)
    torch.testing.assert_close(normal_kl(mean1, logvar1, mean2, logvar2), expected, rtol=1e-4, atol=1e-5)
    standard = torch.distributions.kl_divergence(first, torch.distributions.Normal(0.0, 1.0))
    torch.testing.assert_close(normal_kl(mean1, logvar1, 0.0, 0.0), standard, rtol=1e-4, atol=1e-5)


def test_bounds_for_what_a_sampler_predicts() -> None:
    x = torch.randn(3, 4, 8, 8) * torch.tensor([0.1, 1.0, 10.0]).view(-1, 1, 1, 1)
    bounded = norm_thresholding(x, 1.5)
    assert torch.equal(bounded[:2], x[:2])
    torch.testing.assert_close(bounded[2].pow(2).mean().sqrt(), torch.tensor(1.5))
    torch.testing.assert_close(bounded[2] / bounded[2].norm(), x[2] / x[2].norm())
    places = spatial_norm_thresholding(x, 1.5).pow(2).mean(1).sqrt()
    assert places.max() <= 1.5 + 1e-5 and places[2].min() < 1.6


def test_a_network_that_stays_as_it_is() -> None:
    network = nn.Dropout().eval()
    network.train = disabled_train.__get__(network)
    assert network.train() is network and not network.training


# --- targets of YAML files ---


def test_more_targets_can_be_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ldm.util.ALLOWED_TARGETS", ["ldm."])
    node = {"target": "golden_data.Path", "params": {}}
    with pytest.raises(ValueError, match=r"allow_targets.*CONTROLNET_ALLOW_TARGETS"):
        instantiate_from_config(node)
    allow_targets("original_style")
    own = {"target": "original_style.PoppingUNet", "params": UNET}
    assert type(instantiate_from_config(own)).__name__ == "PoppingUNet"
    with pytest.raises(ValueError, match="takes no parameter 'heads'"):
        instantiate_from_config({**own, "params": {**UNET, "heads": 3}})
    with pytest.raises(ValueError, match="not allowed"):
        instantiate_from_config({"target": "original_style_2.X"})
    with pytest.raises(ValueError, match="it is defined in 'cldm"):
        instantiate_from_config({"target": "original_style.ControlNet"})
    with pytest.raises(ValueError, match="expected the name of a package"):
        allow_targets(".")


def test_targets_can_be_allowed_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ldm.util.ALLOWED_TARGETS", ["ldm."])
    monkeypatch.setenv("CONTROLNET_ALLOW_TARGETS", "models, original_style.")
    unet = instantiate_from_config({"target": "original_style.PoppingUNet", "params": UNET})
    x, t, context = torch.randn(1, 4, 8, 8), torch.tensor([5]), torch.randn(1, 3, 8)
    for parameter in unet.parameters():
        nn.init.normal_(parameter, std=0.1)
    with torch.no_grad():
        ours = openaimodel.UNetModel(**UNET)
        ours.load_state_dict(unet.state_dict())
        assert relative_error(unet(x, t, context), ours(x, t, context)) < 1e-5


# --- detectors ---


@pytest.mark.parametrize("name", ["canny", "hed", "midas", "openpose", "uniformer"])
def test_detectors_as_functions(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first version of the original had functions instead of classes, and so has the Cog repository."""
    classes = {"hed": "HEDdetector"}
    cls = classes.get(name, f"{name.capitalize()}Detector")
    package = importlib.import_module(f"annotator.{name}")
    seen = []
    monkeypatch.setattr(getattr(package, cls), "__call__", lambda self, *args: seen.append((self, args)))
    arguments = {"canny": (100, 200), "midas": (2.0, 0.4), "openpose": (True,)}.get(name, ())
    for _ in range(2):
        getattr(package, f"apply_{name}")("picture", *arguments)
    (first, given), (second, _) = seen
    assert given == ("picture", *arguments)
    assert first is second or name == "canny", "weights are read once"


def test_edges_are_thinned_by_the_name_of_version_1_1() -> None:
    assert importlib.import_module("annotator.hed").nms is nms
