"""No work is lost on the page: reloads, replaced maps, results of before, dropped pictures, links, seeds."""

from __future__ import annotations

import base64
import io
import tempfile
import zipfile
from pathlib import Path

import gradio as gr
import numpy as np
import pytest
from front.in_browser import browser_test, choose_hint, drag, generate, legend, set_number, upload, visit
from front.small_page import GRASS, HOUSE, SKY, draw
from PIL import Image

from annotator.ade20k import colorize
from controlnet.generation.packing import pack_hint
from controlnet.generation.png import metadata_text, read_metadata, read_request, save_png
from controlnet.generation.request import Request
from controlnet.page.actions import Actions
from controlnet.page.links import link_fragment
from controlnet.page.restoring import Restoring


def empty_canvas(tab) -> None:
    tab.locator("#empty").click()
    tab.wait_for_selector("#status :text('An empty canvas')")
    tab.wait_for_selector("#editor [data-state=ready]")


def paint_grass(tab) -> dict[str, str]:
    tab.locator("#editor input[type=search]").fill("grass")
    tab.keyboard.press("Enter")
    tab.locator("#editor input[type=search]").fill("")
    drag(tab, (0.1, 0.6), (0.9, 0.6))
    return legend(tab)


def wait_for_legend(tab, wanted: dict[str, str]) -> None:
    for _ in range(200):
        if legend(tab) == wanted:
            return
        tab.wait_for_timeout(100)
    assert legend(tab) == wanted


def drop(tab, content: bytes, name: str, selector: str = "h1") -> None:
    """Let go of a file over a part of the page."""
    tab.evaluate(
        """([data, name, selector]) => {
          const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));
          const dataTransfer = new DataTransfer();
          dataTransfer.items.add(new File([bytes], name, { type: "image/png" }));
          const at = document.querySelector(selector);
          at.dispatchEvent(new DragEvent("drop", { dataTransfer, bubbles: true, cancelable: true }));
        }""",
        [base64.b64encode(content).decode(), name, selector],
    )


def downloaded(tab, selector: str) -> tuple[str, bytes]:
    with tab.expect_download() as download:
        tab.locator(selector).click()
    return download.value.suggested_filename, Path(download.value.path()).read_bytes()


# The map ----------------------------------------------------------------------------------------------------


@browser_test
def test_a_map_that_another_takes_the_place_of_comes_back_with_undo(tab, tmp_path, house_map):
    empty_canvas(tab)
    painted = paint_grass(tab)
    Image.fromarray(colorize(house_map)).save(tmp_path / "map.png")
    choose_hint(tab, tmp_path / "map.png")
    tab.wait_for_selector("#status :text('Taken as')")
    replaced = legend(tab)
    assert "house" in replaced
    tab.get_by_role("button", name="Undo").click()
    assert legend(tab) == painted
    tab.get_by_role("button", name="Redo").click()
    assert legend(tab) == replaced
    save_png(tmp_path / "scene.png", draw())
    upload(tab, tmp_path / "scene.png")  # a new picture puts the map away
    tab.wait_for_selector("#editor [data-state=empty]")
    tab.get_by_role("button", name="Bring the last map back").click()
    assert legend(tab) == replaced
    set_number(tab, "Steps", 1)
    request = read_request(io.BytesIO(generate(tab)))
    assert HOUSE in request.hint, "what is shown again is what is drawn"


@browser_test
def test_undo_brings_back_a_map_of_another_size(tab):
    empty_canvas(tab)
    painted = paint_grass(tab)
    tab.get_by_label("Shape of the empty canvas").click()
    tab.get_by_role("option", name="landscape").click()
    tab.locator("#empty").click()
    tab.wait_for_selector("#editor canvas[width='128']", state="attached")
    tab.get_by_role("button", name="Undo").click()
    tab.wait_for_selector("#editor canvas[width='64']", state="attached")
    assert legend(tab) == painted


@browser_test
def test_the_map_is_saved_in_colours_and_as_indices(tab, tmp_path, house_map):
    Image.fromarray(colorize(house_map)).save(tmp_path / "map.png")
    choose_hint(tab, tmp_path / "map.png")
    tab.wait_for_selector("#editor [data-state=ready]")
    name, content = downloaded(tab, "#save-map")
    assert name == "map_colours.png"
    np.testing.assert_array_equal(Image.open(io.BytesIO(content)), colorize(house_map))
    name, content = downloaded(tab, "#save-indices")
    assert name == "map_indices.png"
    np.testing.assert_array_equal(Image.open(io.BytesIO(content)), house_map)


# Reloads ----------------------------------------------------------------------------------------------------


