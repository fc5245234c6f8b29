"""Winograd convolutions: the same numbers and keys as ordinary ones, for less work."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import nn

import ldm.winograd
from ldm.packing import can_pack, pack_weights
from ldm.winograd import WinogradConv2d, use_winograd

pytestmark = pytest.mark.skipif(not can_pack(), reason="this torch has no oneDNN")


@pytest.fixture(autouse=True)
def _no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.mark.parametrize("size", [(1, 1), (3, 8), (4, 4), (13, 6), (37, 50)], ids=str)
@pytest.mark.parametrize("values", [1, 30 * 36 * 7, 2**22])
def test_numbers_are_those_of_the_ordinary_convolution(
    size: tuple[int, int], values: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(ldm.winograd, "_VALUES_AT_ONCE", values)
    plain = nn.Conv2d(5, 7, 3, padding=1, bias=size != (4, 4))
    x = torch.randn(2, 5, *size)
    exact = copy.deepcopy(plain).double()(x.double())
    for layout in (torch.contiguous_format, torch.channels_last):
        found = WinogradConv2d(plain)(x.contiguous(memory_format=layout))
        assert found.shape == exact.shape
        assert (found - exact).norm() <= 5e-6 * exact.norm()


def test_only_wide_convolutions_of_the_right_form_are_replaced():
    model = nn.Sequential(
        nn.Conv2d(8, 8, 3, padding=1),
        nn.Conv2d(3, 8, 3, padding=1),
        nn.Conv2d(8, 8, 3, padding=1, stride=2),
        nn.Conv2d(8, 8, 3),
        nn.Conv2d(8, 8, 1),
        nn.Conv2d(8, 8, 3, padding="same"),
        nn.Conv2d(8, 8, 3, padding=1, groups=2),
        nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(8, 8, 3, padding=1, dtype=torch.bfloat16),
        nn.Conv2d(8, 8, 3, padding=1, device="meta"),
        nn.Linear(8, 8),
    )
    before = model.state_dict()
    assert use_winograd(model, least_channels=4) == 1
    assert isinstance(model[0], WinogradConv2d)
    assert use_winograd(model, least_channels=4) == 0
    assert list(model.state_dict()) == list(before)
    assert torch.equal(model.state_dict()["0.weight"], before["0.weight"])
    pack_weights(model)
    assert isinstance(model[0], WinogradConv2d), "packing leaves it as it is"


def test_it_refuses_gradients_other_types_and_new_weights():
    model = nn.Sequential(WinogradConv2d(nn.Conv2d(4, 4, 3, padding=1)))
    model.to("cpu", memory_format=torch.channels_last).eval().requires_grad_(False)
    with torch.enable_grad(), pytest.raises(ValueError, match="takes no gradients"):
        model(torch.randn(1, 4, 4, 4, requires_grad=True))
    with pytest.raises(ValueError, match=r"torch\.float64 on cpu was asked"):
        model.double()
    with pytest.raises(ValueError, match="cannot be changed"):
        model.load_state_dict(model.state_dict())
