"""Maps as people bring them: clean, BGR, JPEG, anti-aliased, with foreign colours, and as indices."""

from __future__ import annotations

import io

import cv2
import numpy as np
import pytest
from PIL import Image, ImageCms

from annotator.ade20k import CLASSES, PALETTE, colorize, labels_from_colors
from controlnet.conditions.seg.validator import MapReport, validate_map
from controlnet.pictures import PictureError

ROAD, SKYSCRAPER = CLASSES.index("road"), CLASSES.index("skyscraper")


@pytest.fixture(scope="module")
def labels() -> np.ndarray:
    """Areas of 20 classes around random points, 240 by 320."""
    random = np.random.default_rng(1)
    points = random.integers(0, (240, 320), (20, 2))
    classes = random.choice([i for i in range(150) if i not in (ROAD, SKYSCRAPER)], 20, replace=False)
    rows, columns = np.mgrid[:240, :320]
    nearest = ((rows[..., None] - points[:, 0]) ** 2 + (columns[..., None] - points[:, 1]) ** 2).argmin(
        axis=-1
    )
    return classes[nearest].astype(np.uint8)


@pytest.fixture(scope="module")
def colors(labels: np.ndarray) -> np.ndarray:
    return colorize(labels)


def saved(picture: Image.Image, format: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format, **options)
    return buffer.getvalue()


def share_right(report: MapReport, labels: np.ndarray) -> float:
    np.testing.assert_array_equal(labels_from_colors(report.colors), report.labels)
    return float(np.mean(report.labels == labels))


def test_clean_map_passes_without_a_word(labels: np.ndarray, colors: np.ndarray):
    for source in (colors, saved(Image.fromarray(colors))):
        report = validate_map(source)
        np.testing.assert_array_equal(report.labels, labels)
        np.testing.assert_array_equal(report.colors, colors)
        assert (report.kind, report.touched, report.warnings) == ("color map", 0, ())
        assert sum(part.pixels for part in report.classes) == labels.size


def test_swapped_channels_are_swapped_back(labels: np.ndarray, colors: np.ndarray):
    report = validate_map(saved(Image.fromarray(colors[:, :, ::-1])))
    np.testing.assert_array_equal(report.labels, labels)
    assert (report.kind, report.touched) == ("BGR color map", 0)
    assert "BGR" in report.warnings[0]


@pytest.mark.parametrize("swapped", [False, True])
def test_jpeg(labels: np.ndarray, colors: np.ndarray, swapped: bool):
    picture = Image.fromarray(colors[:, :, ::-1] if swapped else colors)
    report = validate_map(saved(picture, "JPEG", quality=90, subsampling=0))
    assert share_right(report, labels) > 0.97
    assert report.kind == ("BGR color map" if swapped else "color map")
    assert report.touched > 0
    assert any("JPEG, which changes colours" in warning for warning in report.warnings)


def test_anti_aliased_edges(labels: np.ndarray, colors: np.ndarray):
    blurred = cv2.resize(cv2.resize(colors, (480, 360)), (320, 240), interpolation=cv2.INTER_AREA)
    exact = (blurred == colors).all(axis=-1)
    assert 0.5 < exact.mean() < 0.97, "the map must have blended edges"
    report = validate_map(blurred)
    assert share_right(report, labels) > 0.99
    assert (report.labels[exact] == labels[exact]).all()
    assert any("anti-alias" in warning for warning in report.warnings)


def test_foreign_colors_snap_to_the_nearest_class_and_are_counted(labels: np.ndarray, colors: np.ndarray):
    colors = colors.copy()
    colors[10:30, 40:70] = (200, 10, 120)
    nearest = int(((PALETTE.astype(int) - (200, 10, 120)) ** 2).sum(axis=1).argmin())
    report = validate_map(colors)
    assert (report.labels[10:30, 40:70] == nearest).all()
    report.labels[10:30, 40:70] = labels[10:30, 40:70]
    np.testing.assert_array_equal(report.labels, labels)
    assert report.touched == 600
    assert {part.name: part.touched for part in report.classes if part.touched} == {CLASSES[nearest]: 600}
    assert any("(200, 10, 120)" in warning and CLASSES[nearest] in warning for warning in report.warnings)


def test_nearest_is_the_nearest_of_all_classes():
    colors = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    squares = colors.repeat(4, axis=0).repeat(4, axis=1)
    distances = ((colors[:, :, None].astype(int) - PALETTE.astype(int)) ** 2).sum(axis=-1)
    expected = distances.argmin(axis=-1).repeat(4, axis=0).repeat(4, axis=1)
    report = validate_map(squares)
    np.testing.assert_array_equal(report.labels, expected)
    assert any("is this a segmentation map" in warning for warning in report.warnings)


def test_shared_color_is_told():
    report = validate_map(colorize(np.full((8, 8), SKYSCRAPER)))
    assert (report.labels == ROAD).all()
    assert any("64 pixels" in warning and "skyscraper" in warning for warning in report.warnings)


def transparent(picture: Image.Image, mask: np.ndarray) -> Image.Image:
    """The picture, wholly transparent where the mask says so."""
    picture = picture.copy()
    picture.putalpha(Image.fromarray(np.where(mask, 0, 255).astype(np.uint8)))
    return picture


