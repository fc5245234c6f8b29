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

from cldm.model import load_model
from controlnet.weights.choice import config_for
from ldm.weights import WeightsError

ONE = torch.ones(1)


def keys(*names: str, shape: tuple[int, ...] = (1,)) -> State:
    return {name: torch.ones(shape) for name in names}


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
