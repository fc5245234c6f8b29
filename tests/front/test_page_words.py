"""Words on the page: prompts for classes, the syntax of prompts, and how many tokens there are."""

from __future__ import annotations

import io
import json

import gradio as gr
import numpy as np
import pytest
from front.in_browser import browser_test, choose_hint, generate, set_number, visit
from front.small_page import ColorDetector
from front.test_page_work import drop
from PIL import Image

from annotator.ade20k import CLASSES, colorize
from controlnet.generation.class_prompts import read_class_map
from controlnet.generation.generator import Generator
from controlnet.generation.packing import pack_hint
from controlnet.generation.png import read_request
from controlnet.generation.request import Request, RequestError
from controlnet.generation.several_files import packed
from controlnet.page.actions import Actions
from controlnet.page.class_prompts import ClassPromptsPanel, lay_out_class_prompts
from controlnet.page.examples import load_examples
from controlnet.page.links import link_fragment, read_fragment
from controlnet.page.panels import Panel


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)))


@browser_test
def test_a_prompt_for_a_class_of_the_map(tab, browser, server, tmp_path, house_map):
    Image.fromarray(colorize(house_map)).save(tmp_path / "map.png")
    choose_hint(tab, tmp_path / "map.png")
    tab.wait_for_selector("#status :text('Taken as')")
    set_number(tab, "Steps", 2)
    set_number(tab, "Seed", 5)
    plain = generate(tab)

    tab.locator("#class-prompts > button").click()
    chips = tab.locator("#classes button")
    chips.first.wait_for()
    assert set(chips.all_inner_texts()) == {CLASSES[i] for i in np.unique(house_map)}
    chips.get_by_text("house", exact=True).click()
    tab.keyboard.type("red brick; boat: a boat")
    field = tab.locator("#class-words textarea")
    assert field.input_value() == "house: red brick; boat: a boat"
    tab.locator("#classes :text('The map holds no boat.')").wait_for()
    tab.locator("#generate").click()
    tab.wait_for_selector("#status .error:has-text('The map holds no boat; it holds')")
    field.fill("house: red brick")
    tab.wait_for_function("!document.querySelector('.cl-missing').textContent")
    saved = generate(tab)
    assert read_request(io.BytesIO(saved)).class_prompts == {"house": "red brick"}
    assert (pixels(saved) != pixels(plain)).any()
    tab.wait_for_url("**/#*class_prompts=*")
    linked, _, _ = read_fragment(tab.url.split("#")[1])
    assert linked.class_prompts == {"house": "red brick"}

    other = visit(browser, server)
    drop(other, saved, "saved.png")
    other.wait_for_selector("#status :text('Everything is as it was')")
    other.locator("#class-words textarea").wait_for()  # unfolded by itself
    assert other.locator("#class-words textarea").input_value() == "house: red brick"
    np.testing.assert_array_equal(pixels(generate(other)), pixels(saved))
    other.context.close()


@browser_test
def test_the_prompt_is_counted_and_what_is_cut_is_said(tab):
    prompt = tab.locator("#prompt textarea")
    prompt.fill("a red house by the sea")
    tab.locator("#token-count :text('With the added prompt 12 of 75 tokens.')").wait_for()
    prompt.fill("red " * 70 + "blue house")
    tab.locator("#token-count .cut:has-text('78 of 75 tokens: \"extremely detailed\" is cut')").wait_for()
    tab.locator("#advanced > button").click()
    tab.locator("#prompt-syntax input").check()
    tab.locator("#token-count .fits:has-text('78 tokens in 2 chunks.')").wait_for()
    prompt.fill("a (red:1.3) house")
    tab.locator("#token-count :text('9 of 75 tokens')").wait_for()
    prompt.fill("")
    tab.locator("#token-count p").wait_for(state="detached")


# Without a browser ------------------------------------------------------------------------------------------


@pytest.fixture
def panel() -> ClassPromptsPanel:
    with gr.Blocks():
        return lay_out_class_prompts()


