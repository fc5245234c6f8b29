"""Files that have no use here are named, by keys that only they have."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from weight_samples import (
    CONTEXT,
    FIRST,
    QUERY,
    UNET,
    VAE,
    State,
    only,
    renamed,
    save,
)

from cldm.model import load_control, load_model
from ldm.layouts import diffusers
from ldm.weights import WeightsError

NOT_HERE = "models, controls, VAE, LoRA and embeddings are those of Stable Diffusion 1.x and 2.x"
ONE = torch.ones(1)
TRANSFORMER = "a model whose network is a transformer, not a UNet"


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
    "PixArt": (keys("adaln_single.linear.weight"), TRANSFORMER),
    "AuraFlow": (keys("joint_transformer_blocks.0.attn.to_q.weight"), TRANSFORMER),
    "Qwen-Image": (keys("txt_norm.weight", "transformer_blocks.0.attn.add_q_proj.weight"), TRANSFORMER),
    "ModelScope": (keys("down_blocks.0.temp_convs.0.conv1.0.weight"), "a model of videos"),
    "Kandinsky": (keys("encoder_hid_proj.image_embeds.weight", "conv_in.weight"), "Kandinsky"),
    "LCM": (
        {"conv_in.weight": torch.ones(320, 4, 3, 3), "time_embedding.cond_proj.weight": torch.ones(1, 1)},
        "a latent consistency model (its UNet takes the strength of guidance)",
    ),
    "GLIGEN": (keys(FIRST, f"{UNET}position_net.linears.0.weight"), "GLIGEN (its UNet takes boxes)"),
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
    "ControlNet of Flux, XLabs": (
        keys("controlnet_blocks.0.weight", "double_blocks.0.img_attn.qkv.weight", "pos_embed_input.weight"),
        "a ControlNet of Flux",
    ),
    "ControlNet of Qwen-Image": (
        keys("controlnet_x_embedder.weight", "controlnet_blocks.0.weight", "txt_norm.weight"),
        "a ControlNet of Qwen-Image",
    ),
    "ControlNet of Sana": (
        keys("controlnet_blocks.0.weight", "transformer_blocks.0.scale_shift_table"),
        "a ControlNet of a model whose network is a transformer, not a UNet",
    ),
    "BrushNet": (keys("conv_in_condition.weight", "brushnet_down_blocks.0.weight"), "a BrushNet"),
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
    "GLoRA": (keys("lora_unet_mid_block_resnets_0_conv1.a1.weight"), "a GLoRA (a generalized LoRA)"),
    "(IA)^3": (keys("lora_unet_mid_block_resnets_0_conv1.on_input"), "an (IA)^3 (a LoRA of scales)"),
    "LyCORIS, full": (keys("lora_unet_mid_block_resnets_0_conv1.diff"), "a LyCORIS of whole differences"),
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
    "VAE of Sana": (
        keys("decoder.conv_in.weight", shape=(1024, 32, 3, 3)),
        "a VAE of 32 latent channels, of Sana or Flux 2",
    ),
    "VAE of videos": (keys("decoder.conv_in.weight", shape=(384, 16, 3, 3, 3)), "a VAE of videos"),
    "VAE for inpainting": (
        keys("decoder.conv_in.weight", "decoder.condition_encoder.layers.0.weight"),
        "a VAE for inpainting",
    ),
    "consistency decoder": (
        keys("encoder.conv_in.weight", "decoder_unet.conv_in.weight"),
        "a consistency decoder",
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
