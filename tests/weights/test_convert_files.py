"""Writing: every round trip is exact, whatever layout, part, type or format lies between."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest
import torch
from weight_samples import (
    CONTROL,
    OPEN_CLIP,
    QUERY,
    UNET,
    VAE,
    State,
    cast,
    only,
    plus,
    save,
    without,
    write_config,
)

from cldm.convert_files import Form, convert_file
from controlnet.commands import add_control, convert, merge_control, transfer_control
from ldm.weights import WeightsError, read_state_dict


def assert_same(found: State, expected: State) -> None:
    assert list(found) == list(expected)
    for key, tensor in found.items():
        assert tensor.dtype == expected[key].dtype, key
        assert torch.equal(tensor, expected[key]), key


@pytest.mark.parametrize("between", ["folder", "sharded folder", "pth", "shards"])
@pytest.mark.parametrize("part", ["whole", "control"])
def test_there_and_back(between: str, part: str, config: Path, state: State, tmp_path: Path):
    expected = state if part == "whole" else only(state, CONTROL)
    source = save(expected, tmp_path / "a.safetensors")
    output, form = {
        "folder": ("out", Form("diffusers")),
        "sharded folder": ("out", Form("diffusers", shard_bytes=300_000)),
        "pth": ("out.pth", Form()),
        "shards": ("out.safetensors.index.json", Form(shard_bytes=300_000)),
    }[between]
    convert_file(source, tmp_path / output, config, form)
    if "shard" in between:
        assert len(list(tmp_path.rglob("*-00002-of-*.safetensors"))) >= 1
    convert_file(tmp_path / output, tmp_path / "back.safetensors", config, Form())
    assert_same(read_state_dict(tmp_path / "back.safetensors"), expected)


def test_sd_2_there_and_back(config_v21: Path, state_v21: State, tmp_path: Path):
    """diffusers has no place for what SD 2.x's text embedding never uses; it comes back as zeros."""
    convert_file(save(state_v21, tmp_path / "a.ckpt"), tmp_path / "out", config_v21, Form("diffusers"))
    convert_file(tmp_path / "out", tmp_path / "back.ckpt", config_v21, Form())
    found = read_state_dict(tmp_path / "back.ckpt")
    unused = (
        f"{OPEN_CLIP}transformer.resblocks.2.",
        f"{OPEN_CLIP}text_projection",
        f"{OPEN_CLIP}logit_scale",
    )
    assert_same(without(found, *unused), without(state_v21, *unused))
    assert not any(tensor.any() for tensor in only(found, *unused).values())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_types(dtype: torch.dtype, config: Path, state: State, tmp_path: Path):
    """Weights are cast, schedules are not; and what is kept in half is kept to the bit."""
    source, half = save(state, tmp_path / "a.ckpt"), tmp_path / "half.safetensors"
    convert_file(source, half, config, Form(dtype=dtype))
    schedules = {key: tensor for key, tensor in state.items() if "." not in key}
    assert_same(read_state_dict(half), {**cast(state, dtype), **schedules})
    convert_file(half, tmp_path / "folder", config, Form("diffusers"))
    convert_file(tmp_path / "folder", tmp_path / "back.pth", config, Form())
    assert_same(read_state_dict(tmp_path / "back.pth"), read_state_dict(half))


def test_a_control_is_taken_out_of_a_whole_model(config: Path, state: State, tmp_path: Path):
    source, output = save(state, tmp_path / "a.ckpt"), tmp_path / "c.safetensors"
    assert (
        convert_file(source, output, config, Form(part="control"))
        == f"a control ({len(only(state, CONTROL))} tensors)"
    )
    assert_same(read_state_dict(output), only(state, CONTROL))
    assert stat.S_IMODE(output.stat().st_mode) == 0o644


def test_a_model_without_a_control_stays_one(config: Path, state: State, tmp_path: Path):
    source = save(without(state, CONTROL), tmp_path / "a.ckpt")
    convert_file(source, tmp_path / "folder", config, Form("diffusers"))
    index = json.loads((tmp_path / "folder" / "model_index.json").read_text())
    assert index["_class_name"] == "StableDiffusionPipeline"
    convert_file(tmp_path / "folder", tmp_path / "back.ckpt", config, Form())
    assert_same(read_state_dict(tmp_path / "back.ckpt"), without(state, CONTROL))


def test_schedules_are_the_definitions(config: Path, state: State, tmp_path: Path):
    """A bfloat16 file's would give alphas of 1."""
    rounded = {**state, **{key: state[key].bfloat16() for key in state if "." not in key}}
    convert_file(save(rounded, tmp_path / "a.safetensors"), tmp_path / "b.ckpt", config, Form())
    assert_same(read_state_dict(tmp_path / "b.ckpt"), state)


