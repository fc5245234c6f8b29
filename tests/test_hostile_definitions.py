"""YAML that a stranger made to crash a parser, to fill the memory, or to read the environment: one line of
error at once, by the functions that read and build and by the tools that a user would start.
"""

from __future__ import annotations

import math
import os
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from tiny_training import control_model, write_model

from cldm.model import create_model, load_config
from controlnet.commands import add_control, generate, models
from controlnet.generation.models import ModelFiles
from controlnet.page import app as page
from controlnet.training.settings import Settings
from ldm.definitions import DefinitionError, check_sizes, read_yaml
from ldm.weights import save_state_dict

BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 10)}]\n" for level in range(1, 10)
)
REFERENCE_BOMB = "a0: 1\n" + "".join(
    f"a{level}: ['${{a{level - 1}}}', '${{a{level - 1}}}']\n" for level in range(1, 30)
)
FILES: dict[str, tuple[str | bytes, str]] = {
    "lists in lists, which overflow the parser's stack": ("a: " + "[" * 100_000, "lists in one another"),
    "blocks in blocks": ("".join(f"{' ' * level}a:\n" for level in range(200)), "lists in one another"),
    "aliases of aliases": (BOMB, "expansion exceeds"),
    "an alias of itself": ("a: &a [*a]", "recursive aliases"),
    "references to references": (REFERENCE_BOMB, "expand to too much"),
    "a reference to itself": ("a: ${b}\nb: ${a}", "refer to themselves"),
    "a reference to what it lies in": ("a:\n  b: ${a}", "refer to themselves"),
    "a long chain of references": (
        "\n".join([*(f"a{index}: ${{a{index + 1}}}" for index in range(99)), "a99: 1"]),
        "refer to themselves",
    ),
    "a reference to nothing": ("a: ${b}", "${b}: there is no such value"),
    "the environment": ("a: ${oc.env:PATH}", "'${oc.env:PATH}' is not looked up"),
    "the environment, in a name": ("${oc.env:PATH}: 1", "is not looked up"),
    "the environment, put together": ("a: ${${b}:PATH}\nb: oc.env", "is not looked up"),
    "the environment, escaped": ("a: '\\${oc.env:PATH}'", "is not looked up"),
    "a resolver that decodes": ("a: ${oc.decode:'1'}", "is not looked up"),
    "half a reference": ("a: ${b", "is not looked up"),
    "a number in base 60 without end": (
        "a: " + "1:" * 50_000 + "1",
        "100,001 characters is wanted in quotes",
    ),
    "a reference into a text": ("a: text\nb: ${a[0]}", "${a[0]}: there is no such value"),
    "many values": ("a: [" + "1, " * 30_000 + "1]", "more than 10,000 values"),
    "a file of megabytes": ("a: '" + "x" * 3_000_000 + "'", "3,000,005 bytes"),
    "a call": ("a: !!python/object/apply:os.system ['true']", "could not determine a constructor"),
    "a set": ("a: !!set {x}", "'set' is not a supported primitive type"),
    "bytes that are none": ("a: !!binary 'aaa'", "base64"),
    "a list as a name": ("? [a]\n: 1", "unhashable key"),
    "two documents": ("a: 1\n---\nb: 1", "single document"),
    "a name twice": ("a: 1\na: 2", "duplicate key"),
    "a list": ("[1, 2]", "this is a list"),
    "a number": ("3", "int"),
    "UTF-16": ("a: 1".encode("utf-16"), "utf-8"),
    "a zero": ("a: \0", "control characters"),
}


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize("kind", FILES)
def test_hostile_files_are_one_line_of_error_at_once(kind: str, tmp_path: Path):
    content, says = FILES[kind]
    path = write(tmp_path / "model.yaml", content)
    started = time.process_time()
    for read in (load_config, create_model, Settings().from_yaml):
        with pytest.raises(DefinitionError) as caught:
            read(path)
        text = str(caught.value)
        assert text.startswith(f"{path}: ") and says in text
        assert len(text.splitlines()) == 1 and len(text) < 700
        assert os.environ["PATH"] not in text
    assert time.process_time() - started < 3


@pytest.fixture
def command_line(tmp_path: Path) -> list[str]:
    """`tool_generate.py` for one picture, up to the model."""
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(tmp_path / "a.png")
    save_state_dict({"weight": torch.ones(2)}, tmp_path / "weights.safetensors")
    options = ["--weights", str(tmp_path / "weights.safetensors")]
    options += ["--detector-weights", str(tmp_path / "weights.safetensors")]
    return [str(tmp_path / "a.png"), str(tmp_path / "out"), "--prompt", "a", *options]


@pytest.mark.parametrize("kind", list(FILES)[::5])
def test_the_tools_say_it_in_one_line(kind: str, tmp_path: Path, command_line: list[str], capsys):
    path = write(tmp_path / "model.yaml", FILES[kind][0])
    assert generate.main([*command_line, "--model", str(path)]) == 2
    weights, output = tmp_path / "weights.safetensors", tmp_path / "out.safetensors"
    assert add_control.main([str(weights), str(output), "--config", str(path)]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert all(line.startswith(f"error: {path}: ") and FILES[kind][1] in line for line in lines)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        *list(FILES.values())[1::6],
        ("model: {target: cldm.cldm.ControlLDM, params: hello}", "params: a mapping of names to values"),
        ("model: {target: cldm.cldm.ControlLDM, params: [1]}", "params: a mapping of names to values"),
        ("model: {target: cldm.cldm.ControlLDM}", "image_size must be a number of latent pixels"),
    ],
)
def test_the_page_and_the_list_of_models_say_it_in_one_line(
    content: str | bytes, says: str, tmp_path: Path, command_line: list[str], capsys
):
    path = str(write(tmp_path / "model.yaml", content))
    options = ["--model", path, *command_line[-4:]]
    with pytest.raises(SystemExit) as ended:
        page.main(options)
    assert models.main(options) == 1
    said = [str(ended.value), capsys.readouterr().err.rstrip("\n")]
    assert all(text.startswith(f"error: {path}: ") and "\n" not in text for text in said)
    assert says in said[0]


