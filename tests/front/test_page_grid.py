"""Grids on the page and over HTTP, in a real browser: told beforehand, seen as they come, kept if stopped."""

from __future__ import annotations

import io
import re
from pathlib import Path

import httpx
import numpy as np
import pytest
from front.in_browser import browser_test, choose_hint, set_number
from front.small_page import draw
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image

from annotator.ade20k import colorize
from controlnet.generation.png import read_metadata, read_request, save_png
from controlnet.page.jobs import Job, Line, Pace


def unfold(tab, rows: str, columns: str) -> None:
    tab.locator("#grid > button").click()
    tab.locator("#grid textarea").first.wait_for()
    for place, text in enumerate((rows, columns)):
        tab.locator("#grid textarea, #grid input[type=text]:not([role=listbox])").nth(place).fill(text)


def told(tab, text: str) -> str:
    tab.wait_for_selector(f"#grid-count :text({text!r})")
    return tab.locator("#grid-count").inner_text()


def bring_map(tab, folder: Path, house_map: np.ndarray) -> None:
    Image.fromarray(colorize(house_map)).save(folder / "map.png")
    choose_hint(tab, folder / "map.png")
    tab.wait_for_selector("#status :text('Taken as')")


def shown_pictures(tab) -> list[bytes]:
    sources = [image.get_attribute("src") for image in tab.locator("#results .thumbnail-item img").all()]
    return [httpx.get(source).content for source in sources]


@browser_test
@pytest.mark.parametrize("tab", [(1280, 900), (390, 800)], indirect=True)
def test_a_grid_is_told_made_seen_and_saved(tab, tmp_path, house_map):
    bring_map(tab, tmp_path, house_map)
    set_number(tab, "Steps", 2)
    unfold(tab, "a house\na lake at night", "3-5")
    told(tab, "2 by 3: 6 pictures")
    tab.locator("#make-grid").click()
    tab.wait_for_selector("#status .done :text('6 pictures in')")
    width = tab.viewport_size["width"]
    assert tab.evaluate("document.documentElement.scrollWidth") <= width, "nothing to scroll sideways"
    box = tab.locator("#sheet img").bounding_box()
    assert box["x"] >= 0 and box["x"] + box["width"] <= width and box["y"] < tab.viewport_size["height"]
    assert re.search(r"6 pictures, about \d+ s", told(tab, "about")), "now it is known how long they take"
    cells = [read_request(io.BytesIO(content)) for content in shown_pictures(tab)]
    assert [(cell.prompt, cell.seed) for cell in cells] == [
        (prompt, seed) for prompt in ("a house", "a lake at night") for seed in (3, 4, 5)
    ]
    with tab.expect_download() as download:
        tab.locator("#sheet .image-container a, #sheet a[download]").first.click()
    assert download.value.suggested_filename == "grid_prompt_x_seed.png"
    sheet = np.asarray(Image.open(download.value.path()))
    for content in shown_pictures(tab):
        picture = np.asarray(Image.open(io.BytesIO(content)))
        corner = picture[:4, :8].reshape(-1)
        windows = np.lib.stride_tricks.sliding_window_view(sheet, (4, 8, 3)).reshape(-1, corner.size)
        assert (windows == corner).all(axis=1).any(), "each lies on the sheet"


@browser_test
def test_a_picture_of_a_grid_is_made_again_by_its_seed_and_settings(tab, tmp_path, house_map):
    bring_map(tab, tmp_path, house_map)
    set_number(tab, "Steps", 2)
    unfold(tab, "a house\na lake", "7, 8")
    tab.get_by_label("Columns", exact=True).click()
    tab.get_by_role("option", name="Control Strength").click()
    told(tab, "2 by 3: 6 pictures")
    tab.locator("#make-grid").click()
    tab.wait_for_selector("#status .done :text('6 pictures in')")
    last = shown_pictures(tab)[-1]
    box = tab.locator("#sheet img").bounding_box()  # the last cell lies at the lower right
    tab.mouse.click(box["x"] + box["width"] * 0.95, box["y"] + box["height"] * 0.8)
    tab.wait_for_url("**strength=1.5**")
    tab.locator("#use-seed").click()
    tab.wait_for_selector("#status :text('and the settings of this picture')")
    assert tab.locator("#prompt textarea").input_value() == "a lake"
    tab.locator("#generate").click()
    tab.wait_for_selector("#status :text('and the settings')", state="detached")
    tab.wait_for_selector("#status .done:has-text('Done.')")
    again = httpx.get(tab.locator("#results img").first.get_attribute("src")).content
    assert read_metadata(io.BytesIO(again)) == read_metadata(io.BytesIO(last))
    np.testing.assert_array_equal(Image.open(io.BytesIO(again)), Image.open(io.BytesIO(last)))
    assert not tab.locator("#sheet img").is_visible(), "another result took its place"
    assert tab.locator("#history li").count() == 2


