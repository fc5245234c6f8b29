"""Every kind of file that is read: each gives exactly the weights that its makers meant."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from golden_data import load_golden, relative_error
from safetensors.torch import save_file
from torch import nn
from weight_samples import (
    CLIP,
    CONTEXT,
    CONTROL,
    FIRST,
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
    write_config,
)

from cldm.model import load_control, load_model
from ldm.layouts import clip, diffusers
from ldm.layouts.recognise import recognise
from ldm.saving import save_shards
from ldm.weights import WeightsError

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


def assert_weights(model: nn.Module, expected: State) -> None:
    for key, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, expected[key], rtol=0, atol=1e-6, msg=lambda m, k=key: f"{k}: {m}")


@pytest.mark.parametrize("name", READ)
def test_what_people_have_is_read(name: str, config: Path, state: State, tmp_path: Path):
    arguments, expected = READ[name](state, tmp_path)
    model = load_model(config, **arguments)
    assert not model.training
    assert not any(tensor.is_meta for tensor in [*model.parameters(), *model.buffers()])
    assert_weights(model, expected)


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


def same_pictures(model: nn.Module, peer: nn.Module, version: str) -> None:
    """The same text embedding and the same step of the UNet."""
    golden, _ = load_golden(version)
    cond = {"c_concat": [golden["hint"]], "c_crossattn": [golden["context"]], "control_scales": [0.7] * 5}
    with torch.no_grad():
        eps = [m.apply_model(golden["x"], golden["t"], cond) for m in (model, peer)]
        texts = [m.get_learned_conditioning(["a red house"]) for m in (model, peer)]
    assert torch.equal(*eps)
    assert torch.equal(*texts)


@pytest.mark.parametrize("name", READ_V21)
def test_sd_2_is_read(name: str, config_v21: Path, state_v21: State, tmp_path: Path):
    """What the text embedding never uses may be missing, so outputs are compared with the whole model's."""
    peer = load_model(config_v21, save(state_v21, tmp_path / "peer.safetensors"))
    model = load_model(config_v21, **READ_V21[name](state_v21, tmp_path).arguments)
    assert not any(tensor.is_meta for tensor in model.parameters())
    same_pictures(model, peer, "unet_v21")


@pytest.mark.parametrize(
    "name",
    ["original .pth", "diffusers pipeline", "control of diffusers, file", "control as difference (webui)"],
)
def test_what_was_read_computes_what_the_original_computed(
    name: str, config: Path, state: State, tmp_path: Path
):
    golden, _ = load_golden("unet_v15")
    if "difference" in name:
        state = {
            **state,
            "control_model.time_embed.0.weight": state["model.diffusion_model.time_embed.0.weight"],
        }
    model = load_model(config, **READ[name](state, tmp_path).arguments)
    cond = {"c_concat": [golden["hint"]], "c_crossattn": [golden["context"]], "control_scales": [0.7] * 5}
    with torch.no_grad():
        eps = model.apply_model(golden["x"], golden["t"], cond)
    if "difference" not in name:  # whose dropped key is another weight
        assert relative_error(eps, golden["eps.apply"]) <= 1e-5
    else:
        peer = load_model(config, save(state, tmp_path / "peer.ckpt"))
        with torch.no_grad():
            assert relative_error(eps, peer.apply_model(golden["x"], golden["t"], cond)) <= 1e-5


def test_extra_keys_are_told_in_one_line(config: Path, state: State, tmp_path: Path, caplog):
    caplog.set_level(logging.INFO, logger="cldm.assemble")
    load_model(config, **with_extras(state, tmp_path).arguments)
    lines = [record.message for record in caplog.records if "not used" in record.message]
    assert len(lines) == 1
    assert "a.safetensors: 3 entries are not used (embedding_manager.embedder.transformer.x" in lines[0]


def test_float8_is_told(config: Path, state: State, tmp_path: Path, caplog):
    load_model(config, **of_type(torch.float8_e5m2)(state, tmp_path).arguments)
    assert "a.safetensors: weights of 8 bits (float8)" in caplog.text


# --- what a file says about itself ---


def v_by_key(s: State, f: Path) -> Path:
    return save({**s, "v_pred": torch.ones(())}, f / "a.safetensors")


def v_by_metadata(s: State, f: Path) -> Path:
    tensors = {key: tensor.contiguous().clone() for key, tensor in s.items()}
    save_file(tensors, f / "a.safetensors", {"modelspec.prediction_type": "v"})
    return f / "a.safetensors"


def v_by_yaml(s: State, f: Path) -> Path:
    (f / "a.yaml").write_text('model:\n  target: any.Model\n  params:\n    parameterization: "v"\n')
    return save(s, f / "a.ckpt")


def v_by_scheduler(s: State, f: Path) -> Path:
    path = pipeline(s, f)
    (path / "scheduler").mkdir()
    (path / "scheduler" / "scheduler_config.json").write_text('{"prediction_type": "v_prediction"}')
    return path


