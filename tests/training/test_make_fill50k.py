"""The tutorial's data set as it is drawn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import ImageColor

from controlnet.training.make_fill50k import COLOR_NAMES, draw_example, main, make_fill50k
from tutorial_dataset import MyDataset


def test_color_names_are_all_of_css_once() -> None:
    ours = [ImageColor.getrgb(name.replace(" ", "")) for name in COLOR_NAMES]
    assert len(set(ours)) == len(ours)
    assert set(ours) == {ImageColor.getrgb(name) for name in ImageColor.colormap}


def test_prompt_and_outline_describe_the_picture() -> None:
    hint, picture, prompt = draw_example(7, size=128)
    circle, background = prompt.removesuffix(" background").split(" circle with ")
    rows, columns = np.nonzero(hint.max(axis=2) > 128)
    y, x = (rows.min() + rows.max()) // 2, (columns.min() + columns.max()) // 2
    assert tuple(picture[y, x]) == ImageColor.getrgb(circle.replace(" ", ""))
    assert tuple(picture[0, 0]) == ImageColor.getrgb(background.replace(" ", ""))
    assert not np.array_equal(draw_example(8, size=128)[0], hint)


def test_the_set_is_the_same_however_many_draw_it(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    main([str(tmp_path / "a"), "--count", "3", "--size", "64", "--workers", "2", "--seed", "5"])
    make_fill50k(tmp_path / "b", 3, size=64, workers=1, seed=5, progress=False)
    a, b = ({path.name: path.read_bytes() for path in (tmp_path / name).rglob("*.*")} for name in "ab")
    assert a == b

    dataset = MyDataset(str(tmp_path / "a"))
    assert len(dataset) == 3
    hint, picture, prompt = draw_example(2, size=64, seed=5)
    np.testing.assert_array_equal(np.rint(dataset[2]["hint"] * 255), hint)
    np.testing.assert_allclose((dataset[2]["jpg"] + 1) * 127.5, picture, atol=1e-4)
    assert dataset[2]["txt"] == prompt

    with pytest.raises(SystemExit) as stop:
        main([str(tmp_path / "a"), "--count", "3"])
    assert stop.value.code == 1 and "--force" in capsys.readouterr().err
