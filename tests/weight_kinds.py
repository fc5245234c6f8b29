"""The kinds of file that are read: how each is written, and the weights that a model must come to have."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from weight_samples import (
    CLIP,
    CONTROL,
    OPEN_CLIP,
    TEXT,
    UNET,
    VAE,
    State,
    cast,
    only,
    plus,
    renamed,
    save,
    without,
)

from ldm.layouts import clip, diffusers
from ldm.saving import save_shards

SCHEDULE = ("betas", "alphas_cumprod", "sqrt_", "log_one", "posterior_")


class Reading(NamedTuple):
    """What ``load_model`` is given, and the weights that it must come to have."""

    arguments: dict[str, Any]
    expected: State


Kind = Callable[[State, Path], Reading]


def whole(path: Path, expected: State, **arguments: Any) -> Reading:
    return Reading({"weights_path": path, **arguments}, expected)


def pickled(content: object, path: Path, **options: Any) -> Path:
    torch.save(content, path, **options)
    return path


# --- the original's layout ---


def with_wrapper(name: str, prefix: str = "") -> Kind:
    return lambda s, f: whole(pickled({name: renamed(s, "", prefix), "epoch": 3}, f / "a.ckpt"), s)


def prefixed(prefix: str) -> Kind:
    return lambda s, f: whole(save(renamed(s, "", prefix), f / "a.safetensors"), s)


def legacy(s: State, f: Path) -> Reading:
    path = pickled({"state_dict": s}, f / "a.ckpt", _use_new_zipfile_serialization=False)
    return whole(path, s)


def sharded(s: State, f: Path) -> Reading:
    return whole(save_shards(s, f / "a.safetensors.index.json", 500_000)[-1], s)


def without_schedules(s: State, f: Path) -> Reading:
    return whole(save(without(s, *SCHEDULE), f / "a.safetensors"), s)


def of_type(dtype: torch.dtype) -> Kind:
    """Schedules are in the file too, rounded; the model's are the definition's."""
    return lambda s, f: whole(
        save(cast(s, dtype), f / "a.safetensors"),
        {**cast(cast(s, dtype), torch.float32), **only(s, *SCHEDULE)},
    )


def with_extras(s: State, f: Path) -> Reading:
    extras = {
        "embedding_manager.embedder.transformer.x": torch.ones(2),
        "safety_checker.vision_model.x": torch.ones(2),
        "lora_unet_down_blocks_0_attentions_0_proj_in.lora_up.weight": torch.ones(2),
        "model_ema.decay": torch.ones(()),
        "model_ema.num_updates": torch.ones((), dtype=torch.int),
        "first_stage_model.loss.discriminator.x": torch.ones(2),
        "cond_stage_model.logit_scale": torch.ones(()),
    }
    return whole(save({**s, **extras}, f / "a.safetensors"), s)


def matrices(s: State, f: Path) -> Reading:
    flat = {key: t[:, :, 0, 0] if t.ndim == 4 and t.shape[2:] == (1, 1) else t for key, t in s.items()}
    assert sum(flat[key].shape != s[key].shape for key in s) > 10
    return whole(save(flat, f / "a.safetensors"), s)


# --- text encoders ---


def text_model_dropped(s: State, f: Path) -> Reading:
    return whole(save(renamed(s, CLIP, f"{TEXT}transformer."), f / "a.safetensors"), s)


def text_with_the_rest_of_clip(dtype: torch.dtype) -> Kind:
    rest = {
        f"{CLIP}embeddings.position_ids": torch.arange(77)[None].to(dtype),
        f"{TEXT}transformer.logit_scale": torch.ones(()),
        f"{TEXT}transformer.text_projection.weight": torch.ones(2, 2),
        f"{TEXT}transformer.visual_projection.weight": torch.ones(2, 2),
        f"{TEXT}transformer.vision_model.post_layernorm.weight": torch.ones(2),
    }
    return lambda s, f: whole(save({**s, **rest}, f / "a.safetensors"), s)


# --- a control beside a base ---


def beside(write: Callable[[State, Path], Path]) -> Kind:
    """A base without a control, and the control as ``write`` writes it, taken without its prefix."""

    def kind(s: State, f: Path) -> Reading:
        base = save(without(s, CONTROL), f / "base.safetensors")
        return whole(base, s, control=write(renamed(only(s, CONTROL), CONTROL, ""), f))

    return kind


def in_diffusers_folder(control: State, f: Path) -> Path:
    path = f / "control" / "diffusion_pytorch_model.safetensors"
    return save(diffusers.from_original("control", control), path).parent


def difference(s: State, f: Path) -> Reading:
    """webui's: the control minus its base, dropped where there is no difference."""
    control, kept = {}, "control_model.time_embed.0.weight"
    for key, tensor in only(s, CONTROL).items():
        original = s.get(key.replace(CONTROL, UNET))
        control[key] = tensor if original is None else tensor - original
    trained = only(s, CONTROL)
    del control[kept]
    trained[kept] = s[kept.replace(CONTROL, UNET)]
    control["difference"] = torch.tensor(1.0)
    base = save(without(s, CONTROL), f / "base.safetensors")
    return whole(base, {**s, **trained}, control=save(control, f / "diff_canny.safetensors"))


