"""Grids: which requests two axes ask for, how axes are written, and that a cell is what it is alone."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from front.small_page import draw

from controlnet.commands import generate as tool_generate
from controlnet.generation.entries import read_entries
from controlnet.generation.grid import AXES, Axis, Grid, axis_of_object, generate_grid, read_axis
from controlnet.generation.jobs import jobs_of_pictures
from controlnet.generation.png import read_request, save_png
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


# On disk ----------------------------------------------------------------------------------------------------


def run(*arguments) -> int:
    return tool_generate.main([str(argument) for argument in arguments])


def test_the_command_line_makes_a_grid_of_every_picture_and_completes_it(tmp_path, model_options, capsys):
    for index, name in enumerate("ab"):
        (tmp_path / "in").mkdir(exist_ok=True)
        save_png(tmp_path / "in" / f"{name}.png", np.roll(draw(), 9 * index, axis=1))
    (tmp_path / "in" / "c.png").write_bytes(b"broken")
    axes = ["--rows", "prompt=a house|a lake", "--columns", "steps=1-2"]
    arguments = [tmp_path / "in", tmp_path / "out", *axes, *model_options]
    assert run(*arguments) == 1
    said = capsys.readouterr()
    assert "failed: c_r1c1" in said.err and "8 of 12 done" in said.out and "a_grid.png" in said.out
    sheets = sorted(path.name for path in (tmp_path / "out").glob("*_grid.png"))
    assert sheets == ["a_grid.png", "b_grid.png"], "none of what failed wholly"
    request = read_request(tmp_path / "out" / "b_r2c1.png")
    assert (request.prompt, request.ddim_steps, request.seed) == ("a lake", 1, 0)
    entries = {entry["name"]: entry for entry in read_entries(tmp_path / "out")}
    assert entries["a_grid"]["grid"] == {"prompt": ["a house", "a lake"], "ddim_steps": [1, 2]}
    first = (tmp_path / "out" / "a_grid.png").read_bytes()
    (tmp_path / "out" / "a_r1c1.png").unlink()
    assert run(*arguments) == 1
    assert (tmp_path / "out" / "a_grid.png").read_bytes() == first
    again = jobs_of_pictures(tmp_path / "out", {}, repeat=True)
    assert {job.name for job in again} == {
        f"{name}_r{r}c{c}" for name in "ab" for r in (1, 2) for c in (1, 2)
    }


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--rows", "seed=1", "--columns", "seed=2"], "both vary seed"),
        (["--rows", "seed=1-999"], "999 pictures are more than the 400"),
        (["--rows", "seed=1-2", "--from-image"], "choose one of the two"),
    ],
)
def test_grids_that_cannot_be_made_are_told_by_the_command_line(
    tmp_path, model_options, capsys, arguments, said
):
    save_png(tmp_path / "a.png", draw())
    assert run(tmp_path / "a.png", tmp_path / "out", "--prompt", "a house", *arguments, *model_options) == 2
    assert said in capsys.readouterr().err
