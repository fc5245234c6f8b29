"""LoRA files under all their names: merged at load, each gives W + weight * alpha / rank * up @ down."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from weight_samples import CLIP, OPEN_CLIP, UNET, State, cast, lora_factors, save

from cldm.model import load_model
from ldm.weights import WeightsError

# A weight of the original's, and the module's name in diffusers and transformers.
MODULES = {
    f"{UNET}input_blocks.1.1.transformer_blocks.0.attn1.to_q": (
        "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    ),
    f"{UNET}input_blocks.1.1.transformer_blocks.0.attn2.to_out.0": (
        "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_out.0"
    ),
    f"{UNET}middle_block.1.proj_in": "unet.mid_block.attentions.0.proj_in",
    f"{UNET}output_blocks.3.1.transformer_blocks.0.ff.net.0.proj": (
        "unet.up_blocks.1.attentions.1.transformer_blocks.0.ff.net.0.proj"
    ),
    f"{CLIP}encoder.layers.1.self_attn.v_proj": "text_encoder.text_model.encoder.layers.1.self_attn.v_proj",
    f"{CLIP}encoder.layers.0.mlp.fc2": "text_encoder.text_model.encoder.layers.0.mlp.fc2",
}
CONVOLUTIONS = {
    f"{UNET}input_blocks.1.0.in_layers.2": "unet.down_blocks.0.resnets.0.conv1",
    f"{UNET}input_blocks.2.0.op": "unet.down_blocks.0.downsamplers.0.conv",
    f"{UNET}output_blocks.1.2.conv": "unet.up_blocks.0.upsamplers.0.conv",
    f"{UNET}middle_block.2.emb_layers.1": "unet.mid_block.resnets.1.time_emb_proj",
}


def kohya(name: str) -> str:
    flat = name.replace(".", "_")
    return flat.replace("unet_", "lora_unet_", 1) if flat.startswith("unet_") else "lora_te_" + flat[13:]


def product(down: Tensor, up: Tensor, like: Tensor) -> Tensor:
    return (up.flatten(1) @ down.flatten(1)).reshape(like.shape)


def expected_with(state: State, modules: dict[str, str], scale: float) -> State:
    """The weights after merging the factors of :func:`lora_factors`, by hand."""
    result = dict(state)
    for key in (f"{module}.weight" for module in modules):
        down, up = lora_factors(state[key], seed=len(key))
        result[key] = state[key] + scale * product(down, up, state[key])
    return result


def lora_file(state: State, modules: dict[str, str], form: str) -> State:
    """The file, with alpha 1 at rank 2 where the form has an alpha."""
    file: State = {}
    for module, name in modules.items():
        down, up = lora_factors(state[f"{module}.weight"], seed=len(f"{module}.weight"))
        old = re.sub(r"\.(attn\d)\.(to_\w+?)(\.0)?$", r".\1.processor.\2", name)
        down_name, up_name = {
            "kohya": (f"{kohya(name)}.lora_down.weight", f"{kohya(name)}.lora_up.weight"),
            "peft": (f"{name}.lora_A.weight", f"{name}.lora_B.weight"),
            "peft adapter": (f"{name}.lora_A.default.weight", f"{name}.lora_B.default.weight"),
            "old diffusers": (f"{old}_lora.down.weight", f"{old}_lora.up.weight"),
            "diffusers": (f"{name}.lora.down.weight", f"{name}.lora.up.weight"),
            "old text": (f"{name}.lora_linear_layer.down.weight", f"{name}.lora_linear_layer.up.weight"),
        }[form]
        file |= {down_name: down, up_name: up}
        if form == "kohya":
            file[f"{kohya(name)}.alpha"] = torch.tensor(1.0)
    return file


def assert_close(model: torch.nn.Module, expected: State) -> None:
    for key, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, expected[key], rtol=0, atol=1e-6, msg=lambda m, k=key: f"{k}: {m}")


@pytest.mark.parametrize("form", ["kohya", "peft", "peft adapter", "old diffusers", "diffusers", "old text"])
def test_every_form_is_merged(form: str, config: Path, state: State, tmp_path: Path):
    """kohya's alpha of 1 at rank 2 halves it; the others have none."""
    path = save(lora_file(state, MODULES, form), tmp_path / "lora.safetensors")
    model = load_model(config, save(state, tmp_path / "a.safetensors"), loras=[(path, 0.8)])
    assert_close(model, expected_with(state, MODULES, 0.8 * (0.5 if form == "kohya" else 1.0)))


def test_a_lora_changes_what_the_module_computes(config: Path, state: State, tmp_path: Path):
    """The output of a linear layer, against x W^T + weight * (x down^T) up^T, computed as training does."""
    (module, _name), *_ = MODULES.items()
    down, up = lora_factors(state[f"{module}.weight"], seed=len(f"{module}.weight"))
    path = save(lora_file(state, MODULES, "peft"), tmp_path / "lora.safetensors")
    model = load_model(config, save(state, tmp_path / "a.safetensors"), loras=[(path, 0.7)])
    x = torch.randn(3, 32)
    with torch.no_grad():
        found = model.get_submodule(module)(x)
    torch.testing.assert_close(found, x @ state[f"{module}.weight"].T + 0.7 * (x @ down.T) @ up.T)


def test_convolutions_and_several_files(config: Path, state: State, tmp_path: Path):
    """LoCon's 3x3 kernels; and two files, whose changes add up."""
    paths = [
        save(lora_file(state, modules, "kohya"), tmp_path / f"{i}.safetensors")
        for i, modules in enumerate((CONVOLUTIONS, MODULES))
    ]
    base = save(state, tmp_path / "a.safetensors")
    model = load_model(config, base, loras=[(paths[0], 1.0), (paths[1], -0.5)])
    assert_close(model, expected_with(expected_with(state, CONVOLUTIONS, 0.5), MODULES, -0.25))