def unlocked_decoder(s: State, f: Path) -> Reading:
    decoder = plus(s, 0.5, f"{UNET}output_blocks.", f"{UNET}out.")
    base = save(without(s, CONTROL), f / "base.safetensors")
    control = save({**only(s, CONTROL), **decoder}, f / "control.pth")
    return whole(base, {**s, **decoder}, control=control)


def control_of_a_whole_model(s: State, f: Path) -> Reading:
    other = plus(s, 0.5, CONTROL, UNET)
    control = save({**s, **other}, f / "whole.ckpt")
    return whole(save(s, f / "a.ckpt"), {**s, **only(other, CONTROL)}, control=control)


# --- folders of diffusers ---


def pipeline(s: State, f: Path, name: str = ".safetensors", control: bool = True) -> Path:
    def part(prefix: str) -> State:
        return renamed(only(s, prefix), prefix, "")

    parts = {
        "unet": (diffusers.from_original("unet", part(UNET)), "diffusion_pytorch_model"),
        "vae": (diffusers.from_original("vae", part(VAE)), "diffusion_pytorch_model"),
        "text_encoder": (clip.to_hugging_face(part(TEXT), 1), "model" if "saf" in name else "pytorch_model"),
    }
    if control:
        parts["controlnet"] = (diffusers.from_original("control", part(CONTROL)), "diffusion_pytorch_model")
    for folder, (tensors, stem) in parts.items():
        save(tensors, f / "pipe" / folder / f"{stem}{name}")
    return f / "pipe"


def pipeline_and_control(s: State, f: Path) -> Reading:
    control = in_diffusers_folder(renamed(only(s, CONTROL), CONTROL, ""), f)
    return whole(pipeline(s, f, control=False), s, control=control)


# --- a VAE beside ---


def other_vae(write: Callable[[State, Path], Path]) -> Kind:
    def kind(s: State, f: Path) -> Reading:
        vae = plus(s, 0.5, VAE)
        path = write(renamed(vae, VAE, ""), f)
        return whole(save(without(s, VAE), f / "a.safetensors"), {**s, **vae}, vae=path)

    return kind


def old_attention(vae: State) -> State:
    """The names of diffusers before 0.18."""
    old = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
    names = {key: key for key in vae}
    for new, before in old.items():
        names = {key: name.replace(new, before) for key, name in names.items()}
    assert sum(key != name for key, name in names.items()) == 16
    return {names[key]: tensor for key, tensor in vae.items()}


