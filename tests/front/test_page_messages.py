"""Every message of the page arrives where a person sees it: in the status, or in gradio's own notes."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
from front.in_browser import browser_test, choose_hint, generate, legend, set_number, upload, visit
from front.small_page import GatedDetector, draw, start
from PIL import Image

from controlnet.generation.generator import Generator
from controlnet.generation.packing import pack_hint
from controlnet.generation.png import save_png
from controlnet.generation.request import Request
from controlnet.generation.watcher import GenerationError
from controlnet.page.examples import Example
from controlnet.page.links import link_fragment
from controlnet.page.settings import fitted_to_page

TEXT = b"no picture at all"
LONG = "is 3000x60 pixels; the long side may be 8 times the short one: crop it."


def told(tab, text: str, kind: str = "error") -> None:
    """Wait for a message in the status."""
    tab.locator(f"#status .{kind}", has_text=text).wait_for()


def noted(tab, text: str) -> None:
    """Wait for a note of gradio's own, and put it away."""
    tab.locator(".toast-body", has_text=text).wait_for()
    tab.locator(".toast-close").first.click()


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Files that are no hints or pictures, each in its way."""
    folder = tmp_path_factory.mktemp("files")
    (folder / "text.png").write_bytes(TEXT)
    (folder / "notes.txt").write_bytes(TEXT)
    (folder / "heavy.png").write_bytes(bytes(21_000_000))
    save_png(folder / "scene.png", draw())
    save_png(folder / "long.png", draw(60, 3000))
    Image.new("L", (5600, 5600)).save(folder / "huge.png")
    Image.fromarray(np.arange(151, 247, dtype=np.uint8).reshape(8, 12)).save(folder / "grey.png")
    return folder


# Links ------------------------------------------------------------------------------------------------------


@browser_test
@pytest.mark.parametrize(
    ("fragment", "message"),
    [
        ("seed=x", "This link says seed=x, which cannot be read."),
        ("hint=9x9.AAAA", "The stored hint cannot be read"),
        ("hint=8000x4000.AAAA", "The stored hint cannot be read (8000x4000 pixels of 1 channels)"),
        ("map=3000x60.AAAA", "too long for its width"),
        ("color=red", "Unknown settings color; known with seg are"),
        ("ddim_steps=0", "ddim_steps must be from 1 to 1000, got 0."),
        ("condition=nothing", "There is no condition 'nothing'"),
        ("prompt=" + "x" * 200_000, "characters; those of this page are shorter."),
    ],
    ids=lambda text: text[:20],
)
def test_a_damaged_link(browser, server, fragment, message):
    tab = visit(browser, f"{server}#{fragment}")
    told(tab, message)
    tab.context.close()


@browser_test
def test_a_link_of_another_model(browser, server, house_map):
    large = np.kron(house_map, np.ones((8, 8), np.uint8))
    request = Request(
        None, "a lake", hint=large, seed=3, scale=9.5, image_resolution=512, detect_resolution=512
    )
    tab = visit(browser, f"{server}#{link_fragment(request, pack_hint(large), 'sd15')}")
    told(tab, "It was made with the model sd15, this page has small: image_resolution 64", "note")
    told(tab, "detect_resolution 64, scale 9 are used instead.", "note")
    assert legend(tab) == {"sky": "44%", "grass": "44%", "house": "13%"}
    set_number(tab, "Steps", 1)
    generate(tab)
    tab.context.close()


def test_settings_of_links_are_fitted_to_the_page(generator):
    given = Request(draw(), "", image_resolution=64, detect_resolution=64, scale=7.0, seed=5).settings()
    assert fitted_to_page(given, "small", generator) == (given, "")
    assert fitted_to_page(given, "", generator) == (given, "")
    fitted, said = fitted_to_page(given, "tiny", generator)
    assert fitted["scale"] == 9.0 and "made with the model tiny" in said and "scale 9" in said
    fitted, said = fitted_to_page({**given, "image_resolution": 512}, "small", generator)
    assert (fitted["image_resolution"], fitted["scale"], fitted["seed"]) == (64, 9.0, 5)
    assert "none that this page offers" in said
    fitted, said = fitted_to_page({**given, "ddim_steps": 500, "num_samples": 64}, "small", generator)
    assert (fitted["ddim_steps"], fitted["num_samples"], fitted["scale"]) == (100, 12, 7.0)
    assert "ddim_steps 500 is out of this page's range and became 100." in said
    none_given = Request(draw(), "").settings()
    assert fitted_to_page(none_given, "", generator)[0]["scale"] == 9.0


# Files ------------------------------------------------------------------------------------------------------


@browser_test
def test_a_hint_that_is_none(tab, files):
    choose_hint(tab, files / "notes.txt")
    noted(tab, "Invalid file type: notes.txt")
    choose_hint(tab, files / "heavy.png")
    noted(tab, "exceed the maximum allowed size of 20.0 Mb")
    for file, message in {
        "text.png": "text.png: not a picture in a known format",
        "grey.png": "The map is grey with values such as [151, 152, 153]: neither an index map",
        "huge.png": "huge.png: 5600x5600 pixels are more than the 8 megapixels allowed; make it smaller",
        "long.png": f"hint {LONG}",
    }.items():
        choose_hint(tab, files / file)
        told(tab, message)


@browser_test
@pytest.mark.parametrize("button", ["#detect", "#generate"])
def test_a_picture_that_is_none(tab, files, button):
    tab.locator(button).click()
    told(tab, "There is no picture yet: give one.")
    source = tab.locator("#picture input[type=file]")
    source.set_input_files(str(files / "notes.txt"))
    noted(tab, "Invalid file type: notes.txt")
    source.set_input_files(str(files / "heavy.png"))
    noted(tab, "exceed the maximum allowed size of 20.0 Mb")
    upload(tab, files / "long.png")
    tab.locator(button).click()
    told(tab, f"input_image {LONG}")
    tab.get_by_label("Remove Image").or_(tab.get_by_label("Clear")).first.click()
    source.set_input_files(str(files / "text.png"))
    tab.wait_for_timeout(1000)
    tab.locator(button).click()
    told(tab, "text.png: not a picture in a known format")


@browser_test
def test_a_broken_picture_beside_a_canvas_spoils_nothing(tab, files):
    tab.locator("#picture input[type=file]").set_input_files(str(files / "text.png"))
    tab.wait_for_timeout(1000)
    tab.locator("#empty").click()
    tab.wait_for_selector("#editor [data-state=ready]")
    set_number(tab, "Steps", 1)
    generate(tab)
    tab.wait_for_selector("#compare img")
    assert tab.locator(".toast-body").count() == 0


# Settings, the server, and the queue ------------------------------------------------------------------------


@browser_test
def test_settings_out_of_range(tab):
    set_number(tab, "Image Resolution", 10_000)
    tab.locator("#empty").click()
    told(tab, "An empty canvas: all sky. Paint.", "note")
    tab.wait_for_selector("#editor canvas[width='128']", state="attached")  # the slider keeps to its range
    set_number(tab, "Steps", 2.5)
    tab.locator("#generate").click()
    told(tab, "ddim_steps must be a whole number, got 2.5.")
    field = tab.get_by_label("eta (DDIM)")
    field.fill("5")
    field.press("Tab")
    tab.locator("#generate").click()
    noted(tab, "eta (DDIM) must be a number from 0 to 1, got 5.")
    tab.wait_for_selector("#cancel:disabled")


@browser_test
def test_what_goes_wrong_on_the_server(browser, small_model, files, monkeypatch):
    class BrokenDetector:
        def labels(self, picture):
            raise ZeroDivisionError("secret/path")

    gone = Example(files / "scene.png", files / "gone.png", "an example")
    generator = Generator(small_model, {"seg": BrokenDetector()}, resolution=64)
    with contextlib.closing(start(generator, examples=[gone])) as pages:
        tab = visit(browser, next(pages))
        upload(tab, files / "scene.png")
        for button in ("#detect", "#generate"):
            tab.locator(button).click()
            told(tab, "Something went wrong on the server; its log says what.")
            tab.locator("#empty").click()  # another message in between
            told(tab, "An empty canvas", "note")
        monkeypatch.setattr(generator, "_draw", _without_memory)
        tab.locator("#generate").click()
        told(tab, "1 x 64x64 pixels do not fit into memory")
        tab.locator("#examples button").first.click()
        told(tab, "gone.png: no such file")
        tab.context.close()


def _without_memory(*_):
    raise GenerationError("1 x 64x64 pixels do not fit into memory; nor do smaller sizes.")


@browser_test
def test_a_full_queue_and_waiting_for_ones_turn(browser, small_model, files):
    slow = GatedDetector()
    generator = Generator(small_model, {"seg": slow}, resolution=64)
    with contextlib.closing(start(generator, "--queue-size", "1")) as pages:
        url = next(pages)
        tabs = [visit(browser, url) for _ in range(3)]
        for tab in tabs:
            upload(tab, files / "scene.png")
            tab.locator("#detect").click()
            tab.wait_for_selector("#waiting :text('You are 2nd'), #status :text('Detecting'), .toast-body")
        slow.entered.wait(30)
        noted(tabs[2], "This application is currently busy. Please try again.")
        tabs[2].wait_for_selector("#cancel:disabled")
        slow.gate.set()
        for tab in tabs[:2]:
            told(tab, "Detected.", "done")
        for tab in tabs:
            tab.context.close()


@browser_test
def test_a_detection_is_cancelled_at_once_while_it_computes_and_while_it_waits(browser, small_model, files):
    slow = GatedDetector()
    generator = Generator(small_model, {"seg": slow}, resolution=64)
    with contextlib.closing(start(generator)) as pages:
        url = next(pages)
        computing, waiting = visit(browser, url), visit(browser, url)
        for tab in (computing, waiting):
            upload(tab, files / "scene.png")
            tab.locator("#detect").click()
            assert slow.entered.wait(30)
            tab.wait_for_selector("#cancel:enabled")
            tab.wait_for_timeout(500)
        for tab in (waiting, computing):
            tab.locator("#cancel").click()
            told(tab, "Cancelled.", "note")
            tab.wait_for_selector("#cancel:disabled")
        waiting.locator("#empty").click()  # needs no network, so it does not wait for one
        told(waiting, "An empty canvas", "note")
        assert not slow.gate.is_set()
        slow.gate.set()
        computing.locator("#detect").click()
        told(computing, "Detected.", "done")
        assert len(slow.calls) == 2, "the one that waited never ran"
        for tab in (computing, waiting):
            tab.context.close()


@browser_test
def test_a_waiting_run_is_cancelled_at_once_and_a_new_one_takes_the_place_of_another(
    browser, small_model, files
):
    slow = GatedDetector()
    generator = Generator(small_model, {"seg": slow}, resolution=64)
    with contextlib.closing(start(generator)) as pages:
        url = next(pages)
        first, second = visit(browser, url), visit(browser, url)
        for tab in (first, second):
            upload(tab, files / "scene.png")
            set_number(tab, "Steps", 3)
            tab.locator("#generate").click()
            assert slow.entered.wait(30)
            tab.wait_for_selector("#cancel:enabled")
        second.locator("#cancel").click()
        told(second, "Cancelled.", "note")
        set_number(first, "Steps", 2)
        first.locator("#generate").click()
        first.wait_for_timeout(500)
        slow.gate.set()
        told(first, "Done.", "done")
        first.wait_for_selector("#cancel:disabled")
        for tab in (first, second):
            tab.context.close()