@browser_test
def test_a_grid_that_is_cancelled_keeps_what_is_done(tab, tmp_path, house_map):
    bring_map(tab, tmp_path, house_map)
    set_number(tab, "Steps", 60)
    unfold(tab, "", "1-36")
    told(tab, "1 by 36: 36 pictures")
    tab.locator("#make-grid").click()
    tab.wait_for_selector("#results .thumbnail-item img")
    tab.locator("#cancel").click()
    tab.wait_for_selector("#status :text('of 36 pictures are kept')")
    kept = int(re.search(r"Cancelled: (\d+) of 36", tab.locator("#status").inner_text()).group(1))
    tab.wait_for_function("n => document.querySelectorAll('#results .thumbnail-item').length === n", arg=kept)
    assert 0 < kept < 36
    seeds = [read_metadata(io.BytesIO(content))["seed"] for content in shown_pictures(tab)]
    assert seeds == list(range(1, kept + 1))
    tab.wait_for_selector("#history li")
    assert tab.locator("#cancel").is_disabled()
    tab.wait_for_selector("#sheet img[src$='.png']")


@browser_test
def test_what_is_no_grid_is_told_in_its_fold_and_beside_the_button(tab):
    unfold(tab, "", "1, two")
    assert "Seed 'two'" in told(tab, "Seed")
    tab.locator("#grid textarea, #grid input[type=text]:not([role=listbox])").nth(1).fill("1-37")
    told(tab, "37 pictures are more than the 36 of a grid")
    tab.locator("#empty").click()
    tab.wait_for_selector("#status :text('An empty canvas')")
    tab.locator("#make-grid").click()
    tab.wait_for_selector("#status .error :text('37 pictures are more')")


# Programs ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def client(server) -> Client:
    return Client(server, verbose=False)


@pytest.fixture(scope="module")
def house(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("pictures") / "house.png"
    save_png(path, draw())
    return path


def test_programs_ask_for_a_grid_by_two_axes(client, house):
    sheet, gallery = client.predict(
        handle_file(house),
        "a house",
        {"ddim_steps": [1, 2]},
        {"seed": "5-6"},
        settings={"strength": 0.5},
        api_name="/grid",
    )
    assert Image.open(sheet).size[0] > 2 * 64
    assert [item["caption"] for item in gallery] == [
        f"{seed} · {steps}" for steps in ("steps 1", "steps 2") for seed in ("seed 5", "seed 6")
    ]
    requests = [read_request(item["image"]) for item in gallery]
    assert [(r.ddim_steps, r.seed, r.strength) for r in requests] == [
        (1, 5, 0.5), (1, 6, 0.5), (2, 5, 0.5), (2, 6, 0.5),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ({"seed": list(range(50))}, "50 pictures are more than the 36"),
        ({"eta": [0]}, "An axis is one of prompt"),
        ({"strength": [9]}, "strength must be from 0 to 2"),
        ([1, 2], "rows must be a JSON object"),
    ],
)
def test_programs_are_told_what_is_wrong_with_a_grid(client, house, rows, said):
    with pytest.raises(AppError, match=said):
        client.predict(handle_file(house), "a house", rows, api_name="/grid")


# What others are told ---------------------------------------------------------------------------------------


def test_those_who_wait_behind_a_grid_are_told_its_time():
    line, grid, other = Line(), Job(), Job()
    grid.expected = 70.0
    line.enter(grid)
    before, seconds = line.place(other)
    assert before == 1 and 60 < seconds <= 70
    line.leave(grid)
    again = Job()
    line.enter(again)
    assert line.place(Job())[1] < 10, "and it does not count for what jobs take usually"


def test_a_pace_is_in_proportion_to_the_work(generator):
    from dataclasses import replace

    pace, hint = Pace(), np.zeros((64, 64), np.uint8)
    from controlnet.generation.request import Request

    request = Request(None, "", hint=hint, ddim_steps=6).for_model(64, 9.0)
    assert pace.guess([request]) is None
    result = generator.generate(replace(request, ddim_steps=1))
    pace.learn(replace(result, seconds=1.0))
    assert pace.guess([request] * 3) == pytest.approx(6.0)
