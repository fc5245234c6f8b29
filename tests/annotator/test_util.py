"""HWC3 and resize_image against the original's results, and the sizes they refuse."""

from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from annotator.util import HWC3, resize_image

GOLDEN = Path(__file__).parents[1] / "golden" / "image_util.safetensors"
RESOLUTIONS = (512, 256, 128, 320, 64)


@pytest.mark.parametrize(("index", "resolution"), list(enumerate(RESOLUTIONS)))
def test_matches_the_original(index: int, resolution: int):
    with safe_open(GOLDEN, "np") as golden:
        tensors = {
            name: golden.get_tensor(f"{name}.{index}")
            for name in ("image", "hwc3", "shape", "mean", "corner")
        }
    picture = HWC3(tensors["image"])
    np.testing.assert_array_equal(picture, tensors["hwc3"])
    resized = resize_image(picture, resolution)
    assert resized.shape == tuple(tensors["shape"])
    # OpenCV's Lanczos differs by one step here and there between its versions and instruction sets.
    np.testing.assert_allclose(resized.mean(axis=(0, 1)), tensors["mean"], atol=0.05)
    np.testing.assert_allclose(resized[:16, :16].astype(int), tensors["corner"].astype(int), atol=1)


def test_grey_without_a_channel_axis():
    grey = np.arange(6, dtype=np.uint8).reshape(2, 3)
    np.testing.assert_array_equal(HWC3(grey), np.stack([grey] * 3, axis=-1))


@pytest.mark.parametrize(
    "picture",
    [np.zeros((4, 4, 2), np.uint8), np.zeros((4, 4, 3), np.float32), np.zeros((1, 4, 4, 3), np.uint8)],
    ids=["two channels", "float", "four dimensions"],
)
def test_refuses_what_is_no_picture(picture: np.ndarray):
    with pytest.raises(ValueError, match="must be"):
        HWC3(picture)


@pytest.mark.parametrize(
    ("shape", "resolution", "message"),
    [((1, 2000, 3), 512, "megapixels"), ((100, 100, 3), 30, "rounds to 0"), ((0, 5, 3), 512, "empty")],
)
def test_refuses_sizes_that_cannot_be(shape: tuple[int, int, int], resolution: int, message: str):
    with pytest.raises(ValueError, match=message):
        resize_image(np.zeros(shape, np.uint8), resolution)
