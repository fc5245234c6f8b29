"""Stock mmseg configs: our labels against those of mmseg's own `inference_model`."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import mmseg
import numpy as np
import pytest
import torch

from annotator.uniformer import UniformerDetector
from annotator.uniformer.upernet_inference import UPerHeadForInference

STOCK = Path(mmseg.__file__).parent / ".mim" / "configs"
PIPELINE = """
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=(256, 64), keep_ratio=True),
    dict(type="LoadAnnotations", reduce_zero_label=True),
    dict(type="PackSegInputs"),
]
"""
# mmseg's own networks, with fewer channels in the heads and smaller pictures: the rest is as it comes.
CONFIGS = {
    "UPerNet-R50": f"""
_base_ = [{str(STOCK / "upernet" / "upernet_r50_4xb4-80k_ade20k-512x512.py")!r}]
model = dict(decode_head=dict(channels=24), auxiliary_head=dict(channels=8))
""",
    "UPerNet-R50, sliding window": f"""
_base_ = [{str(STOCK / "upernet" / "upernet_r50_4xb4-80k_ade20k-512x512.py")!r}]
model = dict(
    decode_head=dict(channels=24, align_corners=True), auxiliary_head=dict(channels=8),
    test_cfg=dict(mode="slide", crop_size=(64, 64), stride=(32, 32)),
)
""",
    "UPerNet-R50, two classes in one channel": f"""
_base_ = [{str(STOCK / "upernet" / "upernet_r50_4xb4-80k_ade20k-512x512.py")!r}]
head = dict(channels=8, num_classes=2, out_channels=1, threshold=0.6,
            loss_decode=dict(type="CrossEntropyLoss", use_sigmoid=True))
model = dict(decode_head=head, auxiliary_head=head)
""",
    "Segformer, BGR": f"""
_base_ = [{str(STOCK / "segformer" / "segformer_mit-b0_8xb2-160k_ade20k-512x512.py")!r}]
model = dict(data_preprocessor=dict(bgr_to_rgb=False, test_cfg=dict(size_divisor=32)))
""",
}


@pytest.mark.parametrize("name", CONFIGS)
def test_labels_are_mmsegs(name: str, save_filled: Callable[[Path, Path], None], tmp_path: Path):
    from mmseg.apis import inference_model, init_model

    config, checkpoint = tmp_path / "config.py", tmp_path / "weights.pth"
    config.write_text(CONFIGS[name] + PIPELINE)
    save_filled(config, checkpoint)
    picture = np.random.default_rng(0).integers(0, 256, (50, 83, 3), dtype=np.uint8)

    detector = UniformerDetector(checkpoint, config, "cpu")
    ours = detector.labels(picture)
    assert isinstance(detector.model.decode_head, UPerHeadForInference) == name.startswith("UPerNet")

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peer = init_model(str(config), device="cpu")
    state = torch.load(checkpoint, weights_only=True)["state_dict"]
    peer.load_state_dict(state)
    theirs = inference_model(peer, np.ascontiguousarray(picture[:, :, ::-1])).pred_sem_seg.data[0].numpy()
    assert len(np.unique(theirs)) > (1 if "two classes" in name else 5)
    assert np.mean(ours == theirs) >= 0.999
