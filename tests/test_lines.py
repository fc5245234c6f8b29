"""Files of JSON lines as people and other programs write them."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from controlnet.lines import LinesError, capped, read_objects
from controlnet.training.data.records import DataError, DataSetError, read_records


def lines_of(path: Path, content: bytes) -> list:
    path.write_bytes(content)
    return list(read_objects(path))


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_a_line_ends_at_a_newline_and_nowhere_else(tmp_path: Path, mark: bytes, end: bytes):
    texts = ["a\u2028b\u2029c", "d\x85e\x0bf", "\U0001f3e0"]
    rows = [json.dumps({"prompt": text}, ensure_ascii=False).encode() for text in texts]
    found = lines_of(tmp_path / "a.jsonl", mark + end.join([rows[0], b"", rows[1], b"  ", rows[2]]))
    assert [line.number for line in found] == [1, 3, 5]
    assert [line.content["prompt"] for line in found] == texts
    assert not any(line.problem for line in found)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("café".encode("cp1252"), r"not UTF-8 \(0xe9 at byte 4\)"),
        (b"{not json", r"not a line of JSON \(.* at character 2\)"),
        (b'["a list"]', "a JSON object is wanted, got list"),
        (b"3", "a JSON object is wanted, got int"),
        (b'{"a": ' + b"[" * 100_000, "nested too deeply"),
        (b'{"seed": ' + b"9" * 5_000 + b"}", "digits"),
        (rb'{"prompt": "\ud83d"}', "half a character"),
    ],
    ids=lambda value: value[:12] if isinstance(value, bytes) else None,
)
def test_one_bad_line_is_one_problem(tmp_path: Path, line: bytes, problem: str):
    found = lines_of(tmp_path / "a.jsonl", b'{"a": 1}\n' + line + b'\n{"b": "\\ud83c\\udfe0"}\n')
    assert [bool(line.problem) for line in found] == [False, True, False]
    assert found[2].content == {"b": "\U0001f3e0"}
    with pytest.raises(ValueError, match=problem):
        raise ValueError(found[1].problem)
    assert len(found[1].problem) < 200 and "\n" not in found[1].problem


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (json.dumps([{"a": 1}, {"b": 2}], indent=2).encode(), "one JSON array"),
        (json.dumps([{"a": 1}, {"b": 2}]).encode(), "one JSON array"),
        (b'[{"a": 1},\n {"b": 2}]\n', "one JSON array"),
        (b'\n{\n  "a": 1\n}\n', "one JSON object over many lines"),
        ('{"a": 1}'.encode("utf-16"), "this is UTF-16"),
    ],
    ids=["indented", "on one line", "an object a line", "an object", "UTF-16"],
)
def test_what_is_no_file_of_lines_is_one_line_of_error(tmp_path: Path, content: bytes, reason: str):
    path = tmp_path / "prompt.json"
    with pytest.raises(LinesError, match=reason) as caught:
        lines_of(path, content)
    assert str(caught.value).startswith(f"{path}: ")
    with pytest.raises(DataError, match=reason) as caught:
        read_records(tmp_path)
    assert len(str(caught.value).splitlines()) == 1


def test_only_regular_files_are_read(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe.jsonl")
    for path in (tmp_path / "pipe.jsonl", tmp_path, Path("/dev/zero")):
        with pytest.raises(LinesError, match="not a regular file"):
            list(read_objects(path))
    with pytest.raises(FileNotFoundError):
        list(read_objects(tmp_path / "nowhere.jsonl"))


def test_a_line_without_end_is_not_read_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("controlnet.lines.MOST_BYTES", 100)
    with pytest.raises(LinesError, match="line 2 is longer than 100 bytes"):
        lines_of(tmp_path / "a.jsonl", b"{}\n" + b"x" * 1000)


def test_lists_of_faults_are_capped():
    assert capped(["a", "b"], most=2) == ["a", "b"]
    assert capped(range(216), most=3) == ["0", "1", "2", "… and 213 more"]


def test_a_data_set_of_faults_names_the_first(tmp_path: Path):
    (tmp_path / "prompt.json").write_text("{bad}\n" * 233)
    with pytest.raises(DataSetError) as caught:
        read_records(tmp_path)
    lines = str(caught.value).splitlines()
    assert len(caught.value.faults) == 233
    assert len(lines) == 22 and lines[-1] == "… and 213 more"
