"""The tools of the editors in a real browser: what each paints, and that undo takes it back."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from front.in_browser import browser_test, drag, visit
from front.small_page import GRASS, SKY, WATER, ColorDetector, draw

from annotator.ade20k import CLASSES, PALETTE
from controlnet.page.editors.class_words import OTHER_WORDS, other_words

TREE = CLASSES.index("tree")


@pytest.fixture(scope="module")
def opened(browser, server) -> Iterator:
    """One page for all tests of this file: it is `draw()`'s map, 64 pixels wide, and no picture."""
    errors: list[str] = []
    tab = visit(browser, server, errors=errors, has_touch=True)
    tab.locator("#examples button").first.click()
    tab.wait_for_selector("#editor [data-state=ready]")
    tab.wait_for_timeout(500)
    tab.evaluate("document.querySelector('#editor canvas').scrollIntoView({ block: 'center' })")
    yield tab
    tab.context.close()
    assert not errors


@pytest.fixture
def tab(opened):
    """The page as the first test found it."""
    yield opened
    opened.locator("#editor canvas").focus()
    opened.keyboard.press("Escape")
    opened.keyboard.press("0")
    while opened.locator("#editor [data-action=undo]").is_enabled():
        opened.locator("#editor [data-action=undo]").click()
    assert (seen(opened) == ColorDetector().labels(draw())).all(), "undo brings everything back"


def seen(tab, hide_pointer: bool = True) -> np.ndarray:
    """Class indices that the canvas shows: its colours, exactly, or 255 where there is no such colour."""
    if hide_pointer:  # also that of the arrows
        tab.locator("#editor canvas").hover()
        tab.mouse.move(2, 2)
    tab.locator("#editor [data-control=opacity]").evaluate(
        "(slider) => { slider.value = 100; slider.dispatchEvent(new Event('input')); }"
    )
    width, height, data = tab.evaluate(
        """() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => {
          const canvas = document.querySelector("#editor canvas");
          const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
          done([canvas.width, canvas.height, Array.from(data)]);
        })))"""
    )
    colors = np.array(data, np.int32).reshape(height, width, 1, 4)[..., :3]
    same = (colors == np.asarray(PALETTE, np.int32)).all(-1)
    return np.where(same.any(-1), same.argmax(-1), 255).astype(np.uint8)


def choose(tab, words: str) -> None:
    search = tab.locator("#editor input[type=search]")
    search.fill(words)
    search.press("Enter")
    search.fill("")


def use(tab, tool: str, size: int = 4) -> None:
    tab.locator(f"#editor [data-tool={tool}]").click()
    tab.locator("#editor [data-control=size]").fill(str(size))


def chosen(tab) -> str:
    return tab.locator("#editor [data-out=current]").inner_text()


# Search -----------------------------------------------------------------------------------------------------


@browser_test
def test_the_search_finds_the_class_that_is_meant(tab):
    wanted = {
        "tree": "tree", "ocean": "sea", "dog": "animal", "Trees": "tree", "light": "light", "street": "road",
        "tab": "table", "puddles": "water", "berries": None,
    }  # fmt: skip
    search, listed = tab.locator("#editor input[type=search]"), tab.locator("#editor .me-classes")
    for words, name in wanted.items():
        before = chosen(tab)
        search.fill(words)
        assert ("No such class" in listed.inner_text()) == (name is None), words
        search.press("Enter")
        assert chosen(tab) == (name or before), words
    assert tab.locator("#editor [data-out=note]").inner_text() == "No such class: berries."
    search.fill("")


def test_other_words_belong_to_classes_and_are_no_names():
    assert set(OTHER_WORDS) <= set(CLASSES)
    words = [word for name in CLASSES for word in other_words(name)]
    assert not set(words) & set(CLASSES)
    assert all(word == word.strip().lower() and word for word in words)


# Tools ------------------------------------------------------------------------------------------------------


