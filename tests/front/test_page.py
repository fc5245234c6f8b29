"""The page in a real browser: what people do on it, at desktop and phone width; and its parts without one."""

from __future__ import annotations

import io
import threading
import time

import numpy as np
import pytest
from front.in_browser import (
    browser_test,
    choose_hint,
    drag,
    generate,
    legend,
    set_number,
    upload,
    visit,
    wait_for_result,
)
from front.small_page import GRASS, HOUSE, SKY, draw
from PIL import Image

from annotator.ade20k import CLASSES, colorize
from controlnet.generation.packing import pack_hint
from controlnet.generation.png import read_request, save_png
from controlnet.generation.request import Request, RequestError
from controlnet.generation.samplers import FAST, SAMPLERS
from controlnet.generation.watcher import Cancelled, Step
from controlnet.page.editors.label_map import edited_map
from controlnet.page.editors.runs import pack_runs, unpack_runs
from controlnet.page.jobs import Job
from controlnet.page.links import link_fragment, read_fragment


@browser_test
@pytest.mark.parametrize("tab", [(1280, 900), (390, 844)], indirect=True, ids=["desktop", "phone"])
def test_click_an_example_see_a_result(tab):
    tab.locator("#examples button").first.click()
    content = wait_for_result(tab)
    request = read_request(io.BytesIO(content))
    assert request.prompt == "an example house"
    assert "Keeps the map" in tab.locator("#scores").inner_text()
    assert legend(tab) == {"sky": "44%", "grass": "44%", "house": "13%"}
    assert tab.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), (
        "the page is wider than its window"
    )


@browser_test
def test_upload_detect_paint_generate(tab, tmp_path):
    save_png(tmp_path / "scene.png", draw())
    upload(tab, tmp_path / "scene.png")
    tab.locator("#detect").click()
    tab.wait_for_selector("#editor [data-state=ready]")
    before = legend(tab)
    tab.locator("#editor input[type=search]").fill("house")
    tab.keyboard.press("Enter")
    tab.locator("#editor input[type=search]").fill("")
    drag(tab, (0.6, 0.8), (0.9, 0.9))
    after = legend(tab)
    assert float(after["house"][:-1]) > float(before["house"][:-1])
    set_number(tab, "Steps", 2)
    request = read_request(io.BytesIO(generate(tab)))
    assert set(np.unique(request.hint)) == {SKY, GRASS, HOUSE}, "only exact classes"
    assert request.hint[round(0.8 * 64), round(0.6 * 64)] == HOUSE
    assert round(100 * (request.hint == HOUSE).mean()) == int(after["house"][:-1])
    row = tab.locator("#scores tbody tr").first.inner_text().split("\t")
    assert 0.0 <= float(row[2]) <= 1.0 and int(row[1]) == request.seed


@browser_test
def test_fill_erase_undo_and_keys(tab):
    tab.locator("#empty").click()
    tab.wait_for_selector("#editor [data-state=ready]")
    assert legend(tab) == {"sky": "100%"}
    tab.locator("#editor input[type=search]").fill("grass")
    tab.keyboard.press("Enter")
    tab.locator("#editor input[type=search]").fill("")
    drag(tab, (0.0, 0.5), (0.999, 0.5))
    tab.get_by_role("radio", name="Fill").click()
    drag(tab, (0.5, 0.9), (0.5, 0.9))
    assert legend(tab)["grass"].rstrip("%") > "45"
    tab.get_by_role("radio", name="Erase").click()
    shares = legend(tab)
    drag(tab, (0.3, 0.8), (0.7, 0.8))
    assert legend(tab)["sky"] > shares["sky"]
    tab.get_by_role("button", name="Undo").click()
    assert legend(tab) == shares
    tab.locator("#editor canvas").focus()
    for key in ("b", "ArrowUp", "ArrowUp", " "):
        tab.keyboard.press(key)
    tab.keyboard.press("Control+z")
    tab.keyboard.press("Control+z")
    tab.keyboard.press("Control+z")
    assert legend(tab) == {"sky": "100%"}