@browser_test
def test_a_reload_keeps_map_picture_prompt_and_settings_but_no_seed(tab, tmp_path):
    save_png(tmp_path / "scene.png", draw())
    upload(tab, tmp_path / "scene.png")
    empty_canvas(tab)
    painted = paint_grass(tab)
    tab.locator("#prompt textarea").fill("a lake at night")
    set_number(tab, "Steps", 3)
    generate(tab)
    tab.wait_for_url("**/#*seed=*")
    tab.wait_for_timeout(600)
    tab.reload()
    tab.wait_for_selector("#editor [data-state=ready]")
    wait_for_legend(tab, painted)
    tab.wait_for_selector("#picture img")
    assert tab.locator("#prompt textarea").input_value() == "a lake at night"
    tab.locator("#advanced > button").click()
    assert tab.get_by_label("number input for Steps").input_value() == "3"
    assert tab.get_by_label("number input for Seed").input_value() == "-1"
    again = read_request(io.BytesIO(generate(tab)))
    assert (again.prompt, again.ddim_steps) == ("a lake at night", 3)
    assert set(np.unique(again.hint)) == {SKY, GRASS}


@browser_test
def test_new_empties_the_page_and_the_map_is_still_to_be_had(tab):
    empty_canvas(tab)
    painted = paint_grass(tab)
    tab.locator("#prompt textarea").fill("a lake")
    set_number(tab, "Steps", 1)
    generate(tab)
    tab.wait_for_url("**/#*seed=*")
    tab.get_by_role("button", name="New").click()
    tab.wait_for_selector("#editor [data-state=empty]")
    tab.wait_for_function("document.querySelector('#prompt textarea').value === ''")
    assert "#" not in tab.url
    assert tab.get_by_label("number input for Steps").input_value() == "20"
    assert tab.locator("#history li").count() == 1
    tab.get_by_role("button", name="Bring the last map back").click()
    assert legend(tab) == painted


# Results ----------------------------------------------------------------------------------------------------


@browser_test
def test_the_history_survives_a_reload_and_restores_compares_saves_and_deletes(tab):
    empty_canvas(tab)
    set_number(tab, "Steps", 1)
    contents = []
    for prompt in ("a red house", "a blue boat"):
        tab.locator("#prompt textarea").fill(prompt)
        contents.append(generate(tab))
        tab.wait_for_selector(f"#history li:has-text('{prompt}')")
    tab.reload()
    tab.wait_for_function("document.querySelectorAll('#history li').length === 2")
    history = tab.locator("#history")
    assert "a blue boat" in history.locator("li").first.inner_text()
    name, content = downloaded(tab, "#history [data-action=zip]")
    archive = zipfile.ZipFile(io.BytesIO(content))
    assert name == "results.zip" and archive.testzip() is None
    assert sorted(map(archive.read, archive.namelist())) == sorted(contents)
    seed = read_request(io.BytesIO(contents[1])).seed
    assert sum(f"_{seed}_a-blue-boat.png" in entry for entry in archive.namelist()) == 1
    assert history.get_by_role("button", name="Compare").is_disabled()
    for box in history.locator("input[type=checkbox]").all():
        box.check()
    history.get_by_role("button", name="Compare").click()
    assert history.locator("dialog img").count() == 2
    tab.keyboard.press("Escape")
    tab.locator("#prompt textarea").fill("something else")
    history.locator(".hi-take").last.click()
    tab.wait_for_selector("#status :text('Everything is as it was')")
    assert tab.locator("#prompt textarea").input_value() == "a red house"
    tab.wait_for_selector("#results img")
    assert generate(tab) == contents[0], "the seed is that of the result"
    history.get_by_role("button", name="Delete a blue boat").click()
    tab.wait_for_selector("#history li:has-text('a blue boat')", state="detached")
    tab.reload()
    tab.wait_for_selector("#history li:has-text('a red house')")
    assert "a blue boat" not in history.inner_text()


@browser_test
def test_a_dropped_picture_of_ours_restores_everything_and_any_other_becomes_the_picture(tab, house_map):
    drop(tab, png_of(draw()), "scene.png")
    before = tab.wait_for_selector("#picture img").get_attribute("src")
    drop(tab, png_of(draw(32, 64)), "another.png", "#picture")  # in the place of the first
    tab.wait_for_selector("#picture img[src$='another.png']")
    assert "another.png" not in before
    request = Request(None, "a red house", hint=house_map, seed=5, num_samples=3, per_sample_seeds=True,
                      image_resolution=64, ddim_steps=2, scale=3.0)  # fmt: skip
    request = request.for_model(64, 9.0)
    content = png_of(draw(), metadata_text(request, pack_hint(house_map), 1, "small"))
    drop(tab, content, "6_a-red-house.png", "#editor")
    tab.wait_for_selector("#status :text('Everything is as it was')")
    assert tab.locator("#prompt textarea").input_value() == "a red house"
    assert legend(tab) == {"sky": "44%", "grass": "44%", "house": "13%"}
    tab.locator("#advanced > button").click()
    numbers = {
        name: tab.get_by_label(f"number input for {name}").input_value()
        for name in ("Seed", "Images", "Steps")
    }
    assert numbers == {"Seed": "6", "Images": "1", "Steps": "2"}, "the picture of the three that was dropped"


