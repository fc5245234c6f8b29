"""Wrappers around weights, and dictionaries within dictionaries."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch

from ldm.nested import unwrapped
from ldm.weights import WeightsError, read_state_dict

ONE = torch.ones(1)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"a": ONE, "epoch": 1}, ["a", "epoch"]),
        ({"state_dict": {"a": ONE}, "epoch": 1}, ["a"]),
        ({"state_dict": {"model": {"module": {"a": ONE}}}}, ["a"]),
        ({"model": {"a": ONE}, "optimizer": {"state": {0: {"exp_avg": ONE}}}}, ["a"]),
        ({"image_proj": {"w": ONE}, "ip_adapter": {"1.w": ONE}}, ["image_proj.w", "ip_adapter.1.w"]),
        ({768: ({"w": ONE}, {"w": ONE}), "step": 1}, ["768.0.w", "768.1.w"]),
        ({"string_to_param": {"*": ONE}, "name": "x"}, ["string_to_param.*"]),
        ({"name": "x", "list": [1, 2]}, ["name", "list"]),
        ({}, []),
    ],
)
def test_what_is_inside(content: dict, expected: list[str]):
    assert sorted(unwrapped(content), key=str) == sorted(expected, key=str)


@pytest.mark.parametrize("content", [None, 3, "text", [ONE]])
def test_what_is_no_dictionary_stays(content: object):
    assert unwrapped(content) is content


def test_lists_of_lists_of_lists_end(tmp_path: Path):
    """A file of a few kilobytes in which 1,000 million entries can be counted."""
    lists: list = [0]
    for _ in range(4):
        lists = [lists] * 200
    torch.save({"a": lists}, tmp_path / "a.pt")
    started = time.perf_counter()
    with pytest.raises(WeightsError, match="holds no tensors; its keys are a"):
        read_state_dict(tmp_path / "a.pt")
    assert time.perf_counter() - started < 5