def test_a_convolution_in_three_factors(config: Path, state: State, tmp_path: Path):
    """LoCon with ``lora_mid``: up (1x1) after mid (3x3) after down (1x1)."""
    module, name = next(iter(CONVOLUTIONS.items()))
    weight = state[f"{module}.weight"]
    shapes = ((weight.shape[0], 2, 1, 1), (2, 2, 3, 3), (2, weight.shape[1], 1, 1))
    up, mid, down = (torch.randn(shape) / 5 for shape in shapes)
    names = {f"{kohya(name)}.lora_{role}.weight": t for role, t in (("up", up), ("mid", mid), ("down", down))}
    path = save(names, tmp_path / "lora.safetensors")
    model = load_model(config, save(state, tmp_path / "a.safetensors"), loras=[(path, 1.0)])
    x = torch.randn(1, 32, 5, 5)
    convolve = torch.nn.functional.conv2d
    expected = convolve(x, weight, padding=1) + convolve(convolve(convolve(x, down), mid, padding=1), up)
    torch.testing.assert_close(convolve(x, model.state_dict()[f"{module}.weight"], padding=1), expected)


@pytest.mark.parametrize("place", ["adapter_config.json", "metadata"])
def test_pefts_alpha_lies_beside_the_matrices(place: str, config: Path, state: State, tmp_path: Path):
    modules = {key: name for key, name in MODULES.items() if name.startswith("unet.")}
    file = lora_file(state, modules, "peft")
    if place == "metadata":
        path = tmp_path / "lora.safetensors"
        save_file(file, path, {"lora_adapter_metadata": json.dumps({"unet.lora_alpha": 6, "unet.r": 2})})
    else:
        path = tmp_path / "adapter"
        renamed = {f"base_model.model.{key.removeprefix('unet.')}": tensor for key, tensor in file.items()}
        save(renamed, path / "adapter_model.safetensors")
        (path / "adapter_config.json").write_text(json.dumps({"lora_alpha": 6, "r": 2}))
    model = load_model(config, save(state, tmp_path / "a.safetensors"), loras=[(path, 1.0)])
    assert_close(model, expected_with(state, modules, 3.0))


def test_a_joined_matrix_takes_its_third(config_v21: Path, state_v21: State, tmp_path: Path):
    """SD 2.x joins queries, keys and values; LoRA files name them one by one, as transformers does."""
    whole = f"{OPEN_CLIP}transformer.resblocks.1.attn.in_proj_weight"
    weight = state_v21[whole]
    down, up = lora_factors(weight[:32], seed=1)
    name = "lora_te_text_model_encoder_layers_1_self_attn_k_proj"
    path = save(
        {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}, tmp_path / "lora.safetensors"
    )
    model = load_model(config_v21, save(state_v21, tmp_path / "a.safetensors"), loras=[(path, 1.0)])
    found = model.state_dict()[whole]
    torch.testing.assert_close(found[32:64], weight[32:64] + up @ down)
    assert torch.equal(found[:32], weight[:32])
    assert torch.equal(found[64:], weight[64:])


def test_a_lora_is_added_before_the_weights_are_rounded(config: Path, state: State, tmp_path: Path):
    """The sum of bfloat16 numbers in float32, not in bfloat16."""
    half = cast(state, torch.bfloat16)
    path = save(cast(lora_file(state, MODULES, "peft"), torch.float16), tmp_path / "lora.safetensors")
    model = load_model(config, save(half, tmp_path / "a.safetensors"), loras=[(path, 1.0)])
    for key in (f"{module}.weight" for module in MODULES):
        down, up = (factor.half().float() for factor in lora_factors(state[key], seed=len(key)))
        torch.testing.assert_close(model.state_dict()[key], half[key].float() + product(down, up, state[key]))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("wide", "this LoRA is for another model: .*attn2.to_k.weight is .* here, and its change is"),
        ("homeless", r"it changes 1 modules that this one does not have \(lora_unet_nowhere\)"),
        (
            "half",
            r"it changes 1 modules that this one does not have \(lora_unet_mid_block_attentions_0_proj_in\)",
        ),
        ("strange", r"this LoRA holds 1 keys of another kind \(lora_unet_x.strength\)"),
    ],
)
def test_a_lora_that_does_not_fit(change: str, says: str, config: Path, state: State, tmp_path: Path):
    attention = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
    middle = "lora_unet_mid_block_attentions_0_proj_in"
    fine = {
        f"{middle}.lora_down.weight": torch.ones(2, 64, 1, 1),
        f"{middle}.lora_up.weight": torch.ones(64, 2, 1, 1),
    }
    file = {
        "wide": {
            f"{attention}.lora_down.weight": torch.ones(2, 1024),
            f"{attention}.lora_up.weight": torch.ones(32, 2),
        },
        "homeless": {"lora_unet_nowhere.lora_down.weight": torch.ones(2, 2), **fine},
        "half": {f"{middle}.lora_down.weight": torch.ones(2, 64, 1, 1)},
        "strange": {"lora_unet_x.strength": torch.ones(2), **fine},
    }[change]
    path = save(file, tmp_path / "lora.safetensors")
    with pytest.raises(WeightsError, match=says):
        load_model(config, save(state, tmp_path / "a.safetensors"), loras=[(path, 1.0)])