@pytest.mark.parametrize("say", [v_by_key, v_by_metadata, v_by_yaml, v_by_scheduler])
def test_v_prediction_is_recognised(say: Callable, config: Path, state: State, tmp_path: Path, caplog):
    assert load_model(config, say(state, tmp_path)).parameterization == "v"
    assert f"the weights predict v, not eps as {config} has it" in caplog.text


def test_a_definition_of_v_stays_where_the_file_says_nothing(state: State, tmp_path: Path):
    config = write_config(tmp_path, parameterization="v")
    assert load_model(config, save(state, tmp_path / "a.ckpt")).parameterization == "v"


def test_zero_terminal_snr_gives_its_schedule(config: Path, state: State, tmp_path: Path):
    """As diffusers' ``rescale_betas_zero_snr``, but for the last step, whose inverse must be finite."""
    marked = {**state, "v_pred": torch.ones(()), "ztsnr": torch.ones(())}
    model = load_model(config, save(marked, tmp_path / "a.safetensors"))
    ours = model.alphas_cumprod
    roots = state["alphas_cumprod"].double().sqrt()
    theirs = ((roots - roots[-1]) * roots[0] / (roots[0] - roots[-1])) ** 2
    torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-7)
    assert 0 < ours[-1] < 1e-7
    assert model.parameterization == "v"
    assert all(torch.isfinite(buffer).all() for buffer in model.buffers())


@pytest.mark.parametrize("say", ["name", "config", "yaml"])
def test_shuffle_controls_are_averaged_over_the_picture(say: str, state: State, tmp_path: Path, caplog):
    params = {"global_average_pooling": True} if say == "yaml" else {}
    config = write_config(tmp_path, **params)
    name = "control_v11e_sd15_shuffle.pth" if say == "name" else "c.pth"
    control = save(only(state, CONTROL), tmp_path / name)
    if say == "config":
        control = in_diffusers_folder(renamed(only(state, CONTROL), CONTROL, ""), tmp_path)
        (control / "config.json").write_text('{"global_pool_conditions": true}')
    model = load_model(config, save(without(state, CONTROL), tmp_path / "a.ckpt"), control=control)
    plain = load_model(write_config(tmp_path), save(state, tmp_path / "b.ckpt"))
    golden, _ = load_golden("unet_v15")
    inputs = [golden[key] for key in ("x", "hint", "t", "context")]
    with torch.no_grad():
        pooled, full = model.control_model(*inputs), plain.control_model(*inputs)
        cond = {"c_concat": [golden["hint"]], "c_crossattn": [golden["context"]]}
        assert model.apply_model(golden["x"], golden["t"], cond).shape == golden["x"].shape
    for a, b in zip(pooled, full, strict=True):
        torch.testing.assert_close(a, b.mean(dim=(2, 3), keepdim=True))
    assert ("taken for a shuffle control" in caplog.text) == (say != "yaml")


def test_controls_of_one_base(config: Path, state: State, tmp_path: Path):
    """The base is there once; a condition names the control that steers it."""
    other = {key: -tensor for key, tensor in only(state, CONTROL).items()}
    model = load_model(config, save(state, tmp_path / "a.ckpt"))
    network = load_control(config, save(other, tmp_path / "other.pth"), dtype=torch.float32)
    peer = load_model(config, save({**state, **other}, tmp_path / "b.ckpt"))
    golden, _ = load_golden("unet_v15")
    cond = {"c_concat": [golden["hint"]], "c_crossattn": [golden["context"]]}
    step = (golden["x"], golden["t"])
    with torch.no_grad():
        own = model.apply_model(*step, cond)
        swapped = model.apply_model(*step, model.prepare_condition({**cond, "control_model": network}))
        assert torch.equal(swapped, peer.apply_model(*step, cond))
        assert torch.equal(model.apply_model(*step, cond), own)
    assert not torch.equal(swapped, own)


def test_a_difference_alone_needs_its_base(config: Path, state: State, tmp_path: Path):
    arguments, expected = difference(state, tmp_path)
    with pytest.raises(WeightsError, match="needs the weights of the base"):
        load_control(config, arguments["control"])
    network = load_control(config, arguments["control"], base=arguments["weights_path"])
    for key, tensor in network.state_dict().items():
        torch.testing.assert_close(tensor, expected[CONTROL + key], rtol=0, atol=1e-6)


def test_half_the_numbers_half_the_memory(config: Path, state: State, tmp_path: Path):
    model = load_model(config, save(state, tmp_path / "a.ckpt"), dtype=torch.float16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float16}
    assert model.alphas_cumprod.dtype == torch.float32
    assert torch.equal(model.state_dict()[FIRST], state[FIRST].half())


def test_a_file_made_for_another_yaml_is_known_by_shapes(config: Path, state: State, tmp_path: Path):
    assert state[CONTEXT].shape[1] == 32
    kind = recognise(save({**state, CONTEXT: torch.zeros(32, 768)}, tmp_path / "a.ckpt"))
    parts = "UNet, VAE, text encoder, control"
    assert str(kind) == f"Stable Diffusion 1.x with a control ({parts}, the original's layout, float32)"
