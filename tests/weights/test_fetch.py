"""Fetching against a server that misbehaves: never a wrong file under the right name, and clear words."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hub_server import Hub, serve

from controlnet.commands import weights as weights_command
from controlnet.weights import fetch as fetching
from controlnet.weights.fetch import FetchError, fetch
from controlnet.weights.table import RELEASED, Released, UnknownWeights, find_released

CONTENT = bytes(range(256)) * 4000  # a megabyte
REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _online(monkeypatch: pytest.MonkeyPatch) -> None:
    """The suite is offline; this server is on this machine. The client's pauses and pieces are small here."""
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 2**14)
    monkeypatch.setattr("time.sleep", lambda _seconds: None)


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serve(Hub(CONTENT)) as running:
        yield running


@pytest.fixture
def released() -> Released:
    """A file of which everything is known."""
    return Released(
        "seg",
        "someone/weights",
        "models/seg.pth",
        "models/seg.pth",
        "a test",
        len(CONTENT),
        hashlib.sha256(CONTENT).hexdigest(),
    )


@pytest.fixture(params=["known", "unknown"])
def either(request, released: Released) -> Released:
    """With its sha256 known here, and without."""
    return released if request.param == "known" else replace(released, size=None, sha256=None)


def files_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_a_file_comes_to_its_place(either: Released, hub: Hub, tmp_path: Path):
    fetched = fetch(either, tmp_path, source=hub.url)
    assert fetched.path == tmp_path / "models" / "seg.pth"
    assert fetched.path.read_bytes() == CONTENT
    assert (fetched.was_there, fetched.sha256) == (False, hub.sha256)
    assert fetched.sum_is_of_hub == (either.sha256 is None)
    assert files_in(tmp_path) == ["models/seg.pth"]
    assert hub.paths[0] == "/someone/weights/resolve/main/models/seg.pth"


def test_a_file_that_is_there_is_checked_and_not_fetched_again(either: Released, hub: Hub, tmp_path: Path):
    fetch(either, tmp_path, source=hub.url)
    hub.ranges.clear()
    assert fetch(either, tmp_path, source=hub.url).was_there
    assert hub.ranges == []
    if either.sha256:
        hub.mode = "gone"
        assert fetch(either, tmp_path, source=hub.url).was_there, "what is known needs no network"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (CONTENT[:-1], r"it has 1,023,999 bytes, not 1,024,000\. Move it away"),
        (
            CONTENT[:-1] + b"!",
            r"its sha256 is [0-9a-f]{64}, not [0-9a-f]{64}\. Move it away, or replace it with --force",
        ),
        (b"<html>log in</html>", r"it has 19 bytes, not 1,024,000 \(it is a web page\)"),
    ],
)
def test_another_file_at_the_place_stays(
    content: bytes, says: str, either: Released, hub: Hub, tmp_path: Path
):
    place = tmp_path / "models" / "seg.pth"
    place.parent.mkdir()
    place.write_bytes(content)
    with pytest.raises(FetchError, match=says):
        fetch(either, tmp_path, source=hub.url)
    assert place.read_bytes() == content
    fetch(either, tmp_path, source=hub.url, force=True)
    assert place.read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("mode", "says"),
    [
        ("shorter", "Consistency check failed|peer closed|IncompleteRead|another file came"),
        ("longer", "Consistency check failed|another file came"),
        ("other", "another file came: its sha256 is"),
        ("login", "the answer is not that of a Hugging Face hub"),
        ("login later", "Consistency check failed|another file came"),
        ("forbidden", "403"),
        ("gone", "404"),
    ],
)
def test_what_is_wrong_never_gets_the_right_name(
    mode: str, says: str, either: Released, hub: Hub, tmp_path: Path
):
    hub.mode = mode
    with pytest.raises(FetchError) as caught:
        fetch(either, tmp_path, source=hub.url)
    text = str(caught.value)
    assert re.search(says, text), text
    assert f"seg could not be fetched from {hub.url}: " in text
    assert "By hand: download https://huggingface.co/someone/weights/resolve/main/models/seg.pth" in text
    assert f"save it as {tmp_path / 'models' / 'seg.pth'}, and run the same command again" in text
    assert not (tmp_path / "models" / "seg.pth").exists()
    hub.mode = "right"
    fetch(either, tmp_path, source=hub.url)
    assert files_in(tmp_path) == ["models/seg.pth"]


