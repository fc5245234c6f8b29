"""What a batch will write is looked at before it begins."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from controlnet.outputs import check_outputs


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "house.jpg").touch()
    (tmp_path / "link").symlink_to(tmp_path / "photos")
    return tmp_path


def test_different_files_pass(folder: Path):
    planned = {"a": [folder / "a.png", folder / "a_map.png"], "b/a": [folder / "b" / "a.png"], "nothing": []}
    check_outputs(planned, [folder / "photos" / "house.jpg", folder / "nowhere.png"])


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("out/m.png", "out/m.png"),
        ("out/a.png", "out/./a.png"),
        ("out/sub/x.png", "out/sub//x.png"),
        ("out/x.png", "out/sub/../x.png"),
        ("out/House.png", "out/house.png"),
        ("out/strasse.png", "out/stra\u00dfe.png"),
        ("out/e\u0301.png", "out/\u00e9.png"),
        ("OUT/a.png", "out/a.png"),
        ("photos/a.png", "link/a.png"),
    ],
)
def test_two_names_of_one_file_are_a_clash(folder: Path, first: str, second: str):
    planned = {"the first": [folder / first], "the second": [Path(f"{folder}/{second}")]}
    with pytest.raises(
        ValueError, match=r"made of the second, would be the same file as .*made of the first"
    ):
        check_outputs(planned, [])


def test_one_job_must_not_write_a_file_twice(folder: Path):
    with pytest.raises(ValueError, match=r"a\.png, made of m, would be the same file"):
        check_outputs({"m": [folder / "a.png", folder / "a.png"]}, [])


@pytest.mark.parametrize("output", ["photos/house.jpg", "link/house.jpg", "photos/HOUSE.jpg", "aim.jpg"])
def test_no_output_is_an_input(folder: Path, output: str):
    """Nor the file that an input links to."""
    (folder / "aim.jpg").touch()
    (folder / "photos" / "linked.jpg").symlink_to(folder / "aim.jpg")
    inputs = [folder / "photos" / "house.jpg", folder / "photos" / "linked.jpg"]
    with pytest.raises(ValueError, match=r"made of house, would be the same file as the input .*\.jpg"):
        check_outputs({"house": [folder / output]}, inputs)


def test_a_file_is_no_folder(folder: Path):
    planned = {"x": [folder / "out" / "x.png"], "below": [folder / "out" / "X.png" / "deep" / "y.png"]}
    with pytest.raises(ValueError, match=r"made of below, would lie below .*made of x, which is a file"):
        check_outputs(planned, [])
    with pytest.raises(ValueError, match=r"would lie below the input .*house\.jpg"):
        check_outputs({"y": [folder / "photos" / "house.jpg" / "y.png"]}, [folder / "photos" / "house.jpg"])


def test_many_files_take_little_time(folder: Path):
    planned = {
        str(number): [folder / f"{number}.png", folder / f"{number}_map.png"] for number in range(5_000)
    }
    started = time.process_time()
    check_outputs(planned, [folder / f"{number}.jpg" for number in range(5_000)])
    assert time.process_time() - started < 5
