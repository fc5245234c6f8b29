"""Every kind of file that cannot work is refused by name, in one exact sentence."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from golden_data import released_keys
from torch import Tensor
from weight_samples import (
    CLIP,
    CONTEXT,
    CONTROL,
    FIRST,
    QUERY,
    TEXT,
    UNET,
    VAE,
    State,
    cast,
    only,
    renamed,
    save,
    save_empty,
    without,
)

from cldm.model import load_control, load_model
from controlnet.weights.choice import config_for
from ldm.layouts import diffusers
from ldm.weights import WeightsError

NOT_HERE = "models, controls, VAE, LoRA and embeddings are those of Stable Diffusion 1.x and 2.x"
ONE = torch.ones(1)


def keys(*names: str, shape: tuple[int, ...] = (1,)) -> State:
    return {name: torch.ones(shape) for name in names}


# Files whose kind alone decides, with keys that they really have, and what they are called.
FOREIGN: dict[str, tuple[State, str]] = {
    "SDXL": (
        keys("conditioner.embedders.0.transformer.text_model.final_layer_norm.weight", FIRST),
        "Stable Diffusion XL",
    ),
    "SDXL, UNet alone": (
        {CONTEXT.replace(UNET, ""): torch.ones(1, 2048), "input_blocks.0.0.weight": torch.ones(1, 4, 3, 3)},
        "Stable Diffusion XL",
    ),
    "SDXL, UNet of diffusers": (
        {
            "conv_in.weight": torch.ones(1, 4, 3, 3),
            "down_blocks.0.resnets.0.norm1.weight": ONE,
            "add_embedding.linear_1.weight": torch.ones(1, 2),
        },
        "Stable Diffusion XL",
    ),
    "SD 3": (keys("model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight"), "Stable Diffusion 3"),
    "SD 3 of diffusers": (keys("transformer_blocks.0.attn.add_q_proj.weight"), "Stable Diffusion 3"),
    "Flux": (keys("double_blocks.0.img_attn.norm.key_norm.scale"), "Flux"),
    "Flux of diffusers": (keys("single_transformer_blocks.0.norm.linear.weight"), "Flux"),
    "PixArt": (keys("adaln_single.linear.weight"), "a model whose network is a transformer, not a UNet"),
    "Stable Video Diffusion": (
        keys("model.diffusion_model.input_blocks.1.0.time_stack.in_layers.0.weight"),
        "Stable Video Diffusion",
    ),
    "inpainting": ({FIRST: torch.ones(320, 9, 3, 3)}, "an inpainting model (its UNet takes 9 channels)"),
    "InstructPix2Pix": (
        {FIRST: torch.ones(320, 8, 3, 3)},
        "an editing model such as InstructPix2Pix (its UNet takes 8 channels)",
    ),
    "depth2img": ({FIRST: torch.ones(320, 5, 3, 3)}, "a depth model (its UNet takes 5 channels)"),
    "x4 upscaler": ({FIRST: torch.ones(320, 7, 3, 3)}, "an upscaler (its UNet takes 7 channels)"),
    "unCLIP": (
        {
            FIRST: torch.ones(320, 4, 3, 3),
            CONTEXT: torch.ones(1, 1024),
            f"{UNET}label_emb.0.0.weight": torch.ones(1, 1),
        },
        "a Stable unCLIP model (its UNet takes embeddings of pictures)",
    ),
    "decoder alone": (
        keys(f"{UNET}output_blocks.0.0.in_layers.0.weight"),
        "a part of the UNet of an unknown version of Stable Diffusion (float32)",
    ),
    "ControlNet of SDXL": (
        {
            "control_model.label_emb.0.0.weight": torch.ones(1, 1),
            "control_model.input_hint_block.0.weight": ONE,
        },
        "a ControlNet of Stable Diffusion XL",
    ),
    "ControlNet of SDXL, diffusers": (
        {
            "controlnet_cond_embedding.conv_in.weight": ONE,
            "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.weight": torch.ones(1, 2048),
        },
        "a ControlNet of Stable Diffusion XL",
    ),
    "ControlNet-Union": (
        keys(
            "controlnet_cond_embedding.conv_in.weight",
            "task_embedding",
            "control_add_embedding.linear_1.weight",
        ),
        "a ControlNet-Union of Stable Diffusion XL",
    ),
    "ControlNet of Flux": (
        keys(
            "controlnet_x_embedder.weight",
            "controlnet_blocks.0.weight",
            "transformer_blocks.0.attn.to_q.weight",
        ),
        "a ControlNet of Flux",
    ),
    "ControlNet of SD 3": (
        keys("controlnet_blocks.0.weight", "pos_embed_input.proj.weight"),
        "a ControlNet of Stable Diffusion 3",
    ),
    "Control-LoRA": (keys("lora_controlnet", "input_blocks.1.0.in_layers.2.up"), "a Control-LoRA"),
    "ControlNet-XS": (keys("control_to_base_for_conv_in.weight"), "a ControlNet-XS"),
    "LLLite": (
        keys("lllite_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q.down.0.weight"),
        "a ControlNet-LLLite of Stable Diffusion XL",
    ),
    "T2I-Adapter": (keys("body.0.block1.weight", "conv_in.weight"), "a T2I-Adapter"),
    "T2I-Adapter of diffusers": (keys("adapter.body.0.resnets.0.block1.weight"), "a T2I-Adapter"),
    "T2I-Adapter, light": (keys("body.0.in_conv.weight"), "a T2I-Adapter"),
    "T2I style adapter": (keys("style_embedding", "transformer_layes.0.ln_1.weight"), "a T2I style adapter"),
    "IP-Adapter": (keys("image_proj.proj.weight", "ip_adapter.1.to_k_ip.weight"), "an IP-Adapter"),
    "AnimateDiff": (
        keys("down_blocks.0.motion_modules.0.temporal_transformer.norm.weight"),
        "a module of AnimateDiff",
    ),
    "SparseCtrl": (
        keys(
            "controlnet_cond_embedding.conv_in.weight",
            "down_blocks.0.motion_modules.0.temporal_transformer.norm.weight",
        ),
        "a module of AnimateDiff",
    ),
    "LoKr": (keys("lora_unet_mid_block_resnets_0_conv1.lokr_w1"), "a LoKr (a LoRA of Kronecker products)"),
    "LoHa": (keys("lora_unet_mid_block_resnets_0_conv1.hada_w1_a"), "a LoHa (a LoRA of Hadamard products)"),
    "DoRA": (keys("lora_unet_mid_block_resnets_0_conv1.dora_scale"), "a DoRA (a LoRA with magnitudes)"),
    "LoRA of SDXL": (
        keys("lora_te2_text_model_encoder_layers_0_mlp_fc1.lora_up.weight"),
        "a LoRA of Stable Diffusion XL",
    ),
    "LoRA of Flux": (
        keys("lora_unet_double_blocks_0_img_attn_qkv.lora_up.weight"),
        "a LoRA of Flux or Stable Diffusion 3",
    ),
    "hypernetwork": (keys("768.0.linear.0.weight", "768.1.linear.0.weight"), "a hypernetwork"),
    "embedding of SDXL": (keys("clip_l", "clip_g", shape=(2, 8)), "a textual inversion embedding of Stable "),
    "VAE of SD 3": (
        {"decoder.conv_in.weight": torch.ones(512, 16, 3, 3), "encoder.conv_in.weight": torch.ones(1)},
        "a VAE of 16 latent channels, of Flux or Stable Diffusion 3",
    ),
    "VQ autoencoder": (
        keys("first_stage_model.quantize.embedding.weight"),
        "latent diffusion with a VQ autoencoder",
    ),
    "TAESD": (keys("decoder.layers.0.weight"), "a TAESD (a small stand-in for the VAE)"),
    "quantized by bitsandbytes": (keys(f"{QUERY}.absmax"), "a file quantized with bitsandbytes"),
    "scaled float8": (keys(QUERY, QUERY.replace("weight", "scale_weight")), "a file of scaled float8"),
    "detector": (keys("backbone.x.weight", "decode_head.conv_seg.weight"), "a segmentation network"),
}


@pytest.mark.parametrize("name", FOREIGN)
@pytest.mark.parametrize("role", ["model", "control"])
def test_what_has_no_use_here_is_named(name: str, role: str, config: Path, tmp_path: Path):
    """As a model and as a control; the same files say the same."""
    state, called = FOREIGN[name]
    path = save(state, tmp_path / "file.safetensors")
    with pytest.raises(WeightsError) as caught:
        if role == "model":
            load_model(config, path)
        else:
            load_control(config, path)
    text = str(caught.value)
    assert text.startswith(f"{path}: this is {called.removesuffix(')')}")
    assert text.endswith(f", which has no use here: {NOT_HERE}")
    assert "\n" not in text


def test_nested_pickles_are_looked_into(config: Path, tmp_path: Path):
    """IP-Adapters and hypernetworks hold dictionaries of dictionaries."""
    adapter = {"image_proj": {"proj.weight": ONE}, "ip_adapter": {"1.to_k_ip.weight": ONE}}
    layers = {"linear.0.weight": ONE, "linear.0.bias": ONE}
    hypernetwork = {768: (layers, layers), "step": 1000, "name": "anime"}
    for content, called in ((adapter, "an IP-Adapter"), (hypernetwork, "a hypernetwork")):
        torch.save(content, tmp_path / "file.pt")
        with pytest.raises(WeightsError, match=f"file.pt: this is {called} "):
            load_control(config, tmp_path / "file.pt")


def test_a_folder_of_sdxl_is_named(config: Path, tmp_path: Path):
    for part in ("unet", "text_encoder", "text_encoder_2"):
        save(keys("x.weight"), tmp_path / "xl" / part / "model.safetensors")
    with pytest.raises(
        WeightsError, match=r"xl: this is Stable Diffusion XL \(float32\), which has no use here"
    ):
        load_model(config, tmp_path / "xl")


def test_a_vae_of_sdxl_is_known_by_its_config(config: Path, state: State, tmp_path: Path):
    vae = diffusers.from_original("vae", renamed(only(state, VAE), VAE, ""))
    save(vae, tmp_path / "vae" / "diffusion_pytorch_model.safetensors")
    (tmp_path / "vae" / "config.json").write_text('{"scaling_factor": 0.13025}')
    base = save(state, tmp_path / "a.ckpt")
    with pytest.raises(
        WeightsError,
        match=r"this is a VAE of Stable Diffusion XL \(its latents are scaled by 0.13025, float32\)",
    ):
        load_model(config, base, vae=tmp_path / "vae")


# Files of the right version, given as something else, or not whole: load_model's arguments, and what it says.
Given = tuple[dict[str, Path], str]
MODEL = "a model with text embeddings 32 wide"
LAYOUT = "the original's layout, float32"
WHOLE = f"{MODEL} with a control (UNet, VAE, text encoder, control, {LAYOUT})"
BASE = f"{MODEL} (UNet, VAE, text encoder, {LAYOUT})"
ALONE = f"a ControlNet of {MODEL} ({LAYOUT})"


def saved(change: Callable[[State], State]) -> Callable[[State, Path], Path]:
    return lambda s, f: save(change(s), f / "a.safetensors")


def no_bare(s: State) -> State:
    return without(s, CONTROL)


def lora(s: State) -> State:
    return keys("lora_unet_mid_block_attentions_0_proj_in.lora_up.weight")


def broken(value: float) -> Callable[[State], State]:
    return lambda s: {**s, QUERY: torch.full_like(s[QUERY], value)}


def wrong_model(change: Callable[[State], State], says: str) -> Callable[[State, Path], Given]:
    def given(s: State, f: Path) -> Given:
        path = save(change(s), f / "a.safetensors")
        return {"weights_path": path}, f"{path}: {says}"

    return given


def wrong_beside(name: str, change: Callable[[State], State], says: str) -> Callable[[State, Path], Given]:
    def given(s: State, f: Path) -> Given:
        base, path = save(s, f / "base.safetensors"), save(change(s), f / "b.safetensors")
        return {"weights_path": base, name: path}, f"{path}: {says}"

    return given


def swapped(s: State, f: Path) -> Given:
    base, control = save(no_bare(s), f / "a.ckpt"), save(only(s, CONTROL), f / "c.pth")
    says = f"{control} is {ALONE}, and {base} is {BASE}: give them the other way round"
    return {"weights_path": control, "control": base}, says


def small_difference(s: State, f: Path) -> Given:
    control = {key: tensor * 0.01 for key, tensor in only(s, CONTROL).items()}
    base, path = save(no_bare(s), f / "base.safetensors"), save(control, f / "diff.safetensors")
    says = (
        f"{path}: these weights are far smaller than the base's, so they seem to be differences from it; "
        'but there is no key "difference" that says so. Get the whole ControlNet'
    )
    return {"weights_path": base, "control": path}, says


WRONG: dict[str, Callable[[State, Path], Given]] = {
    "a LoRA as the model": wrong_model(
        lora, "this is a LoRA (float32), not a model; give it with --lora, beside a model"
    ),
    "a VAE as the model": wrong_model(
        lambda s: renamed(only(s, VAE), VAE, ""),
        f"this is a VAE ({LAYOUT}), not a model; give it with --vae, beside a Stable Diffusion model",
    ),
    "a text encoder as the model": wrong_model(
        lambda s: renamed(only(s, CLIP), CLIP, "text_model."),
        "this is a text encoder (float32), not a model; it goes into a whole model, which diffusers' folders "
        "and checkpoints are",
    ),
    "an embedding as the model": wrong_model(
        lambda s: {"emb_params": torch.ones(2, 32)},
        "this is a textual inversion embedding (float32), not a model; give it with --embedding, beside a "
        "model",
    ),
    "a control as the model": wrong_model(
        lambda s: only(s, CONTROL),
        f"this is {ALONE}, not a model; give it with --control, beside a Stable Diffusion model",
    ),
    "base and control swapped": swapped,
    "a base as the control": wrong_beside(
        "control", no_bare, f"this is {BASE}, not a control; give it as the model"
    ),
    "a LoRA as the control": wrong_beside(
        "control", lora, "this is a LoRA (float32), not a control; give it with --lora, beside a model"
    ),
    "a control as the VAE": wrong_beside(
        "vae",
        lambda s: only(s, CONTROL),
        f"this is {ALONE}, not a VAE; give it with --control, beside a Stable Diffusion model",
    ),
    "no VAE": wrong_model(
        lambda s: without(s, VAE),
        f"this is {MODEL} with a control (UNet, text encoder, control, {LAYOUT}); it has no VAE: give one "
        "with --vae",
    ),
    "no text encoder": wrong_model(
        lambda s: without(s, TEXT),
        f"this is {MODEL} with a control (UNet, VAE, control, {LAYOUT}); it has no text encoder: take a "
        "checkpoint that has one, or a whole folder of diffusers",
    ),
    "UNet alone": wrong_model(
        lambda s: renamed(only(s, UNET), UNET, ""),
        f"this is {MODEL} (UNet, {LAYOUT}); it has no VAE: give one with --vae",
    ),
    "another version": wrong_model(
        lambda s: {**s, CONTEXT: torch.ones(32, 1024)},
        "this is Stable Diffusion 2.x with a control (UNet, VAE, text encoder, control, "
        f"{LAYOUT}); {{config}} is for {MODEL}, whose text embeddings are 32 wide, not 1024; its definition "
        "is models/cldm_v21.yaml",
    ),
    "a control of another version": wrong_beside(
        "control",
        lambda s: {**only(s, CONTROL), CONTEXT.replace(UNET, CONTROL): torch.ones(32, 768)},
        f"this is a ControlNet of Stable Diffusion 1.x ({LAYOUT}); {{config}} is for {MODEL}, whose text "
        "embeddings are 32 wide, not 768; its definition is models/cldm_v15.yaml",
    ),
    "a key missing": wrong_model(
        lambda s: without(s, QUERY), f"these weights do not fit ControlLDM: 1 keys are missing ({QUERY})."
    ),
    "a key of the control too many": wrong_model(
        lambda s: {**s, "control_model.a": ONE},
        "these weights do not fit ControlLDM: 1 keys are unknown to the model (control_model.a).",
    ),
    "a shape": wrong_model(
        lambda s: {**s, QUERY: torch.ones(8, 8)},
        f"these weights do not fit ControlLDM: 1 shapes differ ({QUERY}: [8, 8] in the file, [32, 32] in the "
        "model).",
    ),
    "whole numbers": wrong_model(
        lambda s: {**s, QUERY: s[QUERY].to(torch.int8)},
        "these weights do not fit ControlLDM: 1 weights are whole numbers, so quantized "
        f"({QUERY}: torch.int8).",
    ),
    "NaN": wrong_model(
        broken(float("nan")),
        f"1 weights hold NaN or infinite numbers ({QUERY}), which give black pictures only",
    ),
    "infinite": wrong_model(
        broken(float("-inf")),
        f"1 weights hold NaN or infinite numbers ({QUERY}), which give black pictures only",
    ),
    "a difference without its marker": small_difference,
    "another network": wrong_model(
        lambda s: {"layer1.0.conv1.weight": ONE, "fc.bias": ONE},
        "these are weights (2 tensors: layer1.0.conv1.weight, fc.bias), but of nothing that is known here: "
        "no Stable Diffusion, no control, no VAE, LoRA or embedding",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_does_not_fit_says_why(name: str, config: Path, state: State, tmp_path: Path):
    arguments, says = WRONG[name](state, tmp_path)
    with pytest.raises(WeightsError) as caught:
        load_model(config, **arguments)
    assert str(caught.value) == says.replace("{config}", str(config))


def test_no_control(config: Path, state: State, tmp_path: Path):
    """The command that makes one is named as it can be typed here."""
    path = save(no_bare(state), tmp_path / "a.ckpt")
    with pytest.raises(WeightsError) as caught:
        load_model(config, path)
    says = f"{path}: this is {BASE}; it has no control: give one with --control, or make a new one with `"
    assert str(caught.value).startswith(says)
    assert str(caught.value).endswith("weights add`")


def test_numbers_too_large_for_float16(config: Path, state: State, tmp_path: Path):
    path = save(broken(1e6)(state), tmp_path / "a.ckpt")
    with pytest.raises(
        WeightsError, match=r"float16 holds no more than 65504: load them as float32 or bfloat16"
    ):
        load_model(config, path, dtype=torch.float16)
    load_model(config, path, dtype=torch.bfloat16)


def test_files_that_are_not_there(config: Path, state: State, tmp_path: Path):
    base = save(state, tmp_path / "a.ckpt")
    with pytest.raises(WeightsError, match=r"^\S*nowhere\.pth: there is no such file"):
        load_model(config, base, control=tmp_path / "nowhere.pth")
    with pytest.raises(
        WeightsError, match=r"empty: this folder holds no weights that are known by their name"
    ):
        (tmp_path / "empty").mkdir()
        load_model(config, tmp_path / "empty")


# --- released files, by their keys at full size ---


def released(name: str, change: Callable[[dict], dict] = dict) -> dict[str, tuple[int, ...]]:
    return change({key: shape for key, (shape, _dtype) in released_keys(name).items()})


@pytest.mark.parametrize(
    ("name", "definition"), [("cldm_v15", "cldm_v15.yaml"), ("cldm_v21", "cldm_v21.yaml")]
)
def test_the_definition_is_found_by_width_and_channels(name: str, definition: str, tmp_path: Path):
    whole = save_empty(released(name), tmp_path / "whole.safetensors")
    control = {key: shape for key, shape in released(name).items() if key.startswith(CONTROL)}
    alone = save_empty(control, tmp_path / "alone.safetensors")
    assert config_for(whole).name == definition
    assert config_for(alone).name == definition


def test_a_model_of_no_known_definition_wants_its_yaml(state: State, tmp_path: Path):
    path = save(state, tmp_path / "a.safetensors")
    with pytest.raises(WeightsError) as caught:
        config_for(path)
    assert str(caught.value) == (
        f"{path}: this is {WHOLE}, with 32 channels in its first level: none of the definitions "
        "cldm_v15.yaml, cldm_v21.yaml, tiny/cldm_tiny.yaml is its own; give its YAML with --config"
    )


def test_the_embedded_models_definition_is_found():
    weights = Path(__file__).parents[2] / "models" / "tiny" / "control_tiny_seg.safetensors.index.json"
    assert config_for(weights).name == "cldm_tiny.yaml"


def test_sd_2_under_the_definition_of_sd_1(tmp_path: Path):
    path = save_empty(released("cldm_v21"), tmp_path / "v21.safetensors")
    definition = Path(__file__).parents[2] / "models" / "cldm_v15.yaml"
    with pytest.raises(WeightsError) as caught:
        load_model(definition, path)
    assert str(caught.value) == (
        f"{path}: this is Stable Diffusion 2.x with a control (UNet, VAE, text encoder, control, the "
        f"original's layout, float16); {definition} is for Stable Diffusion 1.x, whose text embeddings are "
        "768 wide, not 1024; its definition is models/cldm_v21.yaml"
    )


def test_half_of_a_file_is_of_the_type_that_most_weights_have(state: State, tmp_path: Path):
    from ldm.layouts.recognise import recognise

    mixed: dict[str, Tensor] = {**cast(state, torch.float16), "betas": state["betas"]}
    assert recognise(save(mixed, tmp_path / "a.safetensors")).dtype == "float16"
