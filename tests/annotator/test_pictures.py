"""Every kind of picture people bring gives the right array or a one-line error."""

import io
import logging
import os
import struct
import threading
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms, PngImagePlugin, features

from controlnet.pictures import PictureError, read_index_map, read_picture

NEEDS_AVIF = pytest.mark.skipif(not features.check("avif"), reason="Pillow was built without AVIF")


@pytest.fixture
def rgb() -> np.ndarray:
    """A picture without symmetry, so that a turned or mirrored one shows."""
    return np.random.default_rng(0).integers(0, 256, (24, 40, 3), dtype=np.uint8)


def saved(picture: Image.Image, format: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format, **options)
    return buffer.getvalue()


def png(width: int, height: int, bit_depth: int, color_type: int, rows: bytes) -> bytes:
    """A PNG made by hand, for the kinds that Pillow does not write."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, bit_depth, color_type, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("format", ["PNG", "TIFF", "BMP", "PPM", "WEBP", "JPEG2000"])
def test_lossless_rgb(rgb: np.ndarray, format: str):
    options = {"lossless": True} if format == "WEBP" else {}
    np.testing.assert_array_equal(read_picture(saved(Image.fromarray(rgb), format, **options)), rgb)


@pytest.mark.parametrize("format", ["JPEG", pytest.param("AVIF", marks=NEEDS_AVIF)])
def test_lossy_rgb(format: str):
    picture = Image.new("RGB", (40, 24), (200, 40, 90))
    array = read_picture(saved(picture, format, quality=95))
    assert array.shape == (24, 40, 3)
    np.testing.assert_allclose(array.astype(int), np.broadcast_to((200, 40, 90), array.shape), atol=4)


def test_path_bytes_and_file_give_the_same(rgb: np.ndarray, tmp_path: Path):
    path = tmp_path / "picture.png"
    Image.fromarray(rgb).save(path)
    with path.open("rb") as file:
        arrays = [
            read_picture(path),
            read_picture(str(path)),
            read_picture(path.read_bytes()),
            read_picture(file),
        ]
    for array in arrays:
        assert array.dtype == np.uint8
        np.testing.assert_array_equal(array, rgb)


def test_one_bit():
    bits = np.array([[True, False, True], [False, False, True]])
    expected = np.repeat(bits[:, :, None] * np.uint8(255), 3, axis=2)
    np.testing.assert_array_equal(read_picture(saved(Image.fromarray(bits))), expected)


def test_grey(rgb: np.ndarray):
    grey = rgb[:, :, 0]
    np.testing.assert_array_equal(read_picture(saved(Image.fromarray(grey))), np.stack([grey] * 3, axis=-1))


def test_palette_gives_colors_not_indices(rgb: np.ndarray):
    picture = Image.fromarray(rgb).quantize(16)
    np.testing.assert_array_equal(read_picture(saved(picture)), np.asarray(picture.convert("RGB")))


def test_palette_with_a_transparent_entry():
    picture = Image.new("P", (3, 2), 1)
    picture.putpalette([10, 20, 30, 40, 50, 60])
    picture.putpixel((0, 0), 0)
    array = read_picture(saved(picture, transparency=0))
    assert array[0, 0].tolist() == [255, 255, 255]
    assert array[1, 1].tolist() == [40, 50, 60]


@pytest.mark.parametrize("format", ["PNG", "TIFF", "PPM"])
def test_sixteen_bit_grey_keeps_the_high_byte(rgb: np.ndarray, format: str):
    deep = rgb[:, :, 0].astype(np.uint16) * 257
    np.testing.assert_array_equal(read_picture(saved(Image.fromarray(deep), format))[:, :, 1], rgb[:, :, 0])


def test_sixteen_bit_rgb():
    samples = np.array([[0x1234, 0xABCD, 0xFF00], [0x00FF, 0x8000, 0xFFFF]], dtype=">u2")
    array = read_picture(png(2, 1, 16, 2, b"\0" + samples.tobytes()))
    assert array.tolist() == [[[0x12, 0xAB, 0xFF], [0x00, 0x80, 0xFF]]]


def test_rgba_over_white(rgb: np.ndarray):
    alpha = np.full((24, 40, 1), 0, np.uint8)
    alpha[:12] = 255
    array = read_picture(saved(Image.fromarray(np.concatenate([rgb, alpha], axis=2))))
    np.testing.assert_array_equal(array[:12], rgb[:12])
    assert (array[12:] == 255).all()


@pytest.mark.parametrize("format", ["JPEG", "TIFF"])
def test_cmyk(format: str):
    array = read_picture(saved(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), format))
    assert array.shape == (16, 16, 3)
    np.testing.assert_allclose(array[8, 8].astype(int), [255, 0, 0], atol=3)


@pytest.mark.parametrize(
    ("orientation", "stored"),
    [
        (2, np.fliplr),
        (3, np.rot90),
        (4, np.flipud),
        (6, np.rot90),
        (8, lambda upright: np.rot90(upright, 3)),
    ],
)
@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_exif_rotation(rgb: np.ndarray, orientation: int, stored: Callable, format: str):
    pixels = stored(stored(rgb)) if orientation == 3 else stored(rgb)
    exif = Image.Exif()
    exif[0x0112] = orientation
    np.testing.assert_array_equal(read_picture(saved(Image.fromarray(pixels.copy()), format, exif=exif)), rgb)


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG"])
def test_animations_give_their_first_frame(format: str):
    frames = [Image.new("RGB", (20, 10), color) for color in ("red", "lime", "blue")]
    options = {"lossless": True} if format == "WEBP" else {}
    data = saved(frames[0], format, save_all=True, append_images=frames[1:], duration=100, **options)
    assert Image.open(io.BytesIO(data)).n_frames == 3
    array = read_picture(data)
    assert array.shape == (10, 20, 3)
    assert (array == (255, 0, 0)).all()


@pytest.mark.parametrize("format", ["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP"])
@pytest.mark.parametrize("part", [0.1, 0.5, 0.9])
def test_truncated(rgb: np.ndarray, tmp_path: Path, format: str, part: float):
    whole = saved(Image.fromarray(rgb), format)
    path = tmp_path / f"cut.{format.lower()}"
    path.write_bytes(whole[: int(len(whole) * part)])
    with pytest.raises(PictureError, match=rf"^{path}: .+$"):
        read_picture(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"<!DOCTYPE html><html><body>404</body></html>", "web page"),
        (b"just some text", "not a picture"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "cannot be read|not a picture"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "not a picture"),
    ],
    ids=["empty", "web page", "text", "damaged", "PostScript"],
)
def test_files_that_are_no_pictures(tmp_path: Path, content: bytes, message: str):
    path = tmp_path / "named.png"
    path.write_bytes(content)
    with pytest.raises(PictureError, match=message) as raised:
        read_picture(path)
    assert str(raised.value).startswith(f"{path}: ")
    assert "\n" not in str(raised.value)
    assert str(path) not in raised.value.reason


def test_missing_file(tmp_path: Path):
    with pytest.raises(PictureError, match=r"nothing\.png: no such file"):
        read_picture(tmp_path / "nothing.png")


@pytest.mark.parametrize(("width", "height"), [(8000, 4001), (60_000, 60_000)], ids=["33 megapixels", "bomb"])
def test_too_many_pixels_are_refused_before_decoding(width: int, height: int):
    with pytest.raises(PictureError, match=r"megapixels|bomb"):
        read_picture(png(width, height, 8, 2, b""))


@pytest.mark.parametrize("source", ["pipe.png", "/dev/zero", "folder.png"])
def test_only_regular_files_are_opened(tmp_path: Path, source: str):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    raised: list[PictureError] = []

    def read() -> None:
        with pytest.raises(PictureError, match="not a regular file") as caught:
            read_picture(tmp_path / source)
        raised.append(caught.value)

    thread = threading.Thread(target=read, daemon=True)  # to wait for a pipe would be to wait forever
    thread.start()
    thread.join(timeout=5)
    assert raised and raised[0].name == str(tmp_path / source)


def long_text() -> PngImagePlugin.PngInfo:
    """More than Pillow lets a compressed text become."""
    info = PngImagePlugin.PngInfo()
    info.add_text("story", "x" * (PngImagePlugin.MAX_TEXT_CHUNK + 1), zip=True)
    return info


def wrong_text() -> PngImagePlugin.PngInfo:
    """Compressed in a way that there is not."""
    info = PngImagePlugin.PngInfo()
    info.add(b"zTXt", b"story\0\7nothing")
    return info


def text_behind_the_pixels() -> PngImagePlugin.PngInfo:
    info = PngImagePlugin.PngInfo()
    info.add(b"zTXt", b"story\0\0" + zlib.compress(bytes(PngImagePlugin.MAX_TEXT_CHUNK + 1)), after_idat=True)
    return info


@pytest.mark.parametrize("text", [long_text, wrong_text, text_behind_the_pixels])
def test_pictures_with_odd_texts_are_still_pictures(rgb: np.ndarray, tmp_path: Path, text: Callable):
    data = saved(Image.fromarray(rgb), pnginfo=text())
    (tmp_path / "a.png").write_bytes(data)
    for source in (data, tmp_path / "a.png", io.BytesIO(data)):
        np.testing.assert_array_equal(read_picture(source), rgb)


def test_damaged_exif_data_do_not_cost_the_picture(rgb: np.ndarray, caplog: pytest.LogCaptureFixture):
    data = saved(Image.fromarray(rgb), exif=b"Exif\0\0no EXIF data at all")
    np.testing.assert_array_equal(read_picture(data), rgb)
    assert "its EXIF data cannot be read" in caplog.text


def srgb_profile() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def swapping_profile() -> bytes:
    """A profile whose first channel means blue, and whose last means red."""
    return srgb_profile().replace(b"rXYZ", b"????").replace(b"bXYZ", b"rXYZ").replace(b"????", b"bXYZ")


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "L"])
def test_color_profiles_are_applied(rgb: np.ndarray, mode: str):
    picture = Image.fromarray(rgb).convert(mode)
    array = read_picture(saved(picture, icc_profile=swapping_profile()))
    expected = np.asarray(picture.convert("RGB"))[:, :, ::-1]
    np.testing.assert_allclose(array.astype(int), expected, atol=1)


def test_transparent_colors_with_a_profile_lie_over_white(rgb: np.ndarray):
    picture = Image.fromarray(rgb)
    picture.putalpha(Image.linear_gradient("L").resize(picture.size))
    array = read_picture(saved(picture, icc_profile=swapping_profile()))
    np.testing.assert_allclose(array.astype(int), read_picture(saved(picture))[:, :, ::-1], atol=1)


@pytest.mark.parametrize("deep", [False, True])
def test_grey_profiles_are_applied(deep: bool):
    """A profile of linear light: half the light is more than half of sRGB's numbers."""
    curve = struct.pack(">4sII", b"curv", 0, 0)
    white = struct.pack(">4sI3i", b"XYZ ", 0, 0xF6D6, 0x10000, 0xD32D)
    tags = [(b"wtpt", white), (b"kTRC", curve)]
    table, place, body = struct.pack(">I", len(tags)), 132 + 12 * len(tags), b""
    for name, content in tags:
        table += struct.pack(">4sII", name, place + len(body), len(content))
        body += content
    head = struct.pack(">I4sI4s4s4s", 0, b"test", 0x02100000, b"mntrGRAY"[:4], b"GRAY", b"XYZ ")
    head = (head + bytes(12) + b"acsp").ljust(68, b"\0") + white[8:]
    profile = head.ljust(128, b"\0") + table + body
    profile = struct.pack(">I", len(profile)) + profile[4:]
    grey = np.full((4, 4), 128, np.uint8)
    picture = Image.fromarray(grey.astype(np.uint16) * 257 if deep else grey)
    array = read_picture(saved(picture, icc_profile=profile))
    np.testing.assert_allclose(array.astype(int), 188, atol=1)