@browser_test
def test_cancel_in_mid_run_then_a_new_run(tab, tmp_path):
    save_png(tmp_path / "scene.png", draw())
    upload(tab, tmp_path / "scene.png")
    set_number(tab, "Steps", 100)
    set_number(tab, "Images", 12)
    tab.locator("#generate").click()
    tab.wait_for_selector("#status [role=progressbar]")
    tab.wait_for_selector("#status .previews img")
    tab.locator("#cancel").click()
    tab.wait_for_selector("#status :text('Cancelled.')")
    set_number(tab, "Steps", 2)
    set_number(tab, "Images", 1)
    assert read_request(io.BytesIO(generate(tab))).ddim_steps == 2


@browser_test
def test_a_closed_tab_frees_the_model(browser, server, small_model, monkeypatch):
    apply_model, calls = small_model.apply_model, []
    monkeypatch.setattr(small_model, "apply_model", lambda *a, **k: calls.append(1) or apply_model(*a, **k))

    def with_canvas():
        page = visit(browser, server)
        page.locator("#empty").click()
        page.wait_for_selector("#editor [data-state=ready]")
        return page

    leaver = with_canvas()
    set_number(leaver, "Steps", 100)
    set_number(leaver, "Images", 12)
    leaver.locator("#generate").click()
    leaver.wait_for_selector("#status [role=progressbar]")
    leaver.context.close()
    follower = with_canvas()
    set_number(follower, "Steps", 1)
    generate(follower)
    assert 1 < len(calls) < 101, "the run of the closed tab went on"
    follower.context.close()


@browser_test
def test_a_broken_file_is_said_in_one_line(tab, tmp_path):
    (tmp_path / "holiday.png").write_text("<html>no picture</html>")
    tab.locator("#picture input[type=file]").set_input_files(str(tmp_path / "holiday.png"))
    tab.wait_for_timeout(1000)
    tab.locator("#generate").click()
    tab.wait_for_selector("#status .error:has-text('holiday.png: not a picture but a web page')")


@browser_test
def test_a_map_of_ones_own_is_snapped_and_reported(tab, tmp_path, house_map):
    Image.fromarray(colorize(house_map)[:, :, ::-1].copy()).save(tmp_path / "map.png")
    choose_hint(tab, tmp_path / "map.png")
    tab.wait_for_selector("#status :text('BGR color map')")
    assert legend(tab) == {"sky": "44%", "grass": "44%", "house": "13%"}


@browser_test
def test_a_link_repeats_the_picture(tab, browser):
    tab.locator("#empty").click()
    tab.wait_for_selector("#editor [data-state=ready]")
    tab.locator("#prompt textarea").fill("a lake & 50% sky #1")
    set_number(tab, "Steps", 2)
    first = generate(tab)
    tab.wait_for_url("**/#*seed=*")
    other = visit(browser, tab.url)
    other.wait_for_selector("#status :text('From a link')")
    assert other.locator("#prompt textarea").input_value() == "a lake & 50% sky #1"
    assert generate(other) == first
    other.context.close()


@browser_test
def test_the_fast_box_and_the_settings_agree(tab, browser):
    """The box sets sampler and steps; they, by hand or from a link, tick the box; a picture tells them."""
    box, title = tab.locator("#fast input"), SAMPLERS[FAST.sampler].title
    assert not box.is_checked()
    box.check()
    tab.locator("#advanced > button").click()
    tab.wait_for_function(f"document.querySelector('#sampler input')?.value === '{title}'")
    tab.locator("#empty").click()
    tab.wait_for_selector("#editor [data-state=ready]")
    made = read_request(io.BytesIO(generate(tab)))
    assert (made.sampler, made.ddim_steps) == (FAST.sampler, FAST.steps)
    tab.wait_for_url("**/#*sampler=*")
    other = visit(browser, tab.url)
    other.wait_for_selector("#status :text('From a link')")
    other.wait_for_function("document.querySelector('#fast input').checked")
    other.context.close()
    set_number(tab, "Steps", FAST.steps + 1)
    tab.wait_for_function("!document.querySelector('#fast input').checked")
    assert tab.locator("#sampler input").input_value() == title


