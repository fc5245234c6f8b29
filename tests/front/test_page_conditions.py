"""The page of every condition in a real browser: a picture or a drawing becomes a hint, the hint a result,
and the result is measured against the hint.
"""

from __future__ import annotations

import io
import re
import runpy

import numpy as np
import pytest
import torch
from front.conftest import ROOT
from front.in_browser import browser_test, drag, generate, set_number, upload, visit
from front.small_page import draw, drawing, stand_in, start

from controlnet.conditions import all_conditions, find_condition
from controlnet.generation.generator import Generator
from controlnet.generation.png import read_request, save_png

MEASURES = {
    "canny": "F-measure",
    "depth": "depth error",
    "fake_scribble": "F-measure",
    "hed": "F-measure",
    "hough": "lines found",
    "normal": "mean angle",
    "openpose": "OKS",
    "scribble": None,
    "scribble_interactive": None,
    "seg": "mIoU",
}
"""What a result's adherence is called; nothing is detected for what people draw."""

INK = """() => {
  const canvas = document.querySelector("#drawing canvas");
  const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  return data.some((value, index) => index % 4 === 0 && value < 100);
}"""


@pytest.fixture
def condition_page(request, browser, small_model):
    """The page opened on a condition, over the small model; a script error in it fails the test."""
    name = request.param
    detectors = {name: detector} if (detector := stand_in(name)) else {}
    generator = Generator(small_model, detectors, name="small", resolution=64, device=torch.device("cpu"))
    errors: list[str] = []
    for url in start(generator, condition=name):
        tab = visit(browser, url, errors=errors)
        yield name, generator, tab
        tab.context.close()
    assert not errors


def bring(tab, name: str, picture: np.ndarray, folder) -> None:
    """Give a picture and detect its hint, or draw one."""
    if name == "scribble_interactive":
        tab.locator("#empty").click()
        tab.wait_for_selector("#drawing [data-state=ready]")
        drag(tab, (0.2, 0.3), (0.8, 0.3), "#drawing")
        return
    save_png(folder / "picture.png", picture)
    upload(tab, folder / "picture.png")
    tab.locator("#detect").click()


def see_the_hint(tab, name: str) -> None:
    """Wait until the hint is seen where its condition shows it."""
    editor = find_condition(name).editor
    if editor == "draw":
        tab.wait_for_selector("#drawing [data-state=ready]")
        tab.wait_for_function(INK)
    elif editor == "label_map":
        tab.wait_for_selector("#editor [data-state=ready]")
    else:
        tab.wait_for_function("document.querySelector('#hint img')?.naturalWidth === 64")


def test_no_condition_is_forgotten():
    assert set(MEASURES) == set(all_conditions())
    for name, measure in MEASURES.items():
        assert name == "fake_scribble" or find_condition(name).is_measured == (measure is not None)


@browser_test
@pytest.mark.parametrize("condition_page", MEASURES, indirect=True)
def test_picture_to_hint_to_result_to_adherence(condition_page, tmp_path):
    name, generator, tab = condition_page
    condition = generator.condition(name)
    assert tab.locator("#title").inner_text().startswith(condition.title)
    picture = drawing() if name == "scribble" else draw()
    bring(tab, name, picture, tmp_path)
    see_the_hint(tab, name)
    set_number(tab, "Steps", 2)
    request = read_request(io.BytesIO(generate(tab)))
    assert request.condition == name
    if name == "scribble_interactive":
        assert request.hint[19, 32] == 255 and 0.02 < (request.hint > 0).mean() < 0.3
    else:
        detected = condition.hint(picture, 64, 64)
        np.testing.assert_array_equal(request.hint, detected)
        assert not condition.is_empty(detected)
    row = tab.locator("#scores tbody tr").first.inner_text().split("\t")
    assert int(row[1]) == request.seed
    measure, head = MEASURES[name], tab.locator("#scores thead").inner_text()
    if measure is None:
        assert "Keeps the" not in head and len(row) == 2
    else:
        noun = "map" if name == "seg" else condition.noun
        assert f"Keeps the {noun} ({measure}, judged by the detector)" in head
        assert re.search(r"\d+\.\d+", row[2])
        status = tab.locator("#status .done").inner_text()
        assert f"the {noun}, says the detector ({measure}" in status


@pytest.mark.parametrize("name", MEASURES)
def test_every_condition_has_a_script_that_opens_on_it(name, monkeypatch):
    others = {"openpose": "pose2image", "scribble_interactive": "scribble2image_interactive"}
    opened: list[str] = []
    monkeypatch.setattr(
        "controlnet.page.app.main", lambda *_, condition="seg", **__: opened.append(condition)
    )
    runpy.run_path(str(ROOT / f"gradio_{others.get(name, f'{name}2image')}.py"), run_name="__main__")
    assert opened == [name]
