"""More controls on the page: added, chosen, switched off, taken away, and everything that comes back."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import gradio as gr
import numpy as np
import pytest
from front.in_browser import browser_test, choose_hint, generate, set_number, upload, visit
from front.small_page import draw
from front.test_page_work import drop
from PIL import Image

from annotator.ade20k import colorize
from controlnet.generation.png import read_request, save_png
from controlnet.generation.request import Request
from controlnet.generation.several import MAX_FURTHER, FurtherControl
from controlnet.page.actions import Actions
from controlnet.page.links import read_fragment
from controlnet.page.restoring import Restoring
from controlnet.page.several import HINT, OTHER, SAME, SeveralPanel, control_of, lay_out_several


def choose(tab, within: str, label: str, option: str) -> None:
    tab.locator(within).get_by_label(label).click()
    tab.get_by_role("option", name=option, exact=True).click()


def give(tab, within: str, place: int, path) -> None:
    """Upload a file into one of the pictures of a part of the page."""
    files = tab.locator(f"{within} input[type=file]")
    files.nth(place).set_input_files(str(path))
    tab.locator(f"{within} img").first.wait_for()


@browser_test
def test_two_controls_from_the_page(tab, browser, server, tmp_path, house_map):
    """The map, and beside it canny edges of the picture in the left half, in the first half of the steps."""
    save_png(tmp_path / "scene.png", draw())
    Image.fromarray(colorize(house_map)).save(tmp_path / "map.png")
    Image.fromarray(np.uint8([[255, 0]])).resize((64, 64), 0).save(tmp_path / "left.png")
    upload(tab, tmp_path / "scene.png")
    choose_hint(tab, tmp_path / "map.png")
    tab.wait_for_selector("#status :text('Taken as')")
    set_number(tab, "Steps", 2)
    set_number(tab, "Seed", 5)
    plain = generate(tab)

    tab.locator("#more-controls > button").click()
    tab.locator("#add-control").click()
    choose(tab, "#control-2", "Steer by", "Canny edges")
    choose(tab, "#control-2", "Mode", "The prompt is more important")
    for label, value in (("Strength", "0.5"), ("To", "0.5")):
        field = tab.locator("#control-2").get_by_label(f"number input for {label}")
        field.fill(value)
        field.press("Tab")
    give(tab, "#control-2", 0, tmp_path / "left.png")
    tab.locator("#control-2 > button:has-text('Canny edges')").wait_for()
    saved = generate(tab)
    request = read_request(io.BytesIO(saved))
    (canny,) = request.further
    assert (canny.condition, canny.strength, canny.end, canny.mode) == ("canny", 0.5, 0.5, "prompt")
    np.testing.assert_array_equal(canny.region, np.tile(np.uint8([255, 0]).repeat(32), (64, 1)))
    assert canny.hint.any() and request.hint is not None
    assert saved != plain
    tab.locator(
        "#control-2 [aria-label='Hint of the last run'] img, #control-2 .image-frame img"
    ).last.wait_for()
    tab.wait_for_url("**/#*further=*")
    linked, _, _ = read_fragment(tab.url.split("#")[1])
    np.testing.assert_array_equal(linked.further[0].hint, canny.hint)

    tab.locator("#control-2").get_by_label("On").uncheck()
    tab.locator("#control-2 > button:has-text('(off)')").wait_for()
    off = generate(tab)
    assert not read_request(io.BytesIO(off)).further
    np.testing.assert_array_equal(*(np.asarray(Image.open(io.BytesIO(each))) for each in (off, plain)))

    other = visit(browser, server)
    drop(other, saved, "saved.png")
    other.wait_for_selector("#status :text('Everything is as it was')")
    other.locator("#control-2 > button:has-text('Canny edges')").wait_for()  # the fold is open
    again = generate(other)
    np.testing.assert_array_equal(*(np.asarray(Image.open(io.BytesIO(each))) for each in (again, saved)))
    other.locator("#control-2").get_by_role("button", name="Remove", exact=True).click()
    other.locator("#control-2").wait_for(state="hidden")
    np.testing.assert_array_equal(*(np.asarray(Image.open(io.BytesIO(x))) for x in (generate(other), plain)))
    other.context.close()


@browser_test
def test_the_list_ends_and_survives_a_reload(tab):
    tab.locator("#more-controls > button").click()
    for number in range(2, MAX_FURTHER + 2):
        tab.locator("#add-control").click()
        tab.locator(f"#control-{number}").wait_for()
    tab.locator("#add-control").wait_for(state="hidden")
    choose(tab, "#control-3", "Steer by", "Scribble")
    tab.locator("#control-2").get_by_role("button", name="Remove", exact=True).click()
    tab.locator("#control-2").wait_for(state="hidden")
    tab.locator("#add-control").wait_for()
    tab.wait_for_timeout(600)  # the browser keeps the work a moment later
    tab.reload()
    tab.locator("#more-controls > button").click()
    tab.locator("#control-3 > button:has-text('Scribble')").wait_for()
    assert not tab.locator("#control-2").is_visible() and tab.locator("#control-4").is_visible()


# Without a browser ------------------------------------------------------------------------------------------


@pytest.fixture
def panel(generator) -> SeveralPanel:
    from controlnet.conditions import find_condition

    with gr.Blocks():
        return lay_out_several(generator, find_condition("seg"))


def slot(condition: str | None = "canny", source: str = SAME, file=None, on: bool = True) -> list:
    return [condition, on, source, file, None, 1.0, 0.0, 1.0, "balanced", None]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (slot(), r"Further control 1 \(canny\): it has no picture to find its hint in: give one above"),
        (slot(source=OTHER), "give one in its place"),
        (slot(source=HINT), "it has no hint yet"),
        (slot(source=HINT, file="/etc/passwd"), "not one that was uploaded here"),
    ],
)
def test_what_a_slot_lacks_is_told(panel, values, message):
    empty = slot(None)
    with pytest.raises(ValueError, match=message):
        panel.fields([None, *values, *empty, *empty], None)
    assert panel.fields([None, *slot(on=False), *empty, *empty], None) == {"further": ()}


def test_a_restored_hint_is_of_its_condition_alone():
    hint = np.eye(8, dtype=np.uint8)
    values = slot(source=HINT)
    values[-1] = ("canny", hint)
    assert control_of(values, None).hint is hint
    values[-1] = ("hed", hint)
    with pytest.raises(ValueError, match="no hint yet"):
        control_of(values, None)


def test_the_fold_is_open_where_there_are_more_controls(panel):
    hint = np.zeros((64, 64), np.uint8)
    plain = Request(None, "", hint=hint)
    both = replace(plain, further=(FurtherControl("canny", hint=hint),))
    part = replace(plain, region=hint + 255)
    opened = [panel.filled(request)[0]["open"] for request in (None, plain, both, part)]
    opened += [panel.kept([None, *slot(name), *slot(None), *slot(None)])[0]["open"] for name in (None, "hed")]
    assert opened == [False, False, True, True, False, True]


@pytest.mark.parametrize(
    "change",
    [lambda v: v[:-1], lambda v: [*v[:1], "sag", *v[2:]], lambda v: [*v[:1], [], *v[2:]]],
    ids=range(3),
)
def test_damaged_controls_of_a_browser_are_told(generator, panel, change):
    restoring = Restoring(Actions(generator, [], (), [panel]))
    settings = ["x", "", "", 1, 64, 64, 1, False, 1, 9, 1, 0, "ddim", 0, 1, 0, 1, "balanced", False]
    own = [None, *slot(), *slot(None), *slot(None)]
    work = {"values": ["seg", *settings, True, None, None, *own], "picture": None}
    filled = restoring.opened(gr.EventData(None, {"work": json.dumps(work)}))
    assert filled[0] == "seg"
    work["values"][-len(own) :] = change(own)
    told = restoring.opened(gr.EventData(None, {"work": json.dumps(work)}))
    assert "What the browser kept cannot be read" in told[-1] or "no condition" in told[-1]
