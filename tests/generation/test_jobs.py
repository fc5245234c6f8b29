"""Jobs before they run: names, files, clashes, hostile lines. No model is needed."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import numpy as np
import pytest

from controlnet.commands import generate
from controlnet.generation.jobs import Job, check_jobs, jobs_of_lines, jobs_of_pictures, result_files
from controlnet.generation.png import save_png
from controlnet.generation.request import RequestError

GREY = np.full((64, 64, 3), 128, np.uint8)


def pictures(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        save_png(folder / name, GREY) if name.endswith(".png") else (folder / name).write_bytes(b"x")
    return folder


def lines(folder: Path, *rows: dict | str) -> Path:
    path = folder / "requests.jsonl"
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return path


def refused(capsys: pytest.CaptureFixture, *arguments: object) -> str:
    """What the command says when it does nothing."""
    assert generate.main([*map(str, arguments), "--model", "tiny", "--device", "cpu"]) == 2
    return capsys.readouterr().err


def test_a_photo_is_never_written_over(tmp_path, capsys):
    folder = pictures(tmp_path / "photos", "a.png", "b.png")
    before = (folder / "a.png").read_bytes()
    for source, out in ((folder, folder), (folder / "a.png", folder)):
        assert "a.png" in refused(capsys, source, out, "--prompt", "x")
    assert (folder / "a.png").read_bytes() == before
    assert sorted(path.name for path in folder.iterdir()) == ["a.png", "b.png"]


@pytest.mark.parametrize(
    ("names", "clash"),
    [
        (("house.png", "house_map.png"), "house_map.png"),
        (("p.jpg", "P.png"), "p.jpg.png"),
        (("m.png", "m_map.jpg"), "m_map.png"),
    ],
)
def test_pictures_whose_results_would_clash_are_named_or_told_apart(tmp_path, names, clash):
    folder = pictures(tmp_path / "photos", *names)
    jobs = jobs_of_pictures(folder, {"prompt": "x"})
    files = [file.casefold() for job in jobs for file in job.files()]
    if len(set(files)) < len(files):
        with pytest.raises(ValueError, match=clash):
            check_jobs(jobs, tmp_path / "out", folder)
    else:
        check_jobs(jobs, tmp_path / "out", folder)


@pytest.mark.parametrize(
    "rows",
    [
        [{"name": "m", "num_samples": 2}, {"name": "m_1"}],
        [{"name": "A"}, {"name": "a"}],
        [{"name": "a"}, {"name": "a_map"}],
        [{"name": "caf\u00e9"}, {"name": "cafe\u0301"}],
    ],
)
def test_lines_whose_results_would_clash_are_named_and_nothing_runs(tmp_path, capsys, rows):
    save_png(tmp_path / "a.png", GREY)
    path = lines(tmp_path, *({"image": "a.png", "prompt": "x", **row} for row in rows))
    assert "would be the same file" in refused(capsys, path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("first", "second"), [("./a", "a"), ("sub//x", "sub/x")])
def test_two_spellings_of_a_name_are_one(tmp_path, first, second):
    save_png(tmp_path / "a.png", GREY)
    path = lines(tmp_path, *({"image": "a.png", "prompt": "x", "name": name} for name in (first, second)))
    good, bad = jobs_of_lines(path, {})
    assert not good.problem and "came before" in bad.problem


def test_results_inside_the_source_are_no_sources(tmp_path):
    folder = pictures(tmp_path / "photos", "a.png")
    pictures(folder / "results", "a.png", "a_map.png")
    (folder / "._a.jpg").write_bytes(b"\0\5\x16\7")
    jobs = jobs_of_pictures(folder, {"prompt": "x"}, out=folder / "results")
    assert [job.name for job in jobs] == ["a"]
    check_jobs(jobs, folder / "results", folder)


def test_the_list_of_results_is_not_written_over_the_list_of_requests(tmp_path, capsys):
    save_png(tmp_path / "a.png", GREY)
    path = lines(tmp_path, {"image": "a.png", "prompt": "x"}).rename(tmp_path / "manifest.jsonl")
    content = path.read_bytes()
    assert "the list of results, would be the same file as the input" in refused(capsys, path, tmp_path)
    assert path.read_bytes() == content


def test_lines_end_at_line_feeds_only_and_may_begin_with_a_mark(tmp_path):
    save_png(tmp_path / "a.png", GREY)
    odd = {"image": "a.png", "prompt": "one\u2028line\u0085only"}
    path = tmp_path / "requests.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(odd, ensure_ascii=False).encode() + b"\n")
    (job,) = jobs_of_lines(path, {})
    assert job.request()[0].prompt == odd["prompt"]


@pytest.mark.parametrize("encoding", ["utf-16", "cp1252"])
def test_other_encodings_are_said(tmp_path, capsys, encoding):
    path = tmp_path / "requests.jsonl"
    path.write_bytes('{"image": "a.png", "prompt": "Käse"}\n'.encode(encoding))
    try:
        told = " ".join(job.problem for job in jobs_of_lines(path, {}))
    except ValueError as error:
        told = str(error)
    assert "UTF" in told and "\n" not in told


def test_hostile_lines_are_problems_of_their_own(tmp_path):
    save_png(tmp_path / "a.png", GREY)
    os.mkfifo(tmp_path / "pipe.png")
    good = {"image": "a.png", "prompt": "x"}
    path = lines(
        tmp_path,
        json.dumps(good)[:-1] + ', "seed": ' + "9" * 400 + "}",
        "[" * 100_000,
        {"hint": "/dev/zero", "prompt": "x"},
        {"image": "pipe.png", "prompt": "x"},
        {**good, "condition": "sketch"},
        {**good, "options": [1]},
        good,
    )
    started = time.monotonic()
    *bad, last = jobs_of_lines(path, {})
    for job in bad:
        with pytest.raises(ValueError) as caught:
            job.request()
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 400
        job.asked()
    assert last.request()[0].prompt == "x"
    assert time.monotonic() - started < 5


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"image": ["a.png"]}, "image must be the path of a file, got ['a.png']"),
        ({"hint": {"a": 1}}, "hint must be the path of a file, got {'a': 1}"),
        ({"image": "a\0.png"}, "image must be the path of a file"),
        ({"image": "a.png", "name": "a\0"}, "is no path below the output folder"),
        ({"image": "a.png", "name": "é" * 101}, "… is longer than 200 bytes"),
    ],
    ids=str,
)
def test_what_is_no_path_is_said_before_any_work(tmp_path, row, problem):
    (job,) = jobs_of_lines(lines(tmp_path, {"prompt": "x", **row}), {})
    assert problem in job.problem and "line 1" in job.problem


def test_a_file_without_a_line_is_an_error(tmp_path, capsys):
    said = refused(capsys, lines(tmp_path), tmp_path / "out")
    assert "there is no line in it" in said


def test_ten_thousand_lines_take_no_minute(tmp_path):
    path = lines(tmp_path, *({"image": "a.png", "prompt": "x", "name": f"n{k}"} for k in range(10_000)))
    started = time.monotonic()
    jobs = jobs_of_lines(path, {})
    check_jobs(jobs, tmp_path / "out", path)
    assert len(jobs) == 10_000 and time.monotonic() - started < 10


def test_options_of_the_command_line_go_with_their_condition(tmp_path):
    save_png(tmp_path / "a.png", GREY)
    good = {"image": "a.png", "prompt": "x"}
    path = lines(
        tmp_path, good, {**good, "condition": "hough", "value_threshold": 0.2}, {**good, "low_threshold": 7}
    )
    options = generate.parse_arguments(
        [str(path), str(tmp_path / "out"), "--condition", "canny", "--low-threshold", "50"]
    )
    first, second, third = (job.request()[0] for job in generate.jobs_of(options))
    assert (first.condition, first.options["low_threshold"]) == ("canny", 50)
    assert (second.condition, second.options["value_threshold"]) == ("hough", 0.2)
    assert third.options["low_threshold"] == 7
    with pytest.raises(RequestError, match="--condition seg has no --low-threshold"):
        generate.jobs_of(generate.parse_arguments([str(path), str(tmp_path), "--low-threshold", "50"]))


def test_a_jobs_files_follow_from_its_settings():
    assert result_files("a/b", 1) == ["a/b_map.png", "a/b.png"]
    assert Job("a", {"num_samples": 2}).files() == ["a_map.png", "a_0.png", "a_1.png"]
    assert Job("a", {"num_samples": "many"}).files() == ["a_map.png", "a.png"]