def png_of(picture: np.ndarray, metadata: str | None = None) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        save_png(Path(folder) / "1.png", picture, metadata)
        return (Path(folder) / "1.png").read_bytes()


@browser_test
def test_use_this_seed_on_the_third_picture_gives_the_third_picture_again(tab):
    empty_canvas(tab)
    set_number(tab, "Steps", 2)
    set_number(tab, "Images", 4)
    generate(tab)
    assert tab.locator("#results img").count() == 4
    third = fetched(tab, tab.locator("#results img").nth(2))
    tab.locator("#results .thumbnail-item").nth(2).click()
    tab.wait_for_timeout(500)
    tab.locator("#use-seed").click()
    tab.wait_for_selector("#status :text('gives this picture again')")
    tab.locator("#results").get_by_label("close").first.click()
    again = generate(tab)
    assert difference(again, third) <= 1, "batches round differently"
    assert read_metadata(io.BytesIO(again))["request"]["num_samples"] == 1
    tab.locator("#own-seeds input").uncheck()
    set_number(tab, "Images", 3)
    set_number(tab, "Seed", -1)
    generate(tab)
    shared = fetched(tab, tab.locator("#results img").nth(2))
    tab.locator("#results .thumbnail-item").nth(2).click()
    tab.wait_for_timeout(500)
    tab.locator("#use-seed").click()
    tab.wait_for_selector("#status :text('this one is number 3 again')")
    tab.locator("#results").get_by_label("close").first.click()
    generate(tab)
    again = fetched(tab, tab.locator("#results img").nth(2))
    assert difference(again, shared) == 0


def difference(first: bytes, second: bytes) -> int:
    """The largest one between two pictures, in levels of 255."""
    one, other = (np.asarray(Image.open(io.BytesIO(content))).astype(int) for content in (first, second))
    return int(np.abs(one - other).max())


def fetched(tab, image) -> bytes:
    return tab.request.get(image.get_attribute("src")).body()


# Links ------------------------------------------------------------------------------------------------------


@browser_test
def test_a_link_that_is_pasted_into_an_open_tab_loads(tab, house_map):
    request = Request(None, "a pasted lake", hint=house_map, seed=3, image_resolution=64)
    fragment = link_fragment(request, pack_hint(house_map), "small")
    tab.evaluate("(text) => { location.hash = text; }", fragment)
    tab.wait_for_selector("#status :text('From a link')")
    assert tab.locator("#prompt textarea").input_value() == "a pasted lake"
    assert "house" in legend(tab)
    tab.evaluate("location.hash = 'seed=x'")
    tab.wait_for_selector("#status .error:has-text('This link says seed=x')")


@browser_test
def test_copied_is_said_and_buttons_without_meaning_are_disabled(browser, server):
    tab = visit(browser, server)
    tab.context.grant_permissions(["clipboard-read", "clipboard-write"])
    for name in ("#use-seed", "#use-picture", "#copy-link", "#departures input", "#cancel"):
        assert tab.locator(name).is_disabled(), name
    for action in ("compare", "zip", "clear"):
        assert tab.locator(f"#history [data-action={action}]").is_disabled()
    empty_canvas(tab)
    set_number(tab, "Steps", 1)
    generate(tab)
    tab.wait_for_url("**/#*seed=*")
    tab.locator("#copy-link:enabled").click()
    tab.wait_for_selector("#copy-link:has-text('Copied')")
    assert tab.locator("#desk [role=status]").inner_text() == "Copied"
    assert tab.evaluate("navigator.clipboard.readText()") == tab.url
    for name in ("#use-seed", "#use-picture", "#departures input"):
        assert tab.locator(name).is_enabled(), name
    tab.context.close()


@pytest.mark.parametrize(
    "work",
    [
        "",
        "{",
        "[]",
        '{"values": []}',
        '{"values": [1, 2]}',
        '{"values": null}',
        '{"values": ["seg"], "picture": "/etc/passwd"}',
    ],
    ids=range(7),
)
def test_damaged_work_of_a_browser_is_told(generator, work):

    restoring = Restoring(Actions(generator, [("canny", "low_threshold")]))
    values = restoring.opened(gr.EventData(None, {"work": work}))
    assert "What the browser kept cannot be read" in values[-1]
    for paths in (None, [], [3], ["/etc/passwd"], "x"):
        values = restoring.dropped(gr.EventData(None, {"paths": paths}))
        assert "error" in values[-1]
    assert "error" in restoring.dropped(gr.EventData(None, None))[-1]