def test_what_broke_off_goes_on(released: Released, hub: Hub, tmp_path: Path):
    """The client itself tries again a few times, each with what is missing; then so does the next call."""
    hub.mode = "breaks off"
    with pytest.raises(FetchError, match="What came stays; the same command goes on from there"):
        fetch(released, tmp_path, source=hub.url)
    assert not (tmp_path / "models" / "seg.pth").exists()
    (partial,) = (tmp_path / "models").iterdir()
    came = partial.stat().st_size
    assert len(CONTENT) // 2 < came < len(CONTENT)
    hub.mode = "right"
    hub.ranges.clear()
    fetch(released, tmp_path, source=hub.url)
    assert hub.ranges == [f"bytes={came}-"]
    assert (tmp_path / "models" / "seg.pth").read_bytes() == CONTENT
    assert files_in(tmp_path) == ["models/seg.pth"]


def test_a_server_that_cannot_go_on_gives_all_again(released: Released, hub: Hub, tmp_path: Path):
    hub.mode = "breaks off"
    with pytest.raises(FetchError):
        fetch(released, tmp_path, source=hub.url)
    hub.mode = "no ranges"
    fetch(released, tmp_path, source=hub.url)
    assert files_in(tmp_path) == ["models/seg.pth"]
    assert (tmp_path / "models" / "seg.pth").read_bytes() == CONTENT


def test_two_at_once_do_not_write_into_one_file(released: Released, hub: Hub, tmp_path: Path):
    place = tmp_path / "models" / f".seg.pth.{released.sha256[:12]}.fetch"
    place.parent.mkdir()
    with (
        fetching._opened_alone(place, released),
        pytest.raises(FetchError, match="by another process already"),
    ):
        fetch(released, tmp_path, source=hub.url)


def test_another_file_in_the_listing_is_not_even_fetched(released: Released, hub: Hub, tmp_path: Path):
    hub.mode = "lists other"
    with pytest.raises(FetchError, match=r"it lists another file under this name: its sha256 is f{64}, not "):
        fetch(released, tmp_path, source=hub.url)
    hub.mode = "right"
    with pytest.raises(FetchError, match="it lists another file under this name: its size is 1024000, not 7"):
        fetch(replace(released, size=7), tmp_path, source=hub.url)
    assert hub.ranges == []


def test_a_file_without_any_sum_is_not_fetched(released: Released, hub: Hub, tmp_path: Path):
    hub.mode = "unsigned"
    with pytest.raises(FetchError, match="no sha256 of this file is known here, and none is listed there"):
        fetch(replace(released, sha256=None), tmp_path, source=hub.url)
    assert fetch(released, tmp_path, source=hub.url).sha256 == released.sha256


def test_nothing_answers(released: Released, tmp_path: Path):
    with pytest.raises(
        FetchError, match=r"seg could not be fetched from http://127.0.0.1:9: .*By hand: download"
    ):
        fetch(released, tmp_path, source="http://127.0.0.1:9")