def test_configs_of_the_released_models_are_those_of_their_folders():
    """At full size: the numbers that diffusers' folders of SD 1.5, 2.1 base and ControlNet 1.1 have."""
    from cldm import diffusers_folder
    from cldm.model import load_config

    models = Path(__file__).parents[2] / "models"
    v15, v21 = (load_config(models / f"cldm_{version}.yaml").model for version in ("v15", "v21"))
    unet = diffusers_folder.unet_config(v15)
    assert unet["block_out_channels"] == [320, 640, 1280, 1280]
    assert unet["down_block_types"] == ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"]
    assert unet["up_block_types"] == ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3
    assert (unet["attention_head_dim"], unet["cross_attention_dim"], unet["sample_size"]) == (8, 768, 64)
    assert not unet["use_linear_projection"]
    unet = diffusers_folder.unet_config(v21)
    assert (unet["attention_head_dim"], unet["cross_attention_dim"]) == ([5, 10, 20, 20], 1024)
    assert unet["use_linear_projection"]
    text, _ = diffusers_folder.text_config(v21)
    wanted = {"hidden_size": 1024, "num_hidden_layers": 23, "num_attention_heads": 16, "hidden_act": "gelu"}
    assert text == {**text, **wanted, "intermediate_size": 4096}
    text, _ = diffusers_folder.text_config(v15)
    assert text == {**text, "hidden_size": 768, "num_hidden_layers": 12, "hidden_act": "quick_gelu"}
    vae = diffusers_folder.vae_config(v15)
    assert vae["block_out_channels"] == [128, 256, 512, 512]
    assert (vae["scaling_factor"], vae["latent_channels"], vae["sample_size"]) == (0.18215, 4, 512)
    assert diffusers_folder.scheduler_config(v15, False)["beta_end"] == 0.012


def test_what_diffusers_has_no_place_for_is_named(config: Path, state: State, tmp_path: Path):
    strange = write_config(tmp_path, beta_schedule="cosine")
    with pytest.raises(ValueError, match="the noise schedule 'cosine' has no name in diffusers"):
        convert_file(save(state, tmp_path / "a.ckpt"), tmp_path / "out", strange, Form("diffusers"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.ckpt", "unet_v15.yaml"]


# --- outputs ---


def test_outputs_are_not_replaced_without_force(config: Path, state: State, tmp_path: Path):
    source, folder = save(state, tmp_path / "a.ckpt"), tmp_path / "out"
    precious = tmp_path / "precious.safetensors"
    precious.write_bytes(b"1")
    with pytest.raises(WeightsError, match="exists already"):
        convert_file(source, precious, config, Form())
    with pytest.raises(WeightsError, match=r"nowhere/out: the folder \S+ does not exist; make it first"):
        convert_file(source, tmp_path / "nowhere" / "out", config, Form("diffusers"))
    convert_file(source, folder, config, Form("diffusers", part="control"))
    with pytest.raises(WeightsError, match="exists already"):
        convert_file(source, folder, config, Form("diffusers"))
    convert_file(source, folder, config, Form("diffusers"), force=True)
    assert (folder / "model_index.json").is_file()
    home = tmp_path / "home"
    home.mkdir()
    (home / "letter.txt").write_text("dear")
    with pytest.raises(WeightsError, match="holds something else than a model; it is not replaced"):
        convert_file(source, home, config, Form("diffusers"), force=True)
    assert (home / "letter.txt").read_text() == "dear"
    assert {path.name for path in tmp_path.iterdir()} == {"a.ckpt", "out", "precious.safetensors", "home"}


@pytest.mark.parametrize(
    ("change", "form", "output", "says"),
    [
        (lambda s: only(s, CONTROL), Form(part="whole"), "b.ckpt", "put it together with its base first"),
        (
            lambda s: without(s, CONTROL),
            Form(part="control"),
            "b.ckpt",
            "not a control; give it as the model",
        ),
        (lambda s: s, Form("diffusers"), "b.safetensors", "keeps a whole model in a folder"),
        (lambda s: without(s, VAE), Form(), "b.ckpt", "it has no VAE"),
        (
            lambda s: {**s, QUERY: s[QUERY] * 1e7},
            Form(dtype=torch.float16),
            "b.ckpt",
            "float16 holds no more",
        ),
        (lambda s: {**s, QUERY: s[QUERY] * torch.nan}, Form(), "b.ckpt", "hold NaN or infinite numbers"),
        (lambda s: without(s, QUERY), Form(), "b.ckpt", f"1 keys are missing .{QUERY}"),
        (
            lambda s: {**only(s, CONTROL, f"{UNET}out.")},
            Form(part="control"),
            "b.ckpt",
            "trained together with the decoder",
        ),
        (
            lambda s: {**only(s, CONTROL), "difference": torch.ones(())},
            Form(),
            "b.ckpt",
            "needs the weights of",
        ),
    ],
)
def test_what_cannot_be_written_is_not(
    change, form, output, says, config: Path, state: State, tmp_path: Path
):
    source = save(change(state), tmp_path / "a.ckpt")
    with pytest.raises(WeightsError, match=says):
        convert_file(source, tmp_path / output, config, form)
    assert [path.name for path in tmp_path.iterdir()] == ["a.ckpt"]


# --- the tools check their result ---

Argument = Path | str


def tool(module, *arguments: Argument) -> int:
    return module.main([str(argument) for argument in arguments])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda s: without(s, VAE), "it has no VAE: give one with --vae"),
        (lambda s: without(s, QUERY), "these weights do not make a whole model: 1 keys are missing"),
        (lambda s: {**s, f"{UNET}extra": torch.ones(1)}, "1 keys are unknown to the model"),
        (lambda s: {**s, QUERY: s[QUERY] / 0}, "hold NaN or infinite numbers"),
    ],
)
def test_no_tool_says_done_for_what_does_not_load(
    change, says, config: Path, state: State, tmp_path: Path, capsys
):
    base = save(change(without(state, CONTROL)), tmp_path / "base.ckpt")
    control, target = (
        save(only(state, CONTROL), tmp_path / "c.pth"),
        save(without(state, CONTROL), tmp_path / "t.ckpt"),
    )
    output = ("--output", tmp_path / "out.ckpt", "--config", config)
    assert tool(merge_control, "--base", base, "--control", control, *output) == 1
    assert tool(add_control, base, tmp_path / "out.ckpt", "--config", config) == 1
    assert tool(convert, base, tmp_path / "out.ckpt", "--config", config) == 1
    errors = capsys.readouterr().err
    assert errors.count(says) == 3
    assert tool(transfer_control, "--base", target, "--control", control, "--target", base, *output) == 1
    assert "Done" not in capsys.readouterr().out
    assert not (tmp_path / "out.ckpt").exists()


