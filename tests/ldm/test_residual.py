"""Residuals added along with a product: the same numbers, and nobody who listens notices."""

from __future__ import annotations

import copy

import pytest
import torch
from golden_data import relative_error
from torch import nn

from ldm.modules.attention import BasicTransformerBlock, CrossAttention
from ldm.modules.diffusionmodules.blocks import ResBlock
from ldm.modules.residual import plus
from ldm.packing import can_pack, pack_weights

pytestmark = pytest.mark.skipif(not can_pack(), reason="this torch has no oneDNN")


def filled(module: nn.Module) -> nn.Module:
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.1)
    return module.eval()


@torch.no_grad()
def test_a_packed_layer_adds_and_leaves_the_residual_as_it_is() -> None:
    for layer, x in (
        (nn.Conv2d(6, 8, 3, padding=1), torch.randn(2, 6, 5, 7)),
        (nn.Linear(6, 8), torch.randn(3, 6)),
    ):
        expected = layer(x)
        residual = torch.randn_like(expected)
        kept = residual.clone()
        packed = nn.Sequential(nn.SiLU(), nn.Dropout(0.5), copy.deepcopy(layer)).eval()
        pack_weights(packed)
        assert relative_error(plus(residual, packed[2], x), kept + expected) <= 1e-6
        assert relative_error(plus(residual, packed, x), kept + layer(nn.functional.silu(x))) <= 1e-6
        assert torch.equal(residual, kept)


@torch.no_grad()
def test_ordinary_layers_give_what_they_always_gave() -> None:
    layer = nn.Sequential(nn.Linear(6, 6), nn.Dropout(0.0))
    x = torch.randn(3, 6)
    assert torch.equal(plus(x, layer, x), x + layer(x))


@torch.no_grad()
def test_in_bf16_a_sum_is_rounded_once() -> None:
    x, residual = torch.randn(64, 256).bfloat16(), torch.randn(64, 128).bfloat16()
    plain = nn.Linear(256, 128).bfloat16()
    packed = nn.Sequential(copy.deepcopy(plain))
    if not pack_weights(packed):
        pytest.skip("this processor's oneDNN has no bf16")
    exact = residual.double() + nn.functional.linear(x.double(), plain.weight.double(), plain.bias.double())
    once, twice = (
        relative_error(y.double(), exact) for y in (plus(residual, packed, x), residual + plain(x))
    )
    assert once < 0.9 * twice


def listened_to(block: BasicTransformerBlock, x: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
    """What a hook sees of the attention to the text."""
    seen = []
    hook = block.attn2.register_forward_hook(lambda module, inputs, output: seen.append(output))
    block(x, context)
    hook.remove()
    return seen[0]


@torch.no_grad()
def test_hooks_and_other_peoples_attention_see_no_residual() -> None:
    block = filled(BasicTransformerBlock(32, 4, 8, context_dim=16))
    x, context = torch.randn(2, 9, 32), torch.randn(2, 5, 16)
    expected, heard = block(x, context), listened_to(block, x, context)
    pack_weights(block)
    assert relative_error(block(x, context), expected) <= 1e-5
    assert relative_error(listened_to(block, x, context), heard) <= 1e-5

    inner = CrossAttention.forward

    def theirs(self, x, context=None, mask=None):
        return 2 * inner(self, x, context, mask)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CrossAttention, "forward", theirs)
        doubled = listened_to(block, x, context)
        assert relative_error(block(x, context), expected) > 1e-2
    assert relative_error(doubled, heard) > 1e-2


@torch.no_grad()
def test_a_packed_residual_block_equals_an_ordinary_one() -> None:
    block = filled(ResBlock(32, 16, 0.1, out_channels=64))
    x, emb = torch.randn(2, 32, 6, 6), torch.randn(2, 16)
    expected = block(x, emb)
    pack_weights(block)
    assert relative_error(block(x, emb), expected) <= 1e-5