def test_a_full_disk_is_told_before(released: Released, hub: Hub, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(fetching.shutil, "disk_usage", lambda _path: type("Usage", (), {"free": 1000}))
    with pytest.raises(
        FetchError, match="1,024,000 bytes are needed there, and 1,000 are free; nothing was fetched"
    ):
        fetch(released, tmp_path, source=hub.url)
    assert hub.ranges == []


# --- from a folder ---


@pytest.mark.parametrize("place", ["seg.pth", "models/seg.pth"])
def test_from_a_folder(place: str, released: Released, tmp_path: Path):
    source = tmp_path / "stick" / place
    source.parent.mkdir(parents=True)
    source.write_bytes(CONTENT)
    fetched = fetch(released, tmp_path / "here", source=str(tmp_path / "stick"))
    assert fetched.path.read_bytes() == CONTENT
    assert files_in(tmp_path / "here") == ["models/seg.pth"]


def test_from_a_folder_with_another_file(released: Released, tmp_path: Path):
    with pytest.raises(FetchError, match=r"there is no seg\.pth in it"):
        fetch(released, tmp_path / "here", source=str(tmp_path))
    (tmp_path / "seg.pth").write_bytes(CONTENT[:-1] + b"!")
    with pytest.raises(FetchError, match=r"this is not seg: its sha256 is .*Nothing was copied"):
        fetch(released, tmp_path / "here", source=str(tmp_path))
    (tmp_path / "seg.pth").write_bytes(CONTENT)
    with pytest.raises(FetchError, match="no sha256 of seg is known here to check it by"):
        fetch(replace(released, sha256=None), tmp_path / "here", source=str(tmp_path))
    with pytest.raises(FetchError, match="neither a folder nor the URL of a mirror"):
        fetch(released, tmp_path / "here", source="/no/such/folder")
    assert files_in(tmp_path / "here") == []


# --- the table, and the command ---


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("sd15-seg", "models/control_sd15_seg.pth"),
        ("sd15-canny", "models/control_sd15_canny.pth"),
        ("v11-canny", "models/control_v11p_sd15_canny.pth"),
        ("v11-tile", "models/control_v11f1e_sd15_tile.pth"),
        ("control_v11e_sd15_shuffle", "models/control_v11e_sd15_shuffle.pth"),
        ("hed", "annotator/ckpts/ControlNetHED.pth"),
        ("ControlNetHED", "annotator/ckpts/ControlNetHED.pth"),
        ("mlsd", "annotator/ckpts/mlsd_large_512_fp32.pth"),
        ("depth", "annotator/ckpts/dpt_hybrid-midas-501f0c75.pt"),
        ("dpt_hybrid-midas-501f0c75", "annotator/ckpts/dpt_hybrid-midas-501f0c75.pt"),
        ("openpose-body", "annotator/ckpts/body_pose_model.pth"),
        ("hand_pose_model.pth", "annotator/ckpts/hand_pose_model.pth"),
        ("upernet_global_small", "annotator/ckpts/upernet_global_small.pth"),
        ("sd15", "models/v1-5-pruned.ckpt"),
    ],
)
def test_names(name: str, place: str):
    assert find_released(name).place == place


def test_the_table():
    assert len({released.name for released in RELEASED}) == len(RELEASED) == 30
    assert len({released.place for released in RELEASED}) == len(RELEASED)
    assert all(re.fullmatch("[0-9a-f]{64}", released.sha256) for released in RELEASED if released.sha256)
    with pytest.raises(
        UnknownWeights, match=r"sd15-seq: no released weights of this name; did you mean .*sd15-seg"
    ):
        find_released("sd15-seq")


def test_the_command_lists_and_refuses(tmp_path: Path, capsys):
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "control_sd15_seg.pth").write_bytes(b"1")
    assert weights_command.main(["list", "--to", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(RELEASED)
    assert sum("is there: " in line for line in lines) == 1
    assert any(line.startswith("v11-depth ") and "belongs at models/control_v11f1p" in line for line in lines)
    assert weights_command.main(["fetch", "sd15-seg", "--to", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert "there is a file already, but not sd15-seg: its sha256 is" in error
    assert weights_command.main(["fetch", "nothing"]) == 1
    assert weights_command.main(["fetch"]) == 1
    assert capsys.readouterr().err.splitlines() == [
        "error: nothing: no released weights of this name; --list shows all names",
        "error: give a name, or --list to see them all",
    ]
    for command in weights_command.COMMANDS:
        with pytest.raises(SystemExit) as caught:
            weights_command.main([command, "--help"])
        assert caught.value.code == 0


def test_the_command_behind_hf_endpoint(hub: Hub, tmp_path: Path):
    """As typed: a mirror by HF_ENDPOINT, one line for what is done, and the sum is the hub's."""
    clean = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    environment = {**clean, "HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "PYTHONPATH": str(REPOSITORY)}
    script = "import sys; from controlnet.commands.weights import main; sys.exit(main())"
    command = [sys.executable, "-c", script, "fetch", "sd15-hed", "--to", str(tmp_path)]
    for how in ("fetched", "already there"):
        result = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path)
        assert result.returncode == 0, result.stderr
        place = tmp_path / "models" / "control_sd15_hed.pth"
        assert result.stdout == f"sd15-hed: {how}, with the sha256 that the hub lists: {place}\n"
    assert place.read_bytes() == CONTENT
    assert hub.paths[0] == "/lllyasviel/ControlNet/resolve/main/models/control_sd15_hed.pth"