@browser_test
def test_line_box_and_lasso_fill_what_they_enclose(tab):
    choose(tab, "tree")
    use(tab, "rectangle")
    drag(tab, (0.6, 0.1), (0.9, 0.3))
    box = seen(tab)
    rows, columns = np.nonzero(box == TREE)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (6, 19, 38, 57)
    assert len(rows) == 14 * 20, "all of the rectangle, and nothing else"
    choose(tab, "water")
    use(tab, "line", 4)
    drag(tab, (0.1, 0.9), (0.9, 0.9))
    line = seen(tab)
    assert (line[57, 6:58] == WATER).all() and (line[50] == GRASS).all()
    choose(tab, "sea")
    use(tab, "lasso")
    corners = [(0.05, 0.05), (0.2, 0.05), (0.2, 0.2), (0.05, 0.2)]
    follow(tab, corners)
    lasso = seen(tab) == CLASSES.index("sea")
    assert lasso[8, 8] and 60 <= lasso.sum() <= 110, "the outline closes by itself"


def follow(tab, places) -> None:
    box = tab.locator("#editor canvas").bounding_box()
    points = [(box["x"] + box["width"] * x, box["y"] + box["height"] * y) for x, y in places]
    tab.mouse.move(*points[0])
    tab.mouse.down()
    for point in points[1:]:
        tab.mouse.move(*point, steps=4)
    tab.mouse.up()


@browser_test
def test_the_eyedropper_takes_the_class_and_the_brush_goes_on(tab):
    use(tab, "pick")
    drag(tab, (0.35, 0.5), (0.35, 0.5))
    assert chosen(tab) == "house"
    assert tab.locator("#editor [data-tool=brush]").get_attribute("aria-checked") == "true"


@browser_test
def test_fill_leaks_through_a_gap_unless_gaps_are_closed(tab):
    choose(tab, "tree")
    use(tab, "line", 2)  # a wall over the sky beside the house, with a gap of some pixels
    drag(tab, (0.75, 0.0), (0.75, 0.2))
    drag(tab, (0.75, 0.28), (0.75, 0.48))
    choose(tab, "water")
    use(tab, "fill")
    tab.locator("#editor [data-control=gap]").fill("10")
    drag(tab, (0.9, 0.2), (0.9, 0.2))
    closed = seen(tab)
    assert (closed[2:30, 52:] == WATER).all() and (closed[:15, :40] == SKY).all()
    tab.keyboard.press("Control+z")
    tab.locator("#editor [data-control=gap]").fill("0")
    drag(tab, (0.9, 0.2), (0.9, 0.2))
    assert (seen(tab)[:15, :40] == WATER).all()


@browser_test
def test_brackets_change_the_size_and_a_pen_that_is_pressed_lightly_is_thin(tab):
    choose(tab, "tree")
    use(tab, "brush", 20)
    tab.locator("#editor canvas").focus()
    tab.keyboard.press("]")
    size = tab.locator("#editor [data-control=size]")
    assert int(size.input_value()) == 23
    tab.keyboard.press("[")
    assert int(size.input_value()) == 20
    wide = dab(tab, {"force": 1.0})
    thin = dab(tab, {"force": 0.2})
    assert wide > 4 * thin > 0


def dab(tab, pen: dict) -> int:
    """Pixels that a touch of a pen paints."""
    box = tab.locator("#editor canvas").bounding_box()
    place = {"x": box["x"] + box["width"] * 0.7, "y": box["y"] + box["height"] * 0.3, "pointerType": "pen"}
    protocol = tab.context.new_cdp_session(tab)
    for kind, buttons in (("mousePressed", 1), ("mouseReleased", 0)):
        event = {"type": kind, "button": "left", "buttons": buttons, "clickCount": 1}
        protocol.send("Input.dispatchMouseEvent", {**event, **place, **pen})
    painted = int((seen(tab) == TREE).sum())
    tab.keyboard.press("Control+z")
    return painted


