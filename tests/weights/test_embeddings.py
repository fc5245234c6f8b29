"""Textual inversion: files of all makers, used by name in a prompt."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from weight_samples import CLIP, OPEN_CLIP, State, save

from cldm.model import load_model
from ldm.layouts.embedding import read_embedding
from ldm.weights import WeightsError


def webui(vectors: Tensor, path: Path) -> None:
    content = {"string_to_token": {"*": 265}, "string_to_param": {"*": vectors}, "name": "style", "step": 100}
    torch.save(content, path.with_suffix(".pt"))


def diffusers(vectors: Tensor, path: Path) -> None:
    torch.save({"<my-style>": vectors.squeeze(0)}, path.with_suffix(".bin"))


def safetensors(vectors: Tensor, path: Path) -> None:
    save({"emb_params": vectors}, path.with_suffix(".safetensors"))


@pytest.mark.parametrize(
    ("write", "count", "names"),
    [
        (webui, 3, ("my-style",)),
        (diffusers, 1, ("my-style", "<my-style>")),
        (diffusers, 2, ("my-style", "<my-style>")),
        (safetensors, 2, ("my-style",)),
    ],
)
def test_files_of_all_makers_are_read(write, count: int, names: tuple[str, ...], tmp_path: Path):
    vectors = torch.randn(count, 32)
    write(vectors, tmp_path / "my-style")
    embedding = read_embedding(next(tmp_path.iterdir()))
    assert embedding.names == names
    assert torch.equal(embedding.vectors, vectors)


def test_an_embedding_that_is_none_or_broken(tmp_path: Path):
    with pytest.raises(WeightsError, match="holds 2 vectors, expected one set"):
        read_embedding(save({"a": torch.ones(2), "b": torch.ones(2)}, tmp_path / "a.pt"))
    with pytest.raises(WeightsError, match="holds NaN or infinite numbers"):
        read_embedding(save({"emb_params": torch.tensor([[1.0, torch.nan]])}, tmp_path / "a.pt"))


@pytest.mark.parametrize("version", ["1", "2"])
def test_a_name_in_the_prompt_stands_for_the_vectors(version: str, request, tmp_path: Path):
    """The vectors of real words under another name: a prompt with the name is the prompt with the words."""
    config, state = (
        request.getfixturevalue(f"{name}{'_v21' if version == '2' else ''}") for name in ("config", "state")
    )
    table = (
        f"{CLIP}embeddings.token_embedding.weight" if version == "1" else f"{OPEN_CLIP}token_embedding.weight"
    )
    base = save(state, tmp_path / "a.safetensors")
    ids = load_model(config, base).cond_stage_model.tokenize("red brick")[0, 0, 1:3]
    path = save({"emb_params": state[table][ids]}, tmp_path / "Villa-7.safetensors")
    encoder = load_model(config, base, embeddings=[path]).cond_stage_model
    prompts = ["a red brick house, at night", "red brick", "no such thing", "a Villa-7house red brick"]
    named = ["a villa-7 house, at night", "VILLA-7", "no such thing", "a Villa-7house villa-7"]
    with torch.no_grad():
        assert torch.equal(encoder(named), encoder(prompts))
    assert encoder.tokenize("a villa-7 house")[0, 0, 2:4].tolist() == [-1, -2]
    assert encoder.state_dict().keys() == {
        key.removeprefix("cond_stage_model.") for key in state if "cond_" in key
    }


def test_long_prompts_say_what_is_lost_with_embeddings_too(
    config: Path, state: State, tmp_path: Path, caplog
):
    path = save({"emb_params": torch.ones(40, 32)}, tmp_path / "big.safetensors")
    encoder = load_model(config, save(state, tmp_path / "a.ckpt"), embeddings=[path]).cond_stage_model
    assert encoder.tokenize("big, big house").shape == (1, 1, 77)
    assert "prompt cut after 75 tokens; lost: 'house'" in caplog.text


def test_two_embeddings_and_a_longer_name(config: Path, state: State, tmp_path: Path):
    paths = [
        save({"emb_params": torch.full((count, 32), float(count))}, tmp_path / f"{name}.pt")
        for name, count in (("neg", 1), ("neg 2", 2))
    ]
    model = load_model(config, save(state, tmp_path / "a.ckpt"), embeddings=paths)
    assert model.cond_stage_model.tokenize("neg 2 neg")[0, 0, 1:4].tolist() == [-2, -3, -1]
    assert model.cond_stage_model.half()("neg 2").dtype == torch.float16


def test_an_embedding_of_another_version_is_named(config: Path, state: State, tmp_path: Path):
    path = save({"emb_params": torch.ones(2, 768)}, tmp_path / "easynegative.safetensors")
    with pytest.raises(
        ValueError, match=r"embedding 'easynegative': its vectors are \[2, 768\], and this text"
    ):
        load_model(config, save(state, tmp_path / "a.ckpt"), embeddings=[path])
    with pytest.raises(WeightsError, match=r"not an embedding; give it as the model"):
        load_model(config, save(state, tmp_path / "a.ckpt"), embeddings=[tmp_path / "a.ckpt"])