@pytest.mark.parametrize(
    ("key", "value"),
    [("linear_end", math.nan), ("linear_end", 3.0), ("linear_start", -0.1), ("timesteps", 0)],
)
def test_a_schedule_of_no_process_is_the_files_fault(key: str, value: float, tmp_path: Path):
    """It would give latents that are not finite, in every precision."""
    definition = OmegaConf.create(control_model())
    OmegaConf.update(definition, f"params.{key}", value)
    path = write_model(tmp_path / "model.yaml", definition)
    with pytest.raises(DefinitionError, match=r"a noise schedule .* linear_start"):
        create_model(path)


@pytest.mark.parametrize("size", [None, "[a]", "0", "${oc.env:PATH}"])
def test_the_size_a_page_opens_with_is_a_number(size: str | None, tmp_path: Path):
    params = f", params: {{image_size: '{size}'}}" if size else ""
    path = write(tmp_path / "model.yaml", f"model: {{target: a{params}}}")
    with pytest.raises(DefinitionError) as caught:
        _ = ModelFiles("a", path, path, path, None, "").resolution
    assert str(caught.value).startswith(f"{path}: ") and os.environ["PATH"] not in str(caught.value)


@pytest.mark.parametrize("kind", ["a pipe", "a folder", "nothing"])
def test_what_is_no_file_is_told(kind: str, tmp_path: Path):
    path = tmp_path / "model.yaml"
    if kind == "a pipe":
        os.mkfifo(path)
    elif kind == "a folder":
        path.mkdir()
    with pytest.raises(
        DefinitionError, match="there is no such file" if kind == "nothing" else "a folder, a dev"
    ):
        read_yaml(path)


def test_references_are_put_in_their_place(tmp_path: Path):
    path = write(
        tmp_path / "a.yaml", "﻿wide: &w 3\na: {b: '${wide}', c: '${list[1]}'}\nlist: [1, *w]\nd: '${a}'\n"
    )
    plain = OmegaConf.to_container(read_yaml(path), resolve=False)
    assert plain == {"wide": 3, "a": {"b": 3, "c": 3}, "list": [1, 3], "d": {"b": 3, "c": 3}}


# --- sizes ---

UNET, VAE = "unet_config.params", "first_stage_config.params.ddconfig"
TEXT = "cond_stage_config.params.text_config"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (f"{UNET}.num_res_blocks", 100_000_000),
        (f"{UNET}.num_res_blocks", 1e8),
        (f"{UNET}.num_res_blocks", float("nan")),
        (f"{UNET}.num_res_blocks", 10**900),
        (f"{UNET}.num_res_blocks", 100),  # with blocks so wide
        (f"{UNET}.transformer_depth", 10_000_000),
        (f"{UNET}.channel_mult", [1] * 1000),
        (f"{UNET}.channel_mult", [1, 100_000]),
        (f"{UNET}.model_channels", 10_000_000),
        (f"{UNET}.context_dim", 10_000_000),
        (f"{VAE}.num_res_blocks", 100_000_000),
        (f"{VAE}.ch", 10_000_000),
        (f"{TEXT}.num_hidden_layers", 100_000_000),
        (f"{TEXT}.vocab_size", 10_000_000_000),
        ("timesteps", 10_000_000_000),
    ],
)
def test_sizes_are_looked_at_before_anything_is_built(
    key: str, value: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(torch.nn.Module, "__init__", lambda *_: pytest.fail("something was built"))
    definition = OmegaConf.create(control_model())
    OmegaConf.update(definition, "params.unet_config.params.model_channels", 2048)
    OmegaConf.update(definition, f"params.{key}", value, force_add=True)
    path = write_model(tmp_path / "model.yaml", definition)
    with pytest.raises(
        DefinitionError, match=r"model\.yaml: model\.params.*(is too much|of about .* weights)"
    ):
        create_model(path)


def test_numbers_of_torchs_own_layers_are_bounded(tmp_path: Path):
    definition = {"target": "torch.nn.Linear", "params": {"in_features": 8, "out_features": 10**6}}
    with pytest.raises(ValueError, match=r"a\.params: 1000000 is too much"):
        check_sizes({"a": definition})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (f"{UNET}.num_res_blocks", "many"),
        (f"{UNET}.channel_mult", 3),
        (f"{UNET}.num_heads", 0),
        (f"{UNET}.attention_resolutions", None),
        (f"{VAE}.ch_mult", {"a": 1}),
        (f"{VAE}.ch", -1),
        ("timesteps", 0),
        ("linear_start", "x"),
        ("unet_config", 3),
        ("first_stage_config", {"params": {}}),
        (f"{TEXT}.hidden_act", "no such function"),
    ],
)
def test_what_cannot_be_built_is_one_line(key: str, value: object, tmp_path: Path):
    """Constructors raise TypeError, ZeroDivisionError, KeyError, RuntimeError, …"""
    definition = OmegaConf.create(control_model())
    OmegaConf.update(definition, f"params.{key}", value, merge=False, force_add=True)
    path = write_model(tmp_path / "model.yaml", definition)
    with pytest.raises(DefinitionError) as caught:
        create_model(path)
    assert str(caught.value).startswith(f"{path}: ") and len(str(caught.value).splitlines()) == 1