def test_srgb_profiles_change_no_bit(rgb: np.ndarray):
    np.testing.assert_array_equal(read_picture(saved(Image.fromarray(rgb), icc_profile=srgb_profile())), rgb)


@pytest.mark.parametrize("profile", [b"no profile", srgb_profile()[:300], bytes(2000)])
def test_profiles_that_are_none_are_told_and_left_alone(
    rgb: np.ndarray, profile: bytes, caplog: pytest.LogCaptureFixture
):
    with caplog.at_level(logging.WARNING):
        np.testing.assert_array_equal(read_picture(saved(Image.fromarray(rgb), icc_profile=profile)), rgb)
    assert "colour profile cannot be used" in caplog.text


def test_index_maps_keep_their_numbers_whatever_their_profile():
    indices = np.arange(150, dtype=np.uint8).reshape(10, 15)
    data = saved(Image.fromarray(indices), icc_profile=swapping_profile())
    np.testing.assert_array_equal(read_index_map(data), indices)


def test_float_pictures_are_refused():
    with pytest.raises(PictureError, match="32 bits"):
        read_picture(saved(Image.fromarray(np.zeros((4, 4), np.float32)), "TIFF"))


def test_index_maps_keep_their_numbers():
    indices = np.arange(150, dtype=np.uint8).reshape(10, 15)
    grey = Image.fromarray(indices)
    palette = grey.copy()
    palette.putpalette(list(range(255, -1, -1)) * 3)
    deep = Image.fromarray(indices.astype(np.uint16))
    for picture in (grey, palette, deep):
        np.testing.assert_array_equal(read_index_map(saved(picture)), indices)


def test_index_maps_of_few_bits_are_not_stretched():
    np.testing.assert_array_equal(read_index_map(png(2, 2, 4, 0, b"\0\x1f\0\x70")), [[1, 15], [7, 0]])
    np.testing.assert_array_equal(read_index_map(png(2, 2, 1, 0, b"\0\x40\0\x80")), [[0, 1], [1, 0]])


@pytest.mark.parametrize(
    ("picture", "format", "message"),
    [
        (Image.new("L", (8, 8), 3), "JPEG", "stored exactly"),
        (Image.new("RGB", (8, 8)), "PNG", "one channel"),
        (Image.fromarray(np.full((8, 8), 300, np.uint16)), "PNG", "up to 300"),
    ],
    ids=["JPEG", "colour", "values above 255"],
)
def test_what_is_no_index_map_is_refused(picture: Image.Image, format: str, message: str):
    with pytest.raises(PictureError, match=message):
        read_index_map(saved(picture, format))