def test_what_the_field_says(panel):
    assert panel.fields(["", None], None) == {"class_prompts": {}}
    assert panel.fields(["25: brick;\n sky:", None], None) == {"class_prompts": {"house": "brick"}}
    with pytest.raises(RequestError, match="There is no class 'hous': did you mean house"):
        panel.fields(["hous: brick", None], None)
    with pytest.raises(ValueError, match="not one that was uploaded here"):
        panel.fields(["house: brick", "/etc/passwd"], None)
    assert panel.kept(["house: a", {"path": "/etc/passwd"}])[1:] == ("house: a", None)
    for damaged in ([1, None], ["a"]):
        with pytest.raises(ValueError, match=r"version|unpack"):
            panel.kept(damaged)


def test_an_example_has_prompts_for_classes(panel, tmp_path, house_map):
    Image.new("RGB", (64, 64)).save(tmp_path / "lake.png")
    Image.fromarray(house_map).save(tmp_path / "map.png")
    line = {"picture": "lake.png", "hint": "map.png", "prompt": "a lake", "class_prompts": {"house": "brick"}}
    (tmp_path / "examples.jsonl").write_text(json.dumps(line))
    generator = Generator(None, {"seg": ColorDetector()}, resolution=64, device="cpu")
    filled = Actions(generator, (), load_examples(tmp_path), [panel]).example(0)
    assert list(filled[:2]) == ["seg", str(tmp_path / "lake.png")]
    assert list(filled[7:10]) == ["house: brick", None, "a lake"]


def test_examples_may_begin_from_pictures_and_have_more_controls(tmp_path, house_map):
    Image.new("RGB", (64, 64), "red").save(tmp_path / "lake.png")
    Image.fromarray(house_map).save(tmp_path / "map.png")
    Image.new("L", (64, 64), 255).save(tmp_path / "mask.png")
    edges = {"condition": "canny", "strength": 0.5}
    line = {"picture": "lake.png", "hint": "map.png", "prompt": "a lake", "further": [edges]}
    line |= {"source": "lake.png", "mask": "mask.png", "denoise": 0.5}
    (tmp_path / "examples.jsonl").write_text(json.dumps(line))
    generator = Generator(None, {"seg": ColorDetector()}, resolution=64, device="cpu")
    asked = []

    class Noting(Panel):
        def filled(self, request):
            asked.append(request)
            return ()

    Actions(generator, (), load_examples(tmp_path), [Noting()]).example(0)
    (request,) = asked
    assert request.source.shape == (64, 64, 3) and (request.mask == 255).all() and request.denoise == 0.5
    assert [(control.condition, control.strength) for control in request.further] == [("canny", 0.5)]


def test_a_map_beside_another_condition_comes_back(panel, house_map):
    edges, tower = np.zeros((64, 64), np.uint8), np.full((64, 64), CLASSES.index("skyscraper"), np.uint8)
    for labels, name in ((house_map, "house"), (tower, "skyscraper")):
        request = Request(
            None, "", hint=edges, condition="canny", class_map=labels, class_prompts={name: "a"}
        )
        _, text, shown = panel.filled(request)
        assert text == f"{name}: a"
        file = io.BytesIO()
        Image.fromarray(shown).save(file, format="PNG")
        file.seek(0)
        np.testing.assert_array_equal(read_class_map(file), labels)
        again, _, _ = read_fragment(link_fragment(request, pack_hint(edges), packed_further=packed(request)))
        np.testing.assert_array_equal(again.class_map, labels)
        assert again.class_prompts == {name: "a"}
    noise = np.random.default_rng(0).integers(0, 150, (1024, 1024), np.uint8)
    large = Request(None, "", hint=edges, condition="canny", class_map=noise, class_prompts={"house": "a"})
    assert not read_fragment(link_fragment(large, pack_hint(edges), packed_further=packed(large)))[
        0
    ].class_prompts
    assert panel.filled(None)[1:] == ("", None)
