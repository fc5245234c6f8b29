"""Text encoders: tokens and embeddings of the original, long prompts, and OpenCLIP against open_clip
itself.
"""

from __future__ import annotations

import logging

import open_clip
import pytest
import torch
from golden_data import fill_by_recipe, load_golden, relative_error

from ldm.modules.encoders.modules import FrozenCLIPEmbedder, FrozenOpenCLIPEmbedder
from ldm.util import instantiate_from_config

SMALL_OPEN_CLIP = {"width": 32, "heads": 4, "layers": 3}


def small_clip(**options) -> FrozenCLIPEmbedder:
    _, case = load_golden("text")
    encoder = FrozenCLIPEmbedder(text_config=case["text_config"], **options)
    return fill_by_recipe(encoder, prefix="cond_stage_model.")


def test_tokens_and_embedding_equal_the_original(caplog: pytest.LogCaptureFixture) -> None:
    golden, case = load_golden("text")
    encoder = small_clip()
    with caplog.at_level(logging.WARNING):
        assert torch.equal(encoder.tokenize(case["texts"])[:, 0], golden.pop("tokens"))
    assert "lost: 'extremely detailed" in caplog.text
    assert relative_error(encoder(case["texts"]), golden.pop("embedding")) <= 1e-5

    openclip = FrozenOpenCLIPEmbedder(text_config=SMALL_OPEN_CLIP)
    assert torch.equal(openclip.tokenize(case["texts"])[:, 0], golden.pop("open_clip.tokens"))
    assert not golden, f"unchecked: {list(golden)}"


@torch.no_grad()
def test_tokens_equal_open_clips_own() -> None:
    """Two independent tokenizers from one table."""
    prompts = [
        "a house, by the sea; it's 3 o'clock!!",
        "don't we'll I'm they've",
        "naïve Ünïcode — “quotes” … 東京タワー",
        "emoji 🏠🌊 and 1234567 numbers",
        "tabs\tand\nnewlines   and   spaces",
        "under_score e-mail@example.com #hash (parens) [x] {y}",
        "bed &amp;amp; breakfast &lt;b&gt;",
        "x" * 200,
    ]
    ours = FrozenOpenCLIPEmbedder(text_config=SMALL_OPEN_CLIP).tokenize(prompts)[:, 0]
    assert torch.equal(ours, open_clip.tokenize(prompts))


@pytest.mark.parametrize("layer", ["last", "penultimate"])
@torch.no_grad()
def test_open_clip_embedding_equals_open_clip(layer: str) -> None:
    encoder = FrozenOpenCLIPEmbedder(layer=layer, text_config=SMALL_OPEN_CLIP)
    state = fill_by_recipe(encoder).state_dict()
    peer = open_clip.transformer.TextTransformer(output_dim=1024, output_tokens=True, **SMALL_OPEN_CLIP)
    weights = {
        key.removeprefix("model."): tensor for key, tensor in state.items() if key != "model.logit_scale"
    }
    peer.load_state_dict(weights)
    if layer == "penultimate":
        peer.transformer.resblocks = peer.transformer.resblocks[:-1]
    prompts = ["a house", "the sea at night"]
    expected = peer.eval()(open_clip.tokenize(prompts))[1]
    torch.testing.assert_close(encoder(prompts), expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_layers_of_clip() -> None:
    last, hidden = small_clip(), small_clip(layer="hidden", layer_idx=-1)
    norm = last.transformer.text_model.final_layer_norm
    prompts = ["a house"]
    torch.testing.assert_close(norm(hidden(prompts)), last(prompts))
    second = small_clip(layer="hidden", layer_idx=-2)(prompts)
    torch.testing.assert_close(small_clip(clip_skip=2)(prompts), norm(second))
    end = last.tokenize(prompts)[0, 0].argmax()
    torch.testing.assert_close(small_clip(layer="pooled")(prompts)[:, 0], last(prompts)[:, end])


@torch.no_grad()
def test_long_prompts_in_chunks(caplog: pytest.LogCaptureFixture) -> None:
    """Three chunks of 75 tokens, each encoded alone and set side by side."""
    encoder, plain = small_clip(long_prompts="chunk"), small_clip()
    words = ["red", "green", "blue", "house", "sea"]
    long = " ".join(words[i % 5] for i in range(100))
    short = "a house"
    with caplog.at_level(logging.WARNING):
        embedding = encoder([long, short])
    assert embedding.shape == (2, 231, 32) and not caplog.text
    first, second = long.split()[:75], long.split()[75:]
    torch.testing.assert_close(embedding[0, :77], plain([" ".join(first)])[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(embedding[0, 77:154], plain([" ".join(second)])[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(embedding[1, 154:], plain([""])[0], rtol=1e-4, atol=1e-5)
    encoder.tokenize([" ".join([long] * 3)])
    assert "prompt cut after 225 tokens; lost: 'red" in caplog.text


def test_frozen_means_frozen() -> None:
    encoder = small_clip().train()
    assert not encoder.training and not any(p.requires_grad for p in encoder.parameters())
    free = small_clip(freeze=False).train()
    assert free.training and free(["a"]).requires_grad


def test_position_ids_are_accepted_and_never_required() -> None:
    encoder = small_clip()
    state = encoder.state_dict()
    assert not any("position_ids" in key for key in state)
    state["transformer.text_model.embeddings.position_ids"] = torch.arange(77)[None]
    encoder.load_state_dict(state, strict=True)


@pytest.mark.parametrize(
    "params, message",
    [
        ({"layer": "first"}, "layer 'first' unknown"),
        ({"layer": "hidden"}, "layer_idx=None"),
        ({"clip_skip": 13}, "clip_skip=13; expected 1 to 12"),
        ({"max_length": 100}, "max_length=100; expected 3 to 77"),
        ({"long_prompts": "wrap"}, "long_prompts 'wrap' unknown"),
    ],
)
def test_impossible_options_are_named(params: dict, message: str) -> None:
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        instantiate_from_config(
            {"target": "ldm.modules.encoders.modules.FrozenCLIPEmbedder", "params": params}
        )