@browser_test
def test_shapes_by_keyboard(tab):
    choose(tab, "tree")
    tab.locator("#editor canvas").focus()
    tab.keyboard.press("r")
    use(tab, "rectangle", 20)
    tab.locator("#editor canvas").focus()
    for key in ("ArrowUp", "Space", "ArrowRight", "ArrowDown", "Space"):
        tab.keyboard.press(key)
    rows, columns = np.nonzero(seen(tab) == TREE)
    assert (np.ptp(rows), np.ptp(columns), len(rows)) == (10, 10, 121)


@browser_test
def test_fifty_steps_can_be_undone_and_done_again(tab):
    choose(tab, "tree")
    tab.locator("#editor canvas").focus()
    use(tab, "brush", 2)
    tab.locator("#editor canvas").focus()
    for k in range(50):
        tab.keyboard.press("ArrowRight" if k % 2 else "ArrowDown")
        tab.keyboard.press("Space")
    painted = seen(tab)
    assert (painted == TREE).sum() > 60
    for _ in range(50):
        tab.keyboard.press("Control+z")
    assert tab.locator("#editor [data-action=undo]").is_disabled()
    assert (seen(tab) == ColorDetector().labels(draw())).all()
    for _ in range(50):
        tab.keyboard.press("Control+y")
    assert (seen(tab) == painted).all()


# Zoom and pan -----------------------------------------------------------------------------------------------


def zoomed(tab) -> int:
    return int(tab.locator("#editor [data-out=zoom]").inner_text().split()[0])


@browser_test
def test_the_wheel_enlarges_and_space_moves_and_a_stroke_lands_under_the_pointer(tab):
    choose(tab, "tree")
    use(tab, "brush", 2)
    canvas = tab.locator("#editor canvas")
    box = canvas.bounding_box()
    middle = (box["x"] + box["width"] * 0.75, box["y"] + box["height"] * 0.25)
    tab.mouse.move(*middle)
    canvas.focus()
    for _ in range(4):
        tab.mouse.wheel(0, -120)
    tab.wait_for_function("parseInt(document.querySelector('#editor [data-out=zoom]').innerText) > 300")
    tab.keyboard.down("Space")
    tab.mouse.down()
    tab.mouse.move(middle[0] - 40, middle[1], steps=3)
    tab.mouse.up()
    tab.keyboard.up("Space")
    assert tab.locator("#editor [data-action=undo]").is_disabled(), "moving is not painting"
    tab.mouse.move(middle[0] - 40, middle[1])
    tab.mouse.down()
    tab.mouse.up()
    rows, columns = np.nonzero(seen(tab) == TREE)
    assert abs(columns.mean() - 48) <= 1 and abs(rows.mean() - 16) <= 1
    tab.locator("#editor [data-action=fit]").click()
    assert zoomed(tab) == 100


@browser_test
def test_two_fingers_enlarge_and_do_not_paint(tab):
    choose(tab, "tree")
    use(tab, "brush", 8)
    box = tab.locator("#editor canvas").bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 4
    protocol = tab.context.new_cdp_session(tab)

    def fingers(kind: str, *places: float) -> None:
        points = [{"x": x + dx, "y": y, "id": k} for k, dx in enumerate(places)]
        protocol.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    fingers("touchStart", -20)
    fingers("touchMove", -22)
    fingers("touchStart", -22, 20)
    for reach in (30, 40, 60):
        fingers("touchMove", -reach, reach)
    fingers("touchEnd", -60)
    fingers("touchMove", -10)
    fingers("touchEnd")
    assert zoomed(tab) > 200
    assert (seen(tab, hide_pointer=False) != TREE).all()
    assert tab.locator("#editor [data-action=undo]").is_disabled()
    tab.locator("#editor [data-action=fit]").click()
    fingers("touchStart", 0)
    fingers("touchEnd")
    assert (seen(tab, hide_pointer=False) == TREE).sum() > 20, "one finger does"
