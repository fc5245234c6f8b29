"""Names for weights that have no use here, by keys that only they have."""

from __future__ import annotations

import re
from collections.abc import Collection

_TRANSFORMER = "a model whose network is a transformer, not a UNet"

_KINDS: tuple[tuple[str, ...], ...] = (
    # Controls of other kinds
    ("a Control-LoRA", r"lora_controlnet$"),
    ("a ControlNet-LLLite of Stable Diffusion XL", r"lllite_"),
    (
        "a ControlNet-Union of Stable Diffusion XL",
        r"(control_model\.|controlnet\.)?(task_embedding$|control_add_embedding\.|spatial_ch_projs\.)",
    ),
    ("a T2I style adapter", r"style_embedding$"),
    ("a T2I-Adapter", r"(adapter\.)?body\.\d+\.(block1|in_conv|resnets|body)\b"),
    ("an IP-Adapter", r"(ip_adapter|image_proj)\.|.*\.to_k_ip\."),
    (
        "a ControlNet-XS",
        r"control_to_base_for_conv_in\.|.*\.(base_to_ctrl|ctrl_to_base)|.*(enc|dec)_zero_convs_(in|out)\.",
    ),
    ("a module of AnimateDiff", r".*\bmotion_modules\."),
    ("a ControlNet of Qwen-Image", r"controlnet_x_embedder\.", r"txt_norm\."),
    ("a ControlNet of Flux", r"controlnet_(single_blocks|x_embedder)\."),
    ("a ControlNet of Flux", r"controlnet_blocks\.", r"double_blocks\."),
    (
        "a ControlNet of a model whose network is a transformer, not a UNet",
        r"controlnet_blocks\.",
        r".*\bscale_shift_table|text_embedder\.",
    ),
    ("a ControlNet of Stable Diffusion 3", r"controlnet_blocks\.|.*\bpos_embed_input\."),
    ("a BrushNet", r"brushnet_(down|mid|up)_block"),
    # LoRA of other kinds
    ("a LoKr (a LoRA of Kronecker products)", r".*\.lokr_w[12]"),
    ("a LoHa (a LoRA of Hadamard products)", r".*\.hada_w[12]_"),
    ("a DoRA (a LoRA with magnitudes)", r".*(\.dora_scale$|\.lora_magnitude_vector)"),
    ("an OFT (orthogonal finetuning)", r".*\.oft_(blocks|diag|r\b)"),
    ("a GLoRA (a generalized LoRA)", r"lora_.*\.[ab][12]\.weight$"),
    ("an (IA)^3 (a LoRA of scales)", r"lora_.*\.on_input$"),
    ("a LyCORIS of whole differences", r"lora_.*\.diff$"),
    (
        "a LoRA of Stable Diffusion XL",
        r"lora_te2_|text_encoder_2\..*lora|lora_unet_.*(transformer_blocks_[1-9]\d*_|add_embedding|label_emb)",
    ),
    (
        "a LoRA of Flux or Stable Diffusion 3",
        r"(lora_)?transformer[._].*lora|lora_unet_(double|single|joint)_blocks",
    ),
    # Models of other kinds
    ("Stable Video Diffusion", r".*\.(time_stack|temporal_transformer_blocks)\."),
    ("a model of videos", r".*\b(temp_convs|temp_attentions)\."),
    (_TRANSFORMER, r".*\b(joint_transformer_blocks|double_layers)\.|(.*\.)?txt_norm\."),
    ("Flux", r".*\b(double_blocks|single_blocks|single_transformer_blocks)\."),
    ("Stable Diffusion 3", r".*\bjoint_blocks\.|.*transformer_blocks\.\d+\.attn\.add_[qkv]_proj\."),
    ("Stable Diffusion XL", r"conditioner\.embedders\.|text_encoder_2\."),
    ("Stable Cascade", r".*\b(clip_txt_mapper|channelwise)\."),
    (
        _TRANSFORMER,
        r".*\b(adaLN_modulation|scale_shift_table|adaln_single|time_caption_embed)|patch_embed\.text_proj\.",
    ),
    ("Kandinsky", r"(.*\.)?(add_time_condition|encoder_hid_proj)\.|prd_embedding$"),
    (
        "a latent consistency model (its UNet takes the strength of guidance)",
        r"(.*\.)?(time_embedding|time_embed)\.cond_proj\.",
    ),
    ("GLIGEN (its UNet takes boxes)", r"(.*\.)?position_net\.|.*\.fuser\.linear\."),
    ("the upscaler of Stable Diffusion", r"low_scale_model\."),
    ("latent diffusion with a VQ autoencoder", r"(first_stage_model\.)?quantize\.embedding"),
    ("a VAE for inpainting", r"(vae\.)?decoder\.condition_encoder\."),
    ("a consistency decoder", r"(vae\.)?decoder_unet\."),
    ("a TAESD (a small stand-in for the VAE)", r"(taesd_)?(encoder|decoder)\.(layers\.)?\d+\."),
    # What is no model of pictures
    ("a hypernetwork", r"(320|640|768|1024|1280)\.[01]\."),
    ("a file quantized with bitsandbytes", r".*\.weight\.(absmax|quant_map|quant_state|nested_absmax)"),
    ("a file of scaled float8", r".*\.scale_weight$|scaled_fp8$"),
    ("a segmentation network", r"decode_head\."),
)
"""What it is, and patterns for the beginning of a key, each of which some key must match; the first row that
fits counts.
"""


def foreign_name(keys: Collection[str]) -> str | None:
    """What a state dict with these keys is, if it is one of the kinds that have no use here."""
    for name, *patterns in _KINDS:
        if all(any(map(re.compile(pattern).match, keys)) for pattern in patterns):
            return name
    return None
