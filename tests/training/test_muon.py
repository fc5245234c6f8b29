"""The optimizer that learns small networks in few steps."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from controlnet.training.muon import Muon, orthogonalize


@pytest.mark.parametrize("shape", [(8, 72), (72, 8), (16, 16)])
def test_singular_values_become_about_one(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    matrix = torch.randn(shape) * 1e-4
    values = torch.linalg.svdvals(orthogonalize(matrix))
    assert values.min() > 0.5 and values.max() < 1.3
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    assert (orthogonalize(matrix) * (left @ right)).sum() / min(shape) > 0.85  # the nearest orthogonal matrix


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 16, 3), nn.SiLU(), nn.Conv2d(16, 16, 3), nn.SiLU(), nn.Conv2d(16, 2, 3))


def test_convolutions_are_orthogonalized_and_the_rest_is_as_with_adamw() -> None:
    ours, theirs = network(), network()
    x = torch.randn(4, 3, 12, 12)
    muon = Muon(ours.parameters(), lr=1e-2, weight_decay=0.1)
    adamw = torch.optim.AdamW(theirs.parameters(), lr=1e-2, betas=(0.9, 0.95), weight_decay=0.1)
    before = ours[2].weight.detach().clone()
    for optimizer, model in ((muon, ours), (adamw, theirs)):
        model(x).square().mean().backward()
        optimizer.step()
    torch.testing.assert_close(ours[4].weight, theirs[4].weight)  # of two output channels, so no hidden layer
    torch.testing.assert_close(ours[2].bias, theirs[2].bias)
    step = (ours[2].weight - before * (1 - 1e-3)).flatten(1) / (1e-2 * 0.2 * 144**0.5)
    assert torch.linalg.svdvals(step).min() > 0.5 and torch.linalg.svdvals(step).max() < 1.3


def test_goes_on_from_its_state() -> None:
    straight = network()
    x = torch.randn(4, 3, 12, 12)
    optimizer = Muon(straight.parameters(), lr=1e-2)

    def steps(model: nn.Module, optimizer: Muon) -> None:
        for _ in range(3):
            optimizer.zero_grad()
            (model(x) - 1).square().mean().backward()
            optimizer.step()

    steps(straight, optimizer)
    resumed = copy.deepcopy(straight)
    other = Muon(resumed.parameters(), lr=1.0)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    steps(straight, optimizer)
    steps(resumed, other)
    for a, b in zip(straight.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)
