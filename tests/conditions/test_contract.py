"""What every condition keeps to, whichever it is; a new one is tested here without a line."""

from __future__ import annotations

import numpy as np
import pytest

from annotator.util import resized_shape
from controlnet.conditions import Condition, ConditionError, Score, all_conditions, find_condition
from controlnet.generation.packing import pack_hint, unpack_hint
from controlnet.generation.request import Request, RequestError

HEIGHT, WIDTH = 90, 130


class StandIn:
    """Answers like the detector of any condition, without a network: edges, depth, classes of brightness."""

    def __call__(self, picture, *values, **named):
        grey = picture.mean(axis=2).astype(np.uint8)
        edges = np.where(np.abs(np.diff(grey.astype(int), axis=1, append=0)) > 40, 255, 0).astype(np.uint8)
        if "bg_th" in named:
            return grey, np.stack([grey, grey, np.full_like(grey, 255)], axis=2)
        if "hand" in named:
            return np.stack([edges, edges, edges], axis=2), {}
        return edges

    def labels(self, picture):
        return (picture.mean(axis=2) > 127).astype(np.uint8) * 2


class DepthStandIn(StandIn):
    def __call__(self, picture, *values, **named):
        grey = picture.mean(axis=2).astype(np.uint8)
        return grey, np.stack([grey, grey, np.full_like(grey, 255)], axis=2)


def stand_in(name: str) -> StandIn:
    return DepthStandIn() if name in ("depth", "normal") else StandIn()


@pytest.fixture(params=list(all_conditions()))
def condition(request) -> Condition:
    return find_condition(request.param)(stand_in(request.param))


@pytest.fixture
def picture(condition: Condition) -> np.ndarray:
    """White ground, a dark box and a grey slope; for a mask the other way round."""
    picture = np.full((HEIGHT, WIDTH, 3), 230, np.uint8)
    picture[20:60, 30:70] = 20
    picture[:, 90:] = np.linspace(0, 255, HEIGHT, dtype=np.uint8)[:, None, None]
    return 255 - picture if condition.name == "scribble_interactive" else picture


def test_all_of_the_originals_conditions_are_there():
    wanted = {"canny", "scribble", "fake_scribble", "hed", "hough", "normal", "depth", "openpose", "seg"}
    assert wanted <= set(all_conditions())


def test_texts_and_options_are_complete(condition: Condition):
    assert condition.title and condition.noun and condition.nothing_found.endswith((".", "invert."))
    assert condition.editor in (None, "label_map", "draw")
    for option in condition.options:
        assert option.label and option.low <= option.default <= option.high
        assert option.check(option.default) == option.default
        for wrong in (option.low - 1, option.high + 1, float("nan"), "1", None):
            with pytest.raises(ConditionError, match=option.name):
                option.check(wrong)


def test_a_hint_has_the_size_of_the_result_and_passes_its_own_check(
    condition: Condition, picture: np.ndarray
):
    hint = condition.hint(picture, 64, 128)
    assert hint.dtype == np.uint8 and hint.shape[:2] == resized_shape(HEIGHT, WIDTH, 64)
    assert condition.check(hint) is hint
    for shown in (condition.control(hint), condition.show(hint)):
        assert shown.dtype == np.uint8 and shown.shape == (*hint.shape[:2], 3)
    assert condition.fit(hint, 128, 192).shape[:2] == (128, 192)
    np.testing.assert_array_equal(condition.fit(hint, *hint.shape[:2]), hint)
    assert all(isinstance(remark, str) for remark in condition.remarks(hint, picture))


def test_a_hint_survives_metadata_and_being_brought_again(condition: Condition, picture: np.ndarray):
    hint = condition.hint(picture, 64, 128)
    np.testing.assert_array_equal(unpack_hint(pack_hint(hint)), hint)
    report = condition.read(condition.show(hint))
    assert condition.check(report.hint) is report.hint
    if condition.name != "hough":  # what it shows first are lines drawn thicker
        np.testing.assert_array_equal(condition.control(report.hint), condition.control(hint))


def test_a_picture_keeps_to_its_own_hint(condition: Condition, picture: np.ndarray):
    hint = condition.hint(picture, 64, 128)
    score = condition.score(hint, hint)
    if not condition.is_measured:
        assert score is None
    elif score is not None:
        assert isinstance(score, Score) and score.agreement == pytest.approx(1, abs=1e-3)
        summary = score.summary()
        assert summary["measure"] == score.measure and 0 <= summary["agreement"] <= 1
        assert score.departs is None or not score.departs.any()


def test_requests_take_it_with_its_options(condition: Condition, picture: np.ndarray):
    options = {option.name: option.high for option in condition.options}
    request = Request(picture, "a house", condition=condition.name, options=options)
    assert request.options == options and request.settings()["condition"] == condition.name
    with pytest.raises(RequestError, match="no option 'color'"):
        Request(picture, "a house", condition=condition.name, options={"color": 1})
    with pytest.raises(RequestError, match="must be uint8"):
        Request(None, "a house", condition=condition.name, hint=np.zeros((4, 4, 5), np.uint8))


def test_conditions_that_do_not_exist_are_named_with_those_that_do():
    with pytest.raises(ConditionError, match=r"no condition 'sketch'; known are canny, depth"):
        find_condition("sketch")


def test_every_condition_has_an_example():
    from controlnet.files import EXAMPLES
    from controlnet.page.examples import load_examples

    examples = load_examples(EXAMPLES)
    assert {example.condition for example in examples} == set(all_conditions())
    for example in examples:
        assert example.picture.is_file()
        if example.hint is not None:
            find_condition(example.condition).check(
                find_condition(example.condition)().read(str(example.hint)).hint
            )
