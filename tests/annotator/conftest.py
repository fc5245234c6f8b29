"""A detector small enough for tests: UPerNet on a UniFormer of four blocks, with weights by the golden
recipe.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import golden_data
import pytest
import torch

from annotator.uniformer import UniformerDetector
from annotator.uniformer.segmentor import build_segmentor

TINY_CONFIG = """
norm_cfg = dict(type="SyncBN", requires_grad=True)
model = dict(
    type="EncoderDecoder",
    pretrained="https://example.com/never-fetched.pth",
    data_preprocessor=dict(
        type="SegDataPreProcessor", mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True
    ),
    backbone=dict(type="UniFormer", embed_dim=[8, 16, 16, 16], layers=[1, 1, 1, 1], head_dim=8),
    decode_head=dict(
        type="UPerHead", in_channels=[8, 16, 16, 16], in_index=[0, 1, 2, 3], channels=16, num_classes=150,
        norm_cfg=norm_cfg, align_corners=False,
    ),
    test_cfg=dict(mode="whole"),
)
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=(256, 64), keep_ratio=True),
    dict(type="LoadAnnotations"),
    dict(type="PackSegInputs"),
]
"""


class DetectorFiles(NamedTuple):
    config: Path
    checkpoint: Path

    def detector(self, **options) -> UniformerDetector:
        return UniformerDetector(self.checkpoint, self.config, device="cpu", **options)


def _save_filled(config: Path, checkpoint: Path) -> None:
    """Fill the network of a config by the recipe and save it as mmseg does, with other things beside the
    weights.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Default ``avg_non_ignore``")
        model = golden_data.fill_by_recipe(build_segmentor(config))
    with torch.no_grad():
        model.decode_head.conv_seg.weight *= 8  # many classes in every map
    torch.save({"meta": {"CLASSES": ("a", "b"), "epoch": 1}, "state_dict": model.state_dict()}, checkpoint)


@pytest.fixture(scope="session")
def save_filled() -> Callable[[Path, Path], None]:
    """``save_filled(config, checkpoint)``."""
    return _save_filled


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> DetectorFiles:
    folder = tmp_path_factory.mktemp("tiny_detector")
    files = DetectorFiles(folder / "config.py", folder / "tiny.pth")
    files.config.write_text(TINY_CONFIG)
    _save_filled(*files)
    return files
