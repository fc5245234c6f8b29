"""Models in diffusers' layout: folders of weights, each with the config.json that says their shape.

Source: the configurations of diffusers' ``UNet2DConditionModel``, ``ControlNetModel``, ``AutoencoderKL`` and
``DDIMScheduler``, and of transformers' ``CLIPTextModel``.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from ldm.layouts import PREFIXES, clip, diffusers
from ldm.modules.encoders.tokenizer import VOCABULARY_SIZE, clip_tokenizer
from ldm.recipes import tensors_of

WEIGHTS = "diffusion_pytorch_model.safetensors"
_LIKE_VERSION = "0.42.0"
_UNKNOWN_TO_DIFFUSERS = (
    "resblock_updown",
    "use_scale_shift_norm",
    "disable_self_attentions",
    "num_attention_blocks",
)
_PREDICTIONS = {"eps": "epsilon", "v": "v_prediction", "x0": "sample"}

Save = Callable[[Mapping[str, Tensor], Path], None]
"""Writes a state dict to a file."""


def write_control(
    folder: Path, state: Mapping[str, Tensor], definition: DictConfig, pools: bool, save: Save
) -> None:
    """Write a control as ``ControlNetModel.from_pretrained`` reads it.

    Args:
        folder: an empty folder.
        state: the control, under ``control_model.*``.
        definition: the YAML's ``model``.
        pools: its outputs are averaged over the picture.
        save: writes one file.

    Raises:
        ValueError: the definition has something that diffusers has not.
    """
    _write_json(folder / "config.json", control_config(definition, pools))
    save(tensors_of(diffusers.from_original("control", _part(state, "control"))), folder / WEIGHTS)


def write_pipeline(
    folder: Path,
    state: Mapping[str, Tensor],
    definition: DictConfig,
    pools: bool,
    zero_terminal: bool,
    save: Save,
) -> None:
    """Write a whole model as ``StableDiffusionControlNetPipeline.from_pretrained`` reads it, or without a
    control as ``StableDiffusionPipeline`` does. Arguments as in :func:`write_control`.
    """
    text, text_class = text_config(definition)
    skipped = text.pop("skipped_layers")
    parts = {
        "unet": ("diffusers", "UNet2DConditionModel", unet_config(definition), WEIGHTS),
        "vae": ("diffusers", "AutoencoderKL", vae_config(definition), WEIGHTS),
        "text_encoder": ("transformers", text_class, text, "model.safetensors"),
    }
    entries = {name: diffusers.from_original(name, _part(state, name)) for name in ("unet", "vae")}
    entries["text_encoder"] = clip.to_hugging_face(_part(state, "text"), skipped)
    if control := _part(state, "control"):
        parts["controlnet"] = ("diffusers", "ControlNetModel", control_config(definition, pools), WEIGHTS)
        entries["controlnet"] = diffusers.from_original("control", control)
    for name, (_library, _class, config, weights) in parts.items():
        (folder / name).mkdir()
        _write_json(folder / name / "config.json", config)
        save(tensors_of(entries[name]), folder / name / weights)
    (folder / "scheduler").mkdir()
    _write_json(folder / "scheduler" / "scheduler_config.json", scheduler_config(definition, zero_terminal))
    _write_tokenizer(folder / "tokenizer", "!" if skipped else None)
    _write_json(
        folder / "model_index.json", _model_index({name: list(row[:2]) for name, row in parts.items()})
    )


def unet_config(definition: DictConfig) -> dict[str, Any]:
    """config.json of the UNet."""
    params = definition.params.unet_config.params
    attends = _attention_by_level(params)
    up = ["CrossAttnUpBlock2D" if attend else "UpBlock2D" for attend in reversed(attends)]
    return {
        "_class_name": "UNet2DConditionModel",
        **_network_config(params),
        "out_channels": params.out_channels,
        "up_block_types": up,
        "sample_size": definition.params.get("image_size", 64),
        "center_input_sample": False,
    }


def control_config(definition: DictConfig, pools: bool) -> dict[str, Any]:
    """config.json of the control."""
    params = definition.params.control_stage_config.params
    return {
        "_class_name": "ControlNetModel",
        **_network_config(params),
        "conditioning_channels": params.hint_channels,
        "conditioning_embedding_out_channels": [16, 32, 96, 256],
        "controlnet_conditioning_channel_order": "rgb",
        "global_pool_conditions": pools,
    }


def _network_config(params: DictConfig) -> dict[str, Any]:
    """What UNet and control have in common."""
    if strange := [name for name in _UNKNOWN_TO_DIFFUSERS if params.get(name)]:
        raise ValueError(
            f"diffusers' networks have nothing like {', '.join(strange)}, which the definition has"
        )
    widths = [params.model_channels * multiple for multiple in params.channel_mult]
    head_channels = params.get("num_head_channels", -1)
    # diffusers calls the number of heads attention_head_dim.
    heads = [width // head_channels for width in widths] if head_channels != -1 else params.num_heads
    return {
        "_diffusers_version": _LIKE_VERSION,
        "act_fn": "silu",
        "attention_head_dim": heads,
        "block_out_channels": widths,
        "cross_attention_dim": params.context_dim,
        "down_block_types": [
            "CrossAttnDownBlock2D" if attend else "DownBlock2D" for attend in _attention_by_level(params)
        ],
        "downsample_padding": 1,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "in_channels": params.in_channels,
        "layers_per_block": params.num_res_blocks,
        "mid_block_scale_factor": 1,
        "norm_eps": 1e-5,
        "norm_num_groups": 32,
        "transformer_layers_per_block": params.get("transformer_depth", 1),
        "use_linear_projection": params.get("use_linear_in_transformer", False),
    }


def _attention_by_level(params: DictConfig) -> list[bool]:
    return [2**level in params.attention_resolutions for level in range(len(params.channel_mult))]


def vae_config(definition: DictConfig) -> dict[str, Any]:
    """config.json of the VAE."""
    params = definition.params.first_stage_config.params
    shape = params.ddconfig
    if params.embed_dim != shape.z_channels or shape.get("attn_resolutions"):
        raise ValueError("diffusers' VAE has embed_dim = z_channels, and attention in its middle only")
    levels = len(shape.ch_mult)
    return {
        "_class_name": "AutoencoderKL",
        "_diffusers_version": _LIKE_VERSION,
        "act_fn": "silu",
        "block_out_channels": [shape.ch * multiple for multiple in shape.ch_mult],
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "in_channels": shape.in_channels,
        "out_channels": shape.out_ch,
        "latent_channels": shape.z_channels,
        "layers_per_block": shape.num_res_blocks,
        "norm_num_groups": shape.get("num_groups", 32),
        "sample_size": definition.params.get("image_size", 64) * 2 ** (levels - 1),
        "scaling_factor": definition.params.get("scale_factor", 1.0),
    }


def text_config(definition: DictConfig) -> tuple[dict[str, Any], str]:
    """config.json of the text encoder, and its class; ``skipped_layers`` in it says how many blocks of the
    original's encoder it is without.
    """
    from ldm.modules.encoders.modules import VIT_L_14

    stage = definition.params.cond_stage_config
    params = _plain(stage.get("params"))
    if stage.target.endswith("FrozenCLIPEmbedder"):
        if params.get("layer", "last") != "last" or params.get("clip_skip", 1) != 1:
            raise ValueError(
                "a folder of diffusers cannot say which layer the text embedding is of; use the last"
            )
        fields = {**VIT_L_14, **params.get("text_config", {})}
        skipped = 0
    elif stage.target.endswith("FrozenOpenCLIPEmbedder"):
        skipped = 1 if params.get("layer", "last") == "penultimate" else 0
        fields = _open_clip_fields(params, skipped)
    else:
        raise ValueError(f"diffusers has no place for the text encoder {stage.target}")
    config = {
        "architectures": ["CLIPTextModel"],
        "model_type": "clip_text_model",
        **fields,
        "attention_dropout": 0.0,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "pad_token_id": 1,
        "layer_norm_eps": 1e-5,
        "skipped_layers": skipped,
    }
    return config, "CLIPTextModel"


def _plain(node: DictConfig | None) -> dict[str, Any]:
    """A YAML node as a dictionary."""
    content = OmegaConf.to_container(node) if node is not None else {}
    return {str(key): value for key, value in content.items()} if isinstance(content, dict) else {}


def _open_clip_fields(params: Mapping[str, Any], skipped: int) -> dict[str, Any]:
    import open_clip

    model = open_clip.get_model_config(params.get("arch", "ViT-H-14"))
    text = {**model["text_cfg"], **params.get("text_config", {})}
    return {
        "vocab_size": text.get("vocab_size", VOCABULARY_SIZE),
        "hidden_size": text["width"],
        "intermediate_size": int(text["width"] * text.get("mlp_ratio", 4)),
        "num_hidden_layers": text["layers"] - skipped,
        "num_attention_heads": text["heads"],
        "max_position_embeddings": text.get("context_length", 77),
        "projection_dim": model["embed_dim"],
        "hidden_act": "quick_gelu" if model.get("quick_gelu") else "gelu",
    }


def scheduler_config(definition: DictConfig, zero_terminal: bool) -> dict[str, Any]:
    """scheduler_config.json of the sampler that the original has: DDIM."""
    params = definition.params
    if params.get("beta_schedule", "linear") != "linear":
        raise ValueError(
            f"the noise schedule {params.beta_schedule!r} has no name in diffusers that is sure to fit"
        )
    return {
        "_class_name": "DDIMScheduler",
        "_diffusers_version": _LIKE_VERSION,
        "beta_schedule": "scaled_linear",
        "beta_start": params.get("linear_start", 1e-4),
        "beta_end": params.get("linear_end", 2e-2),
        "clip_sample": False,
        "num_train_timesteps": params.get("timesteps", 1000),
        "prediction_type": _PREDICTIONS[params.get("parameterization", "eps")],
        "rescale_betas_zero_snr": zero_terminal,
        "set_alpha_to_one": False,
        "steps_offset": 1,
        "timestep_spacing": "leading",
    }


def _model_index(parts: Mapping[str, list[str]]) -> dict[str, Any]:
    name = "StableDiffusionControlNetPipeline" if "controlnet" in parts else "StableDiffusionPipeline"
    return {
        "_class_name": name,
        "_diffusers_version": _LIKE_VERSION,
        **parts,
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
        "safety_checker": [None, None],
        "requires_safety_checker": False,
    }


def _write_tokenizer(folder: Path, pad_token: str | None) -> None:
    """CLIP's tokenizer for transformers 5, and as vocab.json and merges.txt for older ones."""
    from ldm.modules.encoders.tokenizer import read_merges

    tokenizer = copy.deepcopy(clip_tokenizer())
    tokenizer.model_max_length = 77
    if pad_token:
        tokenizer.pad_token = pad_token
    tokenizer.save_pretrained(folder)
    words = dict(sorted(tokenizer.get_vocab().items(), key=lambda item: item[1]))
    (folder / "vocab.json").write_text(json.dumps(words, ensure_ascii=False), "utf-8")
    merges = "\n".join(" ".join(pair) for pair in read_merges())
    (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}\n", "utf-8")


def _part(state: Mapping[str, Tensor], part: str) -> dict[str, Tensor]:
    prefix = PREFIXES[part]
    return {key[len(prefix) :]: tensor for key, tensor in state.items() if key.startswith(prefix)}


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    plain = {key: list(value) if isinstance(value, tuple) else value for key, value in content.items()}
    path.write_text(json.dumps(plain, indent=2) + "\n", "utf-8")
