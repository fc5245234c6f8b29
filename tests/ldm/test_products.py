"""Attention by oneDNN's products: as exact as bfloat16 is, and where it cannot be, another way is taken."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from golden_data import relative_error

from ldm.modules import products
from ldm.modules.attention import attend


def tensors(n: int, m: int, width: int, size: float = 1.5, offset: float = 0.0) -> list[torch.Tensor]:
    """Queries, keys and values as a layer makes them: heads lie next to each other in memory."""
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.randn(2, count, 3, width, generator=generator) * size for count in (n, m, m)]
    drawn[1] += offset
    return [tensor.bfloat16().transpose(1, 2) for tensor in drawn]


@pytest.fixture(autouse=True)
def small_ones_too(monkeypatch: pytest.MonkeyPatch) -> None:
    if not products.pays(*tensors(512, 512, 8)):
        pytest.skip("this torch's oneDNN has no bf16 on this processor")
    monkeypatch.setattr(products, "LEAST_SCORES", 1)
    monkeypatch.setattr(products, "SCORES_AT_ONCE", 1)
    monkeypatch.setattr(products, "ROWS", 128 // torch.get_num_threads())


@pytest.mark.parametrize(("n", "m", "width"), [(300, 200, 40), (65, 77, 80), (64, 300, 15), (1, 1, 16)])
@pytest.mark.parametrize("scale", [None, 0.3])
@torch.no_grad()
def test_it_is_what_attention_is(n: int, m: int, width: int, scale: float | None) -> None:
    q, k, v = tensors(n, m, width)
    exact = F.scaled_dot_product_attention(q.double(), k.double(), v.double(), scale=scale)
    result = products.attend_by_products(q, k, v, scale)
    assert result.shape == exact.shape and result.dtype == torch.bfloat16
    assert result.transpose(1, 2).is_contiguous()
    assert relative_error(result.double(), exact) <= 1e-2
    assert torch.equal(attend(q, k, v, scale=scale), result)


@torch.no_grad()
def test_what_all_keys_have_in_common_costs_nothing() -> None:
    q, k, v = tensors(64, 64, 40, offset=40.0)
    exact = F.scaled_dot_product_attention(q.double(), k.double(), v.double())
    assert relative_error(products.attend_by_products(q, k, v).double(), exact) <= 1e-2


@torch.no_grad()
def test_rounding_does_not_bring_large_scores_above_their_bound() -> None:
    key = torch.full((64, 16), 32.0)
    key[1::2, 0] -= 0.25  # scores of 4096 and 4094, without rounding
    key[32:] *= -1  # their mean is 0
    k = key.bfloat16()[None, None]
    v = torch.randn(1, 1, 64, 16, generator=torch.Generator().manual_seed(0)).bfloat16()
    exact = F.scaled_dot_product_attention(k.double(), k.double(), v.double())
    assert relative_error(products.attend_by_products(k, k, v).double(), exact) <= 1e-2


@torch.no_grad()
def test_heads_with_wide_scores_go_by_torchs_kernel_from_there_on() -> None:
    q, k, v = tensors(256, 100, 40)
    q[1, 2, 130] *= 60  # in the second of two blocks
    exact = F.scaled_dot_product_attention(q.double(), k.double(), v.double())
    result = products.attend_by_products(q, k, v)
    assert relative_error(result.double(), exact) <= 1e-2
    # In 4 dimensions, where torch does not make all scores at once.
    rest = F.scaled_dot_product_attention(q[1:, 2:, 128:], k[1:, 2:], v[1:, 2:])
    assert torch.equal(result[1, 2, 128:], rest[0, 0])
    k[0, 0, 0, 0] = float("nan")
    assert products.attend_by_products(q, k, v).isnan().any(-1).any(-1).tolist() == [
        [True, False, False],
        [False, False, False],
    ]


def test_gradients_masks_slices_and_other_types_go_another_way() -> None:
    q, k, v = tensors(64, 64, 40)
    assert products.pays(q, k, v) and not products.pays(q.requires_grad_(), k, v)
    attend(q, k, v).sum().backward()
    assert q.grad is not None
    assert not products.pays(q.float(), k.float(), v.float())
    with torch.no_grad():
        assert products.pays(q, k, v) and not products.pays(q.to("meta"), k.to("meta"), v.to("meta"))
        mask = torch.rand(64, 64) < 0.5
        assert torch.equal(attend(q, k, v, mask=mask), F.scaled_dot_product_attention(q, k, v, mask))
