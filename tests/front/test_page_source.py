"""From a picture on the page: a painted mask, sides, a second pass, and everything that comes back."""

from __future__ import annotations

import io

import gradio as gr
import numpy as np
import pytest
from front.in_browser import browser_test, drag, generate, set_number, upload, visit
from front.small_page import draw
from front.test_page_several import choose
from front.test_page_work import drop
from PIL import Image

from controlnet.generation.from_source import feathered, for_canvas
from controlnet.generation.png import read_request, save_png
from controlnet.generation.request import Request
from controlnet.page.editors.mask import MOST_SIDE, edited_mask, show_mask
from controlnet.page.from_source import NUMBERS, FromSourcePanel, lay_out_from_source

FOLD = "#from-picture"


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)))


def set_field(tab, label: str, value: float) -> None:
    field = tab.locator(FOLD).get_by_label(label, exact=True)
    field.fill(str(value))
    field.press("Tab")


def begin(tab, path) -> None:
    """The page's picture is what runs begin from."""
    upload(tab, path)
    set_number(tab, "Steps", 4)
    set_number(tab, "Seed", 5)
    tab.locator(f"{FOLD} > button").click()
    tab.locator("#begin-picture").click()
    tab.wait_for_selector("#mask .mask-board[data-state=ready]")


@browser_test
def test_what_is_painted_is_drawn_anew_and_the_rest_is_kept(tab, browser, server, tmp_path):
    save_png(tmp_path / "scene.png", draw())
    begin(tab, tmp_path / "scene.png")
    drag(tab, (0.3, 0.3), (0.7, 0.3), "#mask")
    tab.wait_for_selector("#mask [data-out=note]:has-text('is drawn anew, the rest is kept')")
    set_field(tab, "number input for Feather", 2)
    saved = generate(tab)
    request = read_request(io.BytesIO(saved))
    np.testing.assert_array_equal(request.source, draw())
    assert request.mask[19, 32] == 255 and not request.mask[48:].any() and request.feather == 2
    kept = feathered(request.mask, 2) == 0
    np.testing.assert_array_equal(pixels(saved)[kept], draw()[kept])
    assert (pixels(saved) != draw()).any(axis=2)[request.mask == 255].mean() > 0.5
    tab.wait_for_url("**/#*source=*")

    other = visit(browser, server)
    drop(other, saved, "saved.png")
    other.wait_for_selector("#status :text('Everything is as it was')")
    other.wait_for_selector("#mask .mask-board[data-state=ready]")
    np.testing.assert_array_equal(pixels(generate(other)), pixels(saved))
    other.context.close()

    linked = visit(browser, tab.url)
    linked.wait_for_selector("#status :text('without the picture that it began from')")
    linked.context.close()


@browser_test
def test_a_result_is_extended_and_drawn_once_more(tab, tmp_path):
    save_png(tmp_path / "scene.png", draw())
    begin(tab, tmp_path / "scene.png")
    first = pixels(generate(tab))
    tab.locator("#begin-result").click()
    tab.wait_for_selector("#status :text('Runs begin from this picture')")
    set_field(tab, "Extend left", 64)
    set_field(tab, "number input for Feather", 0)
    wide = generate(tab)
    request = read_request(io.BytesIO(wide))
    np.testing.assert_array_equal(request.source, first)
    assert request.outpaint == {"left": 64} and pixels(wide).shape == (64, 128, 3)
    np.testing.assert_array_equal(pixels(wide)[:, 64:], first)

    choose(tab, "#second-pass", "Second pass", "Twice as large")
    assert pixels(generate(tab)).shape == (128, 256, 3)


# Without a browser ------------------------------------------------------------------------------------------


@pytest.fixture
def panel() -> FromSourcePanel:
    with gr.Blocks():
        return lay_out_from_source()


VALUES = [0.75, 8, 0, 0, 0, 0, 1.0, 0.5]


def test_an_untouched_fold_changes_no_request(panel):
    assert [panel.numbers[name].value for name in NUMBERS] == VALUES
    fields = panel.fields([None, None, *VALUES], "picture.png")
    assert fields == {"second_pass": 1.0, "second_denoise": 0.5}
    assert [len(panel.filled(None)), len(panel.kept([None, None, *VALUES]))] == [len(panel.outputs)] * 2


@pytest.mark.parametrize(
    "values", [[], [None, None, *VALUES[1:]], [None, None, "x", *VALUES[1:]]], ids=range(3)
)
def test_damaged_values_of_a_browser_are_told(panel, values):
    with pytest.raises(ValueError):
        panel.kept(values)


def test_a_file_that_was_not_uploaded_is_refused(panel):
    with pytest.raises(ValueError, match="not one that was uploaded here"):
        panel.fields(["/etc/passwd", None, *VALUES], None)
    assert panel.kept([{"path": "/etc/passwd"}, None, *VALUES])[1] is None


def test_masks_go_to_the_browser_and_back():
    mask = np.zeros((64, 64), np.uint8)
    assert edited_mask(show_mask(draw())) is None and edited_mask(None) is None
    mask[3:9, 5:7] = 255
    np.testing.assert_array_equal(edited_mask(show_mask(draw(), mask)), mask)
    large = show_mask(np.zeros((MOST_SIDE, 2 * MOST_SIDE, 3), np.uint8))
    assert (large["width"], large["height"]) == (MOST_SIDE, MOST_SIDE // 2)
    with pytest.raises(ValueError, match="damaged"):
        edited_mask({"width": 9, "height": 9, "runs": ""})


def test_a_hint_of_the_source_gives_way_to_that_of_the_canvas():
    settings = {"image_resolution": 64, "detect_resolution": 64, "outpaint": {"right": 64}}
    small, whole = np.zeros((64, 64), np.uint8), np.zeros((64, 128), np.uint8)
    request = Request(None, "x", source=draw(), hint=small, **settings)
    assert for_canvas(request, 64, 9.0).hint is None
    request = Request(None, "x", source=draw(), hint=whole, **settings)
    assert for_canvas(request, 64, 9.0) is request
