"""Every app of the original, end to end: its control picture and its first picture, for all 41 recorded
runs.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from golden_data import load_golden, recipe_state, released_keys
from pose_stand_ins import body_that_says, body_that_sees_nobody
from torch import Tensor, nn

from controlnet.conditions import find_condition, hint_pictures

TENSORS, CASE = load_golden("apps")
BY_NAME = {case["name"]: case for case in CASE["cases"]}
SETTINGS = (
    "prompt", "a_prompt", "n_prompt", "num_samples", "image_resolution", "detect_resolution", "ddim_steps",
    "guess_mode", "strength", "scale", "seed", "eta",
)  # fmt: skip


class LinesAt(nn.Module):
    """An M-LSD network that gives a made-up map: see `what` of the golden file."""

    def __init__(self, points: Tensor):
        super().__init__()
        self.points = points

    def forward(self, x: Tensor) -> Tensor:
        maps = torch.zeros(1, 9, x.shape[2] // 2, x.shape[3] // 2)
        maps[:, 0] = -6
        for y, x_, *values in self.points.tolist():
            maps[0, :5, int(y), int(x_)] = torch.tensor(values)
        return maps


class DepthOfBrightness(nn.Module):
    """The stand-in depth network of the golden file."""

    def forward(self, x: Tensor) -> Tensor:
        smooth = nn.functional.avg_pool2d(x.mean(1, keepdim=True), 9, 1, 4)[:, 0]
        rows = torch.arange(x.shape[2])[:, None]
        columns = torch.arange(x.shape[3])[None]
        return 60 + 40 * smooth + 3 * torch.sin(0.37 * rows + 0.21 * columns)


def saved_weights(
    name: str, folder: Path, change: Callable[[dict[str, Tensor]], None] = lambda s: None
) -> Path:
    """A file as released, filled by the recipe; ``change`` does what the metadata's ``after_fill`` says."""
    path = folder / f"{name}.pth"
    if not path.is_file():
        keys = released_keys(name)
        filled = recipe_state(
            {key: torch.empty(shape) for key, (shape, kind) in keys.items() if "int" not in kind}
        )
        filled |= {
            key: torch.zeros(shape, dtype=torch.int64) for key, (shape, kind) in keys.items() if "int" in kind
        }
        change(filled)
        torch.save(filled, path)
    return path


def quieter_hed(state: dict[str, Tensor]) -> None:
    state["norm"] = torch.full_like(state["norm"], 120.0)
    for block in range(1, 6):
        state[f"block{block}.projection.weight"] *= 0.02


def louder_mlsd(state: dict[str, Tensor]) -> None:
    for part in ("weight", "bias"):
        state[f"block23.conv3.{part}"] *= 40


def raised_depth(state: dict[str, Tensor]) -> None:
    state["scratch.output_conv.4.bias"][:] = 3


@pytest.fixture(scope="module")
def detector_of(tmp_path_factory) -> Callable[[str], Any]:
    """The detector that a case names, each built once."""
    folder, made = tmp_path_factory.mktemp("released"), {}

    def build(name: str) -> Any:
        kind, _, index = name.rpartition(" ")
        if name == "hed":
            from annotator.hed import HEDdetector

            return HEDdetector(saved_weights("ControlNetHED", folder, quieter_hed), device="cpu")
        if name == "mlsd" or kind == "mlsd points":
            from annotator.mlsd import MLSDdetector

            if name == "mlsd":
                return MLSDdetector(saved_weights("mlsd_large_512_fp32", folder, louder_mlsd), device="cpu")
            detector = MLSDdetector(device="cpu")
            detector.model = LinesAt(TENSORS[f"mlsd.points.{index}"])
            return detector
        if name in ("dpt", "depth stand-in"):
            from annotator.midas import MidasDetector

            if name == "dpt":
                return MidasDetector(saved_weights("dpt_hybrid", folder, raised_depth), device="cpu")
            detector = MidasDetector(device="cpu")
            detector.model = DepthOfBrightness()
            return detector
        return build_others(name, kind, index, folder)

    return lambda name: made.setdefault(name, None) or made.update({name: build(name)}) or made[name]


def build_others(name: str, kind: str, index: str, folder: Path) -> Any:
    """Poses and segmentation."""
    from annotator.openpose import Body, OpenposeDetector
    from annotator.uniformer import UniformerDetector

    if name == "nobody":
        return OpenposeDetector(body_that_sees_nobody())
    if kind == "pose maps":
        return OpenposeDetector(body_that_says(TENSORS[f"pose.paf.{index}"], TENSORS[f"pose.heat.{index}"]))
    if name == "body":
        return OpenposeDetector(Body(saved_weights("body_pose_model", folder), device="cpu"))
    if name == "seg":

        def sharper(state: dict[str, Tensor]) -> None:
            state["decode_head.conv_seg.weight"] *= 8

        return UniformerDetector(saved_weights("upernet_global_small", folder, sharper), device="cpu")
    return None


@pytest.mark.parametrize("name", BY_NAME)
def test_pictures_are_the_originals(name: str, detector_of: Callable[[str], Any]):
    case = BY_NAME[name]
    options = {key: value for key, value in case["options"].items() if key not in SETTINGS}
    control, shown = hint_pictures(
        case["hint"],
        TENSORS[case["image"]].numpy(),
        case["options"]["image_resolution"],
        case["options"].get("detect_resolution"),
        detector_of(case["detector"]),
        **options,
    )
    for ours, theirs in ((control, TENSORS[f"control.{name}"]), (shown, TENSORS[f"shown.{name}"])):
        theirs = theirs.numpy()
        assert ours.shape == theirs.shape and ours.dtype == np.uint8
        assert (ours == theirs).mean() >= case["tolerance"]["equal"]
        if case["tolerance"]["off"] is not None:
            off = np.abs(ours.astype(int) - theirs) <= case["tolerance"]["off"]
            assert off.mean() >= case["tolerance"]["within"]


@pytest.mark.parametrize("app", CASE["process_parameters"])
def test_conditions_have_the_originals_inputs(app: str):
    from controlnet.page.api import process_options, process_settings

    condition = find_condition(app.replace("2image", "").replace("pose", "openpose"))
    names = ["input_image", *process_settings(condition), *process_options(condition)]
    assert names == CASE["process_parameters"][app]