@browser_test
def test_what_comes_after_a_result(tab):
    tab.locator("#examples button").first.click()
    seed = read_request(io.BytesIO(wait_for_result(tab))).seed
    tab.wait_for_selector("#compare img")
    plain = tab.locator("#compare img").last.get_attribute("src")
    tab.locator("#departures input").check()
    tab.wait_for_function(f"document.querySelector('#compare').innerHTML.includes({plain!r}) === false")
    tab.locator("#use-seed").click()
    tab.locator("#advanced > button").click()
    tab.wait_for_function(f"document.querySelector('#seed input[type=number]')?.value === '{seed}'")
    tab.locator("#use-picture").click()
    tab.wait_for_selector("#editor [data-state=empty]")


# Without a browser ------------------------------------------------------------------------------------------


def test_runs_survive_the_way_through_the_editor():
    rng = np.random.default_rng(0)
    noise = rng.integers(0, len(CLASSES), (37, 41)).astype(np.uint8)
    for labels in (np.zeros((512, 768), np.uint8), noise, np.repeat(noise, 50, axis=1)):
        np.testing.assert_array_equal(unpack_runs(pack_runs(labels)), labels)


def test_damaged_edits_are_refused():
    good = pack_runs(np.zeros((4, 4), np.uint8))
    bad = [
        {**good, "width": 5},
        {**good, "runs": "!!"},
        {**good, "runs": "lgEA"},
        {"width": 1},
        {**good, "height": -4},
    ]
    for payload in (*bad, {**good, "width": 2**40}, {**good, "runs": "lhAA"}):
        with pytest.raises(RequestError, match="edited map"):
            edited_map(payload)


def test_links_carry_settings_and_map(house_map):
    request = Request(
        None, "a & b = c # 1 %", hint=house_map, seed=9, guess_mode=True, scale=4.5, n_prompt="",
        sampler="unipc", guidance_start=0.1, guidance_end=0.8,
    )  # fmt: skip
    read, labels, _ = read_fragment("#" + link_fragment(request, pack_hint(house_map)))
    settings = read.settings()
    assert settings == request.settings()
    np.testing.assert_array_equal(labels, house_map)


@pytest.mark.parametrize(
    "fragment", ["seed=x", "seed=1e99", "color=red", "map=9x9.AAAA", "scale=NaN", "&".join("a" * 99)]
)
def test_hostile_links_are_refused(fragment):
    with pytest.raises(RequestError):
        read_fragment(fragment)


def test_a_job_can_be_cancelled_before_and_while_it_runs():
    waiting = Job()
    waiting.cancel()
    with pytest.raises(Cancelled):
        next(waiting.follow(lambda **callbacks: 1 / 0))

    stopped = threading.Event()

    def work(on_step, should_stop):
        on_step(Step(0, 1000, lambda: np.zeros((1, 8, 8, 3), np.uint8)))
        while not should_stop():
            time.sleep(0.001)
        time.sleep(1)  # a long step
        stopped.set()

    running = Job()
    stream = running.follow(work)
    next(stream)
    running.cancel()
    with pytest.raises(Cancelled):
        list(stream)
    assert not stopped.is_set(), "the visitor waited for the step"
    assert stopped.wait(5)


def test_a_run_stops_when_nobody_reads_it_any_more():
    stopped = threading.Event()

    def work(on_step, should_stop):
        for _ in range(1000):
            on_step(Step(0, 2, lambda: np.zeros((1, 8, 8, 3), np.uint8)))
            if should_stop():
                return stopped.set()
            time.sleep(0.005)
        return None

    stream = Job().follow(work)
    next(stream)
    stream.close()
    assert stopped.wait(5)
