"""The web UI's prompt syntax: its own table of cases, its chunks, and what plain prompts must not notice."""

from __future__ import annotations

import pytest
import torch
from golden_data import fill_by_recipe, load_golden

from ldm.modules.encoders.chunks import encode_chunks, token_chunks
from ldm.modules.encoders.modules import FrozenCLIPEmbedder, FrozenOpenCLIPEmbedder
from ldm.modules.encoders.prompt_syntax import fill_chunks, parse_chunks, parse_weights

WORDS = ["red", "green", "blue", "house", "sea"]
COMMA = 267


def small_clip(**options) -> FrozenCLIPEmbedder:
    _, case = load_golden("text")
    return fill_by_recipe(
        FrozenCLIPEmbedder(text_config=case["text_config"], **options), prefix="cond_stage_model."
    )


def small_open_clip() -> FrozenOpenCLIPEmbedder:
    """Stable Diffusion 2's."""
    config = {"width": 32, "heads": 4, "layers": 3}
    return fill_by_recipe(FrozenOpenCLIPEmbedder(layer="penultimate", text_config=config))


def words(count: int) -> str:
    return " ".join(WORDS[i % 5] for i in range(count))


@pytest.mark.parametrize(
    ("prompt", "pieces"),
    [  # as documented by AUTOMATIC1111's web UI
        ("normal text", [("normal text", 1.0)]),
        ("an (important) word", [("an ", 1.0), ("important", 1.1), (" word", 1.0)]),
        ("(unbalanced", [("unbalanced", 1.1)]),
        (r"\(literal\]", [("(literal]", 1.0)]),
        ("(unnecessary)(parens)", [("unnecessaryparens", 1.1)]),
        (
            "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).",
            [
                ("a ", 1.0), ("house", 1.3 * 1.1**2), (" ", 1.1), ("on", 1.0), (" a ", 1.1), ("hill", 0.55),
                (", sun, ", 1.1), ("sky", 1.1**4), (".", 1.1),
            ],
        ),
        # and what follows from its rules
        ("", [("", 1.0)]),
        ("((a))", [("a", 1.21)]),
        ("[a", [("a", 1 / 1.1)]),
        ("a) b]", [("a) b]", 1.0)]),
        ("a:1.3)", [("a:1.3)", 1.0)]),
        ("(a: 1.5 ) 3:4", [("a", 1.5), (" 3:4", 1.0)]),
        ("(a:.5)(b:-1)(c:2.)", [("a", 0.5), ("b", -1.0), ("c", 2.0)]),
        ("(a:1.2.3)", [("a:1.2.3", 1.1)]),
        ("(a [b) c]", [("a ", 1.1), ("b", 1.0), (" c", 1 / 1.1)]),
        ("[a:b:0.5] [a|b]", [("a:b:0.5", 1 / 1.1), (" ", 1.0), ("a|b", 1 / 1.1)]),
        ("back\\slash \\\\ it", [("backslash \\ it", 1.0)]),
        ("(empty:)", [("empty:", 1.1)]),
    ],
)  # fmt: skip
def test_weights(prompt, pieces):
    found = parse_weights(prompt)
    assert [piece.text for piece in found] == [text for text, _ in pieces]
    assert [piece.weight for piece in found] == pytest.approx([weight for _, weight in pieces])


def test_breaks():
    chunks = parse_chunks("a sky BREAK (a house BREAK a boat:1.2), BREAKFAST")
    assert [[(piece.text, piece.weight) for piece in chunk] for chunk in chunks] == [
        [("a sky", 1.0)],
        [("", 1.0), ("a house", 1.2)],
        [("a boat", 1.2), (", BREAKFAST", 1.0)],
    ]


def test_chunks_end_at_a_near_comma():
    tokens = [(i + 1000, 1.0) for i in range(100)]
    assert [len(chunk) for chunk in fill_chunks([tokens], 75, COMMA)] == [75, 25]
    tokens[60] = (COMMA, 1.0)
    assert [len(chunk) for chunk in fill_chunks([tokens], 75, COMMA)] == [61, 39]
    tokens[60], tokens[50] = (1060, 1.0), (COMMA, 1.0)
    assert [len(chunk) for chunk in fill_chunks([tokens], 75, COMMA)] == [75, 25], "20 tokens back, no more"
    learned = [*tokens[:73], *[(-1 - k, 1.0) for k in range(4)]]
    assert [len(chunk) for chunk in fill_chunks([learned], 75, COMMA)] == [73, 4], (
        "a learned word stays whole"
    )
    assert [len(chunk) for chunk in fill_chunks([[], tokens[:75]], 75, COMMA)] == [0, 75]


@pytest.mark.parametrize("encoder", [small_clip(), small_clip(clip_skip=2), small_open_clip()])
@torch.no_grad()
def test_without_weights_the_embedding_is_the_plain_one_bit_for_bit(encoder):
    prompts = ["a house, by the sea", ""]
    assert torch.equal(encode_chunks(encoder, prompts), encoder(prompts))
    assert torch.equal(encode_chunks(encoder, ["(a house:1.0), by the sea", ""]), encoder(prompts))
    full = [words(75), "a"]
    assert encoder.tokenize(full)[0, 0, -1] == 49407, "75 tokens and no more"
    assert torch.equal(encode_chunks(encoder, full), encoder(full))


@torch.no_grad()
def test_long_prompts_and_breaks_stand_side_by_side():
    encoder = small_clip()
    long = encode_chunks(encoder, [words(80), "a house BREAK a boat"])
    assert long.shape == (2, 154, 32)
    parts = encoder([words(75), words(80)[len(words(75)) :], "a house", "a boat"])
    torch.testing.assert_close(long.view(4, 77, 32), parts, rtol=1e-4, atol=1e-5)
    filled = encode_chunks(encoder, ["a house"], at_least=3).view(3, 77, 32)
    torch.testing.assert_close(filled, encoder(["a house", "", ""]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("encoder", [small_clip(), small_open_clip()])
@torch.no_grad()
def test_weights_multiply_tokens_and_keep_the_mean(encoder):
    plain = encoder(["a red house by the sea", "a"])
    heavy = encode_chunks(encoder, ["a (red:1.5) house by the [sea]", "a"])
    factors = torch.ones(77)
    factors[2], factors[6] = 1.5, 1 / 1.1  # the start, "a", "red" ... "sea"
    expected = plain[0] * factors[:, None]
    torch.testing.assert_close(heavy[0], expected * (plain[0].mean() / expected.mean()), rtol=1e-4, atol=1e-5)
    assert torch.equal(heavy[1], plain[1]), "a neighbour without weights stays as it is"


@torch.no_grad()
def test_learned_words_in_brackets():
    encoder = small_clip()
    encoder.add_embedding(["mist-style"], torch.randn(2, 32, generator=torch.Generator().manual_seed(0)))
    (chunk,) = token_chunks(encoder, "a house, ((mist-style)), (fog:0.5)")
    assert [(token, round(weight, 2)) for token, weight in chunk if token < 0 or weight < 1] == [
        (-1, 1.21), (-2, 1.21), (encoder.ids("fog")[0], 0.5),
    ]  # fmt: skip


def test_a_layer_without_tokens_has_no_place_for_weights():
    encoder = small_clip(layer="pooled")
    assert encode_chunks(encoder, ["a house"]).shape == (1, 1, 32)
    with pytest.raises(ValueError, match="layer 'pooled' has no place for weights"):
        encode_chunks(encoder, ["a (house)"])
