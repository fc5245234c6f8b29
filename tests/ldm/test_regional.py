"""Prompts for parts of the picture, in one attention layer and in whole networks."""

from __future__ import annotations

import pytest
import torch
from golden_data import fill_by_recipe

from ldm.modules.attention import CrossAttention, SpatialTransformer
from ldm.modules.regional import REST, RegionalContext, RegionalPrompts


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def layer() -> CrossAttention:
    return fill_by_recipe(CrossAttention(16, 12, heads=2, dim_head=8)).eval()


X, WHOLE, TEXTS = noise(3, 16, 16), noise(3, 7, 12, seed=1), noise(1, 2, 5, 12, seed=2)
HARD = torch.zeros(2, 2, 4, 4)  # of two pictures: the upper rows have the first text, one pixel the second
HARD[:, 0, :2], HARD[:, 1, 3, 3] = 1, 1


def context(shares: torch.Tensor = HARD, texts: torch.Tensor = TEXTS) -> RegionalContext:
    return RegionalContext(WHOLE, RegionalPrompts(texts, shares)).seen_from(4, 4)


@pytest.mark.parametrize("slice_size", [None, 1, 2])
@torch.no_grad()
def test_with_hard_edges_a_layer_gives_each_place_what_its_text_alone_gives(slice_size):
    attention = layer()
    attention.slice_size = slice_size
    found = attention(X, context()).unflatten(1, (4, 4))
    whole, first, second = (
        attention(X, text).unflatten(1, (4, 4))
        for text in (WHOLE, *(TEXTS[:, k].expand(3, -1, -1) for k in (0, 1)))
    )
    assert torch.equal(found[:2, 2], whole[:2, 2]) and torch.equal(found[:2, 3, :3], whole[:2, 3, :3])
    torch.testing.assert_close(found[:2, :2], first[:2, :2])
    torch.testing.assert_close(found[:2, 3, 3], second[:2, 3, 3])
    assert torch.equal(found[2], whole[2]), "rows without prompts of their own: the unconditional half"
    assert not torch.allclose(found[:2, :2], whole[:2, :2], atol=1e-2)


@torch.no_grad()
def test_a_text_that_equals_the_whole_one_changes_nothing():
    attention = layer()
    same = WHOLE[:2, None].expand(-1, 2, -1, -1)
    torch.testing.assert_close(attention(X, context(HARD * 0.5, same)), attention(X, WHOLE))
    assert torch.equal(attention(X, context(HARD * 0)), attention(X, WHOLE)), "nowhere is nowhere"


def test_weights_of_a_level():
    shares = torch.zeros(1, 2, 8, 8)
    shares[0, 0, :, :4], shares[0, 1, 0, 4] = 1, 1
    prompts = RegionalPrompts(TEXTS, shares)
    weights = prompts.weights(4, 4).view(2, 4, 4)
    assert weights[0, :, :2].eq(1).all() and weights[0, :, 2:].eq(0).all()
    assert weights[1, 0, 2] == pytest.approx(0.25 / (0.25 + REST * 0.75)), "a small thing is heard"
    assert prompts.weights(4, 4) is prompts.weights(4, 4), "once for all layers and steps"
    shares[0, 1, :, 3:5] = 0.5
    shares[0, 0, :, 3] = 0.5
    assert RegionalPrompts(TEXTS, shares).weights(3, 5).sum(1).max() <= 1 + 1e-6


@torch.no_grad()
def test_texts_become_keys_and_values_once():
    attention, text = layer(), context()
    seen: list[int] = []
    attention.to_k.register_forward_hook(lambda *_: seen.append(1))
    for _ in range(3):
        attention(X, text)
    assert len(seen) == 3 + 1


@torch.no_grad()
def test_a_transformer_reads_its_own_size_off_the_feature_map():
    block = fill_by_recipe(SpatialTransformer(32, 2, 16, context_dim=12)).eval()
    x = noise(3, 32, 2, 4)
    plain, found = block(x, WHOLE), block(x, RegionalContext(WHOLE, RegionalPrompts(TEXTS, HARD)))
    assert found.shape == plain.shape and torch.equal(found[2], plain[2])
    assert not torch.equal(found[:2], plain[:2])


def test_impossible_shapes_are_named():
    with pytest.raises(ValueError, match=r"got texts \[1, 2, 5, 12\] with shares \[2, 3, 4, 4\]"):
        RegionalPrompts(TEXTS, torch.zeros(2, 3, 4, 4))
    with pytest.raises(ValueError, match="call seen_from first"):
        _ = RegionalContext(WHOLE, RegionalPrompts(TEXTS, HARD)).weights
