"""Grids: which requests two axes ask for, how axes are written, and that a cell is what it is alone."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from front.small_page import draw

from controlnet.generation.grid import AXES, Axis, Grid, axis_of_object, generate_grid, read_axis
from controlnet.generation.request import Request, RequestError
from controlnet.generation.watcher import Cancelled

VALUES = {
    "prompt": ("a house", "a lake"),
    "seed": (3, 4, 5),
    "strength": (0.5, 1.0),
    "scale": (1.0, 3.0, 9.0),
    "ddim_steps": (1, 2),
    "sampler": ("ddim", "unipc"),
}
MAP = np.zeros((64, 64), np.uint8)


@pytest.mark.parametrize(("rows", "columns"), list(itertools.permutations(AXES, 2)))
def test_every_cell_differs_from_the_request_in_its_two_settings_alone(rows, columns):
    base = Request(None, "a tower", hint=MAP, num_samples=4, strength=0.25, per_sample_seeds=True)
    grid = Grid(Axis(rows, VALUES[rows]), Axis(columns, VALUES[columns]))
    requests = grid.requests(base)
    assert len(requests) == len(grid) == len(VALUES[rows]) * len(VALUES[columns])
    assert len({request.seed for request in requests}) == (3 if "seed" in (rows, columns) else 1)
    for (row, column), request in zip(grid.places(), requests, strict=True):
        varied = {rows: VALUES[rows][row], columns: VALUES[columns][column]}
        assert request.seed >= 0
        assert request.settings() == {**base.settings(), "seed": request.seed, "num_samples": 1, **varied}
        assert request.hint is MAP


@pytest.mark.parametrize(
    ("name", "text", "values"),
    [
        ("prompt", "a house, red\n\n  a lake | boat \na house, red", ("a house, red", "a lake | boat")),
        ("seed", "3, 5;7-9\n3", (3, 5, 7, 8, 9)),
        ("ddim_steps", "10..12", (10, 11, 12)),
        ("strength", "0, 0.5,1e0", (0.0, 0.5, 1.0)),
        ("scale", "9", (9.0,)),
        ("sampler", "UniPC, ddim, dpm++ 2m karras", ("unipc", "ddim", "dpmpp_2m_karras")),
    ],
)
def test_axes_are_read_as_people_write_them(name, text, values):
    axis = read_axis(name, text)
    assert axis.values == values
    assert len({axis.label(place) for place in range(len(values))}) == len(values)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("seed", "1, two", "Seed 'two': whole numbers from"),
        ("seed", "0.5", "whole numbers"),
        ("seed", "-1", "from 0"),
        ("seed", "1-99999999", "too many"),
        ("seed", "9-3", "Seed '9-3'"),
        ("strength", "much", "numbers from 0 to 2"),
        ("sampler", "magic", "'magic': there are ddim"),
        ("prompt", "\n \n", "no values"),
        ("eta", "1", "An axis is one of prompt"),
    ],
)
def test_what_is_no_axis_is_told(name, text, said):
    with pytest.raises(RequestError, match=said):
        read_axis(name, text)


@pytest.mark.parametrize(
    "content",
    [{"seed": 3}, {"seed": [[1]]}, {"seed": [1], "scale": [1]}, {"strength": [True, {}]}, {"seed": []}],
)
def test_what_is_no_axis_in_json_is_told(content):
    with pytest.raises(RequestError):
        axis_of_object(content)
    assert axis_of_object({}).values == ("",)


def test_values_out_of_range_are_told_before_anything_is_made():
    base = Request(None, "", hint=MAP, eta=1.0)
    with pytest.raises(RequestError, match="strength must be from 0 to 2"):
        Grid(read_axis("strength", "1, 3")).requests(base)
    with pytest.raises(RequestError, match="eta"):
        Grid(read_axis("sampler", "ddim, unipc")).requests(base)
    with pytest.raises(RequestError, match="both vary seed"):
        Grid(read_axis("seed", "1"), read_axis("seed", "2"))


def test_a_cell_is_what_its_request_gives_alone(generator):
    detector = generator.detectors["seg"]
    base = Request(draw(), "a house", num_samples=3, ddim_steps=1, a_prompt="")
    grid = Grid(read_axis("seed", "5-6"), read_axis("strength", "0, 1"))
    cells = list(generate_grid(generator, grid, grid.requests(base)))
    assert len(detector.calls) == 1, "the map is detected once"
    assert [(cell.row, cell.column) for cell in cells] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    alone = generator.generate(
        Request(draw(), "a house", ddim_steps=1, a_prompt="", seed=6, strength=0.0, num_samples=1)
    )
    np.testing.assert_array_equal(cells[2].result.pictures[0], alone.pictures[0])
    assert cells[2].result.seeds == (6,)
    assert cells[0].result.shown is cells[3].result.shown, "what all share is kept once"


def test_a_grid_that_is_stopped_has_given_what_was_done(generator):
    grid = Grid(read_axis("seed", "1-3"))
    requests = grid.requests(Request(draw(), "", ddim_steps=1))
    done: list = []
    with pytest.raises(Cancelled):
        done.extend(generate_grid(generator, grid, requests, should_stop=lambda: len(done) == 2))
    assert len(done) == 2