def test_tools_take_every_layout(config: Path, state: State, tmp_path: Path, capsys):
    """A base and a control in diffusers' layout: the result is the original's."""
    base, control, out = tmp_path / "base", tmp_path / "control", tmp_path / "out.ckpt"
    whole = save(state, tmp_path / "a.ckpt")
    convert_file(save(without(state, CONTROL), tmp_path / "b.ckpt"), base, config, Form("diffusers"))
    convert_file(whole, control, config, Form("diffusers", part="control"))
    assert tool(merge_control, "--base", base, "--control", control, "--output", out, "--config", config) == 0
    assert_same(read_state_dict(out), state)
    assert tool(add_control, base, tmp_path / "ini.ckpt", "--config", config) == 0
    fresh = read_state_dict(tmp_path / "ini.ckpt")
    assert fresh.keys() == state.keys()
    assert "newly added: betas" not in capsys.readouterr().out


def test_differences_are_merged_and_transferred(config: Path, state: State, tmp_path: Path):
    trained = plus(state, 0.25, CONTROL)
    differences = {
        key: tensor - state[twin] if (twin := key.replace(CONTROL, UNET)) in state else tensor
        for key, tensor in trained.items()
    }
    control = save({**differences, "difference": torch.ones(())}, tmp_path / "c.safetensors")
    base, target = save(without(state, CONTROL), tmp_path / "base.ckpt"), tmp_path / "target.ckpt"
    other = {
        key: tensor + 1 if key.startswith(UNET) else tensor for key, tensor in without(state, CONTROL).items()
    }
    save(other, target)
    common = ("--base", base, "--control", control, "--config", config, "--output")
    assert tool(merge_control, *common, tmp_path / "merged.ckpt") == 0
    assert tool(transfer_control, *common, tmp_path / "moved.ckpt", "--target", target) == 0
    merged, moved = (read_state_dict(tmp_path / f"{name}.ckpt") for name in ("merged", "moved"))
    for key, tensor in trained.items():
        torch.testing.assert_close(merged[key], tensor)
        torch.testing.assert_close(moved[key], tensor + 1 if key.replace(CONTROL, UNET) in state else tensor)


def test_the_definition_is_chosen_by_the_file(state: State, tmp_path: Path, capsys):
    """The embedded model's weights find their YAML; a model of no known definition asks for one."""
    weights = Path(__file__).parents[2] / "models" / "tiny" / "control_tiny_seg.safetensors.index.json"
    assert tool(convert, weights, tmp_path / "c.safetensors", "--part", "control", "--dtype", "bf16") == 0
    assert {tensor.dtype for tensor in read_state_dict(tmp_path / "c.safetensors").values()} == {
        torch.bfloat16
    }
    assert tool(convert, save(state, tmp_path / "a.ckpt"), tmp_path / "b.ckpt") == 1
    assert "give its YAML with --config" in capsys.readouterr().err
