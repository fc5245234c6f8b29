"""Names for weights that have no use here, by keys that only they have."""

from __future__ import annotations

import re
from collections.abc import Collection

_KINDS: tuple[tuple[str, str], ...] = (
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
    ("a ControlNet of Flux", r"controlnet_(single_blocks|x_embedder)\.|.*controlnet_blocks\..*double_blocks"),
    ("a ControlNet of Stable Diffusion 3", r"controlnet_blocks\.|.*\bpos_embed_input\."),
    # LoRA of other kinds
    ("a LoKr (a LoRA of Kronecker products)", r".*\.lokr_w[12]"),
    ("a LoHa (a LoRA of Hadamard products)", r".*\.hada_w[12]_"),
    ("a DoRA (a LoRA with magnitudes)", r".*(\.dora_scale$|\.lora_magnitude_vector)"),
    ("an OFT (orthogonal finetuning)", r".*\.oft_(blocks|diag|r\b)"),
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
    ("Flux", r".*\b(double_blocks|single_blocks|single_transformer_blocks)\."),
    ("Stable Diffusion 3", r".*\bjoint_blocks\.|.*transformer_blocks\.\d+\.attn\.add_[qkv]_proj\."),
    ("Stable Diffusion XL", r"conditioner\.embedders\.|text_encoder_2\."),
    ("Stable Cascade", r".*\b(clip_txt_mapper|channelwise)\."),
    (
        "a model whose network is a transformer, not a UNet",
        r".*\b(adaLN_modulation|scale_shift_table|adaln_single)",
    ),
    ("the upscaler of Stable Diffusion", r"low_scale_model\."),
    ("latent diffusion with a VQ autoencoder", r"(first_stage_model\.)?quantize\.embedding"),
    ("a TAESD (a small stand-in for the VAE)", r"(taesd_)?(encoder|decoder)\.(layers\.)?\d+\."),
    # What is no model of pictures
    ("a hypernetwork", r"(320|640|768|1024|1280)\.[01]\."),
    ("a file quantized with bitsandbytes", r".*\.weight\.(absmax|quant_map|quant_state|nested_absmax)"),
    ("a file of scaled float8", r".*\.scale_weight$|scaled_fp8$"),
    ("a segmentation network", r"decode_head\."),
)
"""What it is, and a pattern for the beginning of a key; the first that matches counts."""


def foreign_name(keys: Collection[str]) -> str | None:
    """What a state dict with these keys is, if it is one of the kinds that have no use here."""
    for name, pattern in _KINDS:
        match = re.compile(pattern).match
        if any(match(key) for key in keys):
            return name
    return None
