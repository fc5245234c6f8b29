"""Which pictures of a folder are meant."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from controlnet.listing import MANIFEST, list_pictures, mark_results, result_names


def touch(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_the_pictures_of_a_folder(tmp_path: Path):
    wanted = ["B.JPG", "a.png", "more/c.webp", "results/old.png", "z.jfif"]
    touch(
        tmp_path,
        *wanted,
        "notes.txt",
        ".hidden.png",
        "more/._c.webp",
        ".trash/d.png",
        "out/a.png",
        "out/x/y.png",
    )
    (tmp_path / "folder.png").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    found = list_pictures(tmp_path, leave_out=[tmp_path / "more" / ".." / "out"])
    assert [path.relative_to(tmp_path).as_posix() for path in found] == wanted
    assert list_pictures(tmp_path / "out", leave_out=[tmp_path / "out"]) == sorted(
        (tmp_path / "out").rglob("*.png")
    )
    for folder, reason in {
        "nowhere": "no such folder",
        "folder.png": "no pictures; known suffixes are .avif",
    }.items():
        with pytest.raises(ValueError, match=reason):
            list_pictures(tmp_path / folder)


def test_names_of_results_keep_the_suffix_only_where_it_tells_two_apart(tmp_path: Path):
    names = ["a.png", "b.jpg", "B.webp", "more/a.png", "e\u0301.png", "\u00e9.jpg", "x.y.png"]
    results = result_names([tmp_path / name for name in names], tmp_path)
    assert [name.as_posix() for name in results] == [
        *("a", "b.jpg", "B.webp", "more/a", "e\u0301.png", "\u00e9.jpg", "x.y"),
    ]


def names(folder: Path, **options: bool) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in list_pictures(folder, **options)]


def test_results_of_earlier_runs_are_left_out_wherever_they_lie(tmp_path: Path):
    touch(tmp_path, "a.jpg", "a.png", "a_map.png", "out/x/b.png", "out/c.png", "maps/rgb/a.png", "more/d.png")
    entry = {"name": "a", "files": ["a.png", "a_map.png"]}
    (tmp_path / MANIFEST).write_text(f"no json\n{json.dumps(entry)}\n" + '{"files": 3}\n')
    (tmp_path / "out" / f"{MANIFEST}.part0").write_text(json.dumps({"files": ["x/b.png", 5]}))
    (tmp_path / "more" / MANIFEST).write_bytes(b"\xff\xfe\0")
    mark_results(tmp_path / "maps" / "rgb")
    assert names(tmp_path) == ["a.jpg", "more/d.png", "out/c.png"]
    assert len(names(tmp_path, with_results=True)) == 7
    assert names(tmp_path / "maps" / "rgb") == ["a.png"], "named itself, it is meant"
    with pytest.raises(ValueError, match="no pictures but results of earlier runs"):
        list_pictures(tmp_path / "maps")