@pytest.mark.parametrize("kind", ["color map", "index map", "BGR color map"])
def test_transparent_pixels_are_unlabelled(labels: np.ndarray, colors: np.ndarray, kind: str):
    """They were laid over white, and white reads as windowpane."""
    mask = np.zeros(labels.shape, bool)
    mask[50:53, 60:300] = True
    stored = {"color map": colors, "BGR color map": colors[:, :, ::-1], "index map": labels}[kind].copy()
    stored[mask] = 7  # what an eraser leaves behind
    report = validate_map(saved(transparent(Image.fromarray(stored), mask)))
    assert report.kind == kind
    np.testing.assert_array_equal(report.labels[~mask], labels[~mask])
    assert share_right(report, labels) > 0.998
    assert set(np.unique(report.labels)) <= set(np.unique(labels))
    assert report.touched == 720
    assert any("720 pixels are transparent" in warning for warning in report.warnings)


def test_a_transparent_entry_of_a_palette_is_unlabelled(labels: np.ndarray):
    numbers = np.where(labels == labels[0, 0], 200, labels)
    palette = np.pad(PALETTE, ((0, 106), (0, 0)))
    report = validate_map(saved(palette_picture(numbers, palette), transparency=200))
    assert labels[0, 0] not in report.labels
    np.testing.assert_array_equal(report.labels[numbers != 200], labels[numbers != 200])
    assert any("transparent" in warning for warning in report.warnings)


def test_half_transparent_edges_keep_their_color(labels: np.ndarray, colors: np.ndarray):
    picture = Image.fromarray(colors)
    picture.putalpha(Image.fromarray(np.random.default_rng(0).integers(1, 256, labels.shape, dtype=np.uint8)))
    report = validate_map(saved(picture))
    np.testing.assert_array_equal(report.labels, labels)
    assert (report.touched, report.warnings) == (0, ())


def test_a_wholly_transparent_map_is_refused(colors: np.ndarray):
    picture = transparent(Image.fromarray(colors), np.ones(colors.shape[:2], bool))
    with pytest.raises(ValueError, match="all of it is transparent"):
        validate_map(saved(picture))


def test_colors_of_maps_are_names_whatever_the_profile(labels: np.ndarray, colors: np.ndarray):
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    other = srgb.replace(b"rXYZ", b"????").replace(b"bXYZ", b"rXYZ").replace(b"????", b"bXYZ")
    report = validate_map(saved(Image.fromarray(colors), icc_profile=other))
    np.testing.assert_array_equal(report.labels, labels)
    assert report.warnings == ()


def palette_picture(labels: np.ndarray, palette: np.ndarray) -> Image.Image:
    picture = Image.fromarray(labels)
    picture.putpalette(palette.tobytes())
    return picture


def index_sources(labels: np.ndarray) -> dict[str, bytes | np.ndarray]:
    return {
        "grey PNG": saved(Image.fromarray(labels)),
        "16-bit PNG": saved(Image.fromarray(labels.astype(np.uint16))),
        "palette PNG in ADE20K's colours": saved(palette_picture(labels, PALETTE)),
        "palette PNG in other colours": saved(palette_picture(labels, PALETTE[::-1])),
        "array": labels.astype(np.int64),
        "grey array": np.stack([labels] * 3, axis=-1),
    }


@pytest.mark.parametrize("kind", index_sources(np.zeros((1, 1), np.uint8)))
def test_index_maps_keep_every_class(kind: str):
    every_class = np.arange(150, dtype=np.uint8).reshape(10, 15)
    sources = index_sources(every_class)
    if (
        kind == "palette PNG in other colours"
    ):  # all its colours are ADE20K's, with other numbers: a colour map
        expected = labels_from_colors(PALETTE[::-1][every_class])
    else:
        expected = every_class
    report = validate_map(sources[kind])
    np.testing.assert_array_equal(report.labels, expected)
    assert report.touched == 0


def test_palette_of_foreign_colors_is_an_index_map(labels: np.ndarray):
    report = validate_map(saved(palette_picture(labels, np.arange(768, dtype=np.uint8).reshape(256, 3))))
    np.testing.assert_array_equal(report.labels, labels)
    assert report.kind == "index map"


def test_numbers_from_one_and_pixels_without_a_class(labels: np.ndarray):
    numbers = labels.astype(np.uint8) + 1
    numbers[:4, :4] = 150
    numbers[100, 100] = 0
    numbers[120:123, 50] = 255
    report = validate_map(numbers)
    assert (report.labels[:4, :4] == 149).all()
    assert report.touched == 4
    np.testing.assert_array_equal(report.labels[4:], labels[4:])
    assert any("1 was taken off" in warning for warning in report.warnings)


def test_grey_map_of_grey_colors_is_a_color_map():
    report = validate_map(saved(Image.fromarray(np.array([[120, 140], [230, 220]], np.uint8))))
    assert [CLASSES[label] for label in report.labels.ravel()] == ["wall", "road", "windowpane", "mirror"]


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        (saved(Image.new("L", (8, 8), 3), "JPEG"), PictureError, "stored exactly"),
        (np.array([[0, 181]]), ValueError, "181"),
        (np.array([[255, 255]]), ValueError, "no pixel with a class"),
        (np.zeros((4, 4, 4), np.uint8), ValueError, r"\[4, 4, 4\]"),
        (np.zeros((4, 4), np.float32), ValueError, "float32"),
        (b"<html>", PictureError, "web page"),
    ],
    ids=["grey JPEG", "too many classes", "empty", "RGBA", "float", "web page"],
)
def test_what_is_no_map_is_refused(source: bytes | np.ndarray, error: type, message: str):
    with pytest.raises(error, match=message):
        validate_map(source)


def test_report_reads_as_text(colors: np.ndarray):
    text = str(validate_map(colors[:, :, ::-1]))
    assert text.startswith("BGR color map, 320x240, 20 classes, 0 pixels touched\n")
    assert "! Red and blue were swapped" in text