READ: dict[str, Kind] = {
    "original .ckpt, state_dict": with_wrapper("state_dict"),
    "original .pth": lambda s, f: whole(save(s, f / "a.pth"), s),
    "original, legacy pickle": legacy,
    "original .safetensors": lambda s, f: whole(save(s, f / "a.safetensors"), s),
    "original, shards": sharded,
    "original, {'model': ...}": with_wrapper("model"),
    "original, state_dict of a DataParallel": with_wrapper("state_dict", "module."),
    "original, compiled (_orig_mod.)": prefixed("_orig_mod."),
    "original without schedules": without_schedules,
    "original in float16 with its schedules": of_type(torch.float16),
    "original in bfloat16 with its schedules": of_type(torch.bfloat16),
    "original in float8": of_type(torch.float8_e4m3fn),
    "finetune with extra keys": with_extras,
    "1x1 convolutions as matrices": matrices,
    "text encoder without text_model.": text_model_dropped,
    "text encoder with position_ids int64 and the rest of CLIP": text_with_the_rest_of_clip(torch.int64),
    "text encoder with position_ids float32": text_with_the_rest_of_clip(torch.float32),
    "text encoder with position_ids float16": text_with_the_rest_of_clip(torch.float16),
    "ControlNet 1.1 (control_model.)": beside(lambda c, f: save(renamed(c, "", CONTROL), f / "c.pth")),
    "control without a prefix": beside(lambda c, f: save(c, f / "c.safetensors")),
    "control, {'model': ...}": beside(lambda c, f: pickled({"model": c, "step": 1}, f / "c.pt")),
    "control, module.": beside(lambda c, f: save(renamed(c, "", "module."), f / "c.pth")),
    "control, module.control_model.": beside(
        lambda c, f: save(renamed(c, "", f"module.{CONTROL}"), f / "c.pth")
    ),
    "control of diffusers, file": beside(
        lambda c, f: save(diffusers.from_original("control", c), f / "c.safetensors")
    ),
    "control of diffusers, folder": beside(in_diffusers_folder),
    "control as difference (webui)": difference,
    "control with an unlocked decoder": unlocked_decoder,
    "control of a whole model": control_of_a_whole_model,
    "diffusers pipeline": lambda s, f: whole(pipeline(s, f), s),
    "diffusers pipeline, .fp16.safetensors": lambda s, f: whole(pipeline(s, f, ".fp16.safetensors"), s),
    "diffusers pipeline, .bin": lambda s, f: whole(pipeline(s, f, ".bin"), s),
    "diffusers pipeline and control": pipeline_and_control,
    "VAE beside": other_vae(lambda v, f: save({**v, "loss.x": torch.ones(1)}, f / "vae.pt")),
    "VAE beside, of a checkpoint": other_vae(lambda v, f: save(renamed(v, "", VAE), f / "vae.safetensors")),
    "VAE beside, diffusers": other_vae(
        lambda v, f: save(diffusers.from_original("vae", v), f / "vae" / "diffusion_pytorch_model.bin").parent
    ),
    "VAE beside, older diffusers": other_vae(
        lambda v, f: save(old_attention(diffusers.from_original("vae", v)), f / "vae.safetensors")
    ),
}


def without_last_block(s: State) -> State:
    return without(s, f"{OPEN_CLIP}transformer.resblocks.2.")


READ_V21: dict[str, Kind] = {
    "original SD 2.x": lambda s, f: whole(save(s, f / "a.ckpt"), s),
    "SD 2.x with attn_mask": lambda s, f: whole(
        save({**s, f"{OPEN_CLIP}attn_mask": torch.ones(2)}, f / "a.pt"), s
    ),
    "SD 2.x without the last text block": lambda s, f: whole(
        save(without_last_block(s), f / "a.safetensors"), s
    ),
    "SD 2.x, linear projections as 1x1 convolutions": lambda s, f: whole(
        save({k: t[:, :, None, None] if ".proj_in.w" in k else t for k, t in s.items()}, f / "a.safetensors"),
        s,
    ),
    "diffusers pipeline of SD 2.x": lambda s, f: whole(pipeline(s, f), s),
}
