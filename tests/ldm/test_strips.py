"""Large feature maps in strips: the same numbers, without seams, where and only where memory asks for it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ldm.models.autoencoder import AutoencoderKL
from ldm.modules import strips
from ldm.modules.attention import attend
from ldm.packing import pack_weights

SIZES = {
    "ch": 16, "out_ch": 3, "ch_mult": [1, 2, 2], "num_res_blocks": 1, "attn_resolutions": [], "num_groups": 8,
    "in_channels": 3, "resolution": 64, "z_channels": 4, "double_z": True,
}  # fmt: skip


@pytest.fixture
def vae():
    torch.manual_seed(0)
    return AutoencoderKL(SIZES, {"target": "torch.nn.Identity"}, 4).eval()


@pytest.fixture
def seen(monkeypatch):
    """The shapes of what goes through convolutions."""
    shapes = []
    forward = nn.Conv2d.forward

    def noting(self, x):
        shapes.append(tuple(x.shape))
        return forward(self, x)

    monkeypatch.setattr(nn.Conv2d, "forward", noting)
    return shapes


def with_budget(monkeypatch, large_map: int, rows: int) -> None:
    monkeypatch.setattr(strips, "LARGE_MAP", large_map)
    monkeypatch.setattr(strips, "ROWS", rows)
    monkeypatch.setattr(strips, "PIXELS", 1)


def both_ways(vae: AutoencoderKL, pictures: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    latents = vae.encode(pictures).mode()
    return latents, vae.decode(latents)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.bfloat16, 5e-2)])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("rows", [5, 16])  # 5: the last strip is narrower, and one row high on the way down
@torch.no_grad()
def test_a_picture_in_strips_is_that_in_one_piece(vae, dtype, bound, packed, rows, monkeypatch):
    vae.to(dtype)
    if packed:
        pack_weights(vae)
    pictures = torch.rand(1, 3, 52, 40) * 2 - 1
    whole = both_ways(vae, pictures)
    with_budget(monkeypatch, 0, rows)
    for expected, in_strips in zip(whole, both_ways(vae, pictures), strict=True):
        assert in_strips.shape == expected.shape
        assert (in_strips - expected).abs().max() <= bound * expected.abs().max()


@torch.no_grad()
def test_strips_are_taken_for_large_maps_alone(vae, seen, monkeypatch):
    both_ways(vae, torch.rand(2, 3, 48, 48))
    assert {shape[0] for shape in seen} == {2}, "small pictures go through together"
    assert all(shape[2] == shape[3] or shape[2] == shape[3] + 1 for shape in seen)
    # The largest map: 48 x 48 pixels with 32 channels. Those of half the size stay whole.
    with_budget(monkeypatch, 4 * 32 * 48 * 48, 16)
    seen.clear()
    vae.decode(torch.randn(2, 4, 12, 12))
    assert {shape[0] for shape in seen[1:]} == {1}, "large ones one after the other"
    assert {shape[2] for shape in seen if shape[3] == 48 and shape[1] == 32} == {17, 18, 2 * 17}
    assert {shape[2] for shape in seen if shape[3] == 24} == {24}


def test_gradients_and_listeners_get_whole_maps(vae, seen, monkeypatch):
    with_budget(monkeypatch, 0, 8)
    latents = torch.randn(1, 4, 12, 12, requires_grad=True)
    vae.decode(latents).sum().backward()
    assert latents.grad is not None and {shape[2] for shape in seen} == {12, 24, 48}
    heard = []
    vae.decoder.up[0].block[0].conv2.register_forward_hook(lambda *call: heard.append(call[2].shape[2]))
    with torch.no_grad():
        vae.decode(latents)
    assert heard == [48]


@torch.no_grad()
def test_attention_never_takes_the_kernel_that_makes_all_scores(monkeypatch):
    given = []
    inner = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        torch.nn.functional,
        "scaled_dot_product_attention",
        lambda q, k, v, *rest, **more: given.extend([q, k, v]) or inner(q, k, v, *rest, **more),
    )
    apart = torch.randn(1, 2, 8, 12).transpose(2, 3)
    expected = inner(apart.contiguous(), apart.contiguous(), apart.contiguous())
    for slice_size in (None, 1):
        torch.testing.assert_close(attend(apart, apart, apart, slice_size), expected)
    assert {x.stride(-1) for x in given} == {1}
