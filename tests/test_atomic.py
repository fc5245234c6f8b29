"""Saves: the old file or the new one, whole, whatever happens in between."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from ldm.atomic import atomic_write
from ldm.weights import WeightsError, read_state_dict, save_state_dict

REPOSITORY = Path(__file__).parents[1]


def start(script: str, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)]
    return subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


@pytest.fixture
def open_umask() -> Iterator[None]:
    before = os.umask(0o027)
    yield
    os.umask(before)


def test_a_file_appears_when_the_block_ends_and_has_the_umasks_mode(open_umask: None, tmp_path: Path):
    path = tmp_path / "picture.png"
    with atomic_write(path) as partial:
        assert partial.parent == tmp_path
        assert partial.suffix == ".png"
        partial.write_bytes(b"new")
        assert not path.exists()
    assert path.read_bytes() == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert names(tmp_path) == ["picture.png"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_after_an_exception_the_old_file_is_whole_and_alone(error: type[BaseException], tmp_path: Path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(error), atomic_write(path) as partial:
        partial.write_bytes(b"ne")
        raise error
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["file"]


def test_a_link_is_replaced_and_what_it_points_to_stays(tmp_path: Path):
    (tmp_path / "blob").write_bytes(b"old")
    (tmp_path / "link").symlink_to("blob")
    with atomic_write(tmp_path / "link") as partial:
        partial.write_bytes(b"new")
    assert ((tmp_path / "blob").read_bytes(), (tmp_path / "link").read_bytes()) == (b"old", b"new")


def test_the_longest_name_of_a_file_system_works(tmp_path: Path):
    path = tmp_path / ("ü" * 125 + ".ckpt")  # 255 bytes
    for content in (b"1", b"2"):
        with atomic_write(path) as partial:
            partial.write_bytes(content)
    assert path.read_bytes() == b"2"
    assert names(tmp_path) == [path.name]


WRITER = """
    import sys, time
    from ldm.atomic import atomic_write
    with atomic_write(sys.argv[1]) as partial:
        partial.write_bytes(b"half")
        print("writing", flush=True)
        time.sleep(600)
"""


def test_the_next_save_removes_what_a_killed_writer_left_and_nothing_else(tmp_path: Path):
    path, other = tmp_path / "last.ckpt", tmp_path / "last.ckpt.12345678.partial.ckpt"
    path.write_bytes(b"old")
    other.write_bytes(b"a file of the user's with a similar name")
    dead = start(WRITER, path)
    alive = start(WRITER, path)
    elsewhere = start(WRITER, tmp_path / "best.ckpt")
    for writer in (dead, alive, elsewhere):
        assert writer.stdout.readline() == "writing\n"
    dead.kill()
    dead.wait()
    assert path.read_bytes() == b"old"
    assert len(names(tmp_path)) == 5
    with atomic_write(path) as partial:
        partial.write_bytes(b"new")
    left = names(tmp_path)
    assert len([name for name in left if name.startswith(".last.ckpt.")]) == 1, "the living writer's alone"
    assert len([name for name in left if name.startswith(".best.ckpt.")]) == 1
    assert path.read_bytes() == b"new"
    for writer in (alive, elsewhere):
        writer.kill()
        writer.wait()
    for target in (path, tmp_path / "best.ckpt"):
        with atomic_write(target) as partial:
            partial.write_bytes(b"newest")
    assert names(tmp_path) == ["best.ckpt", "last.ckpt", other.name]


def test_two_living_writers_do_not_harm_each_other(tmp_path: Path):
    path = tmp_path / "file"
    with atomic_write(path) as first:
        first.write_bytes(b"first")
        with atomic_write(path) as second:
            second.write_bytes(b"second")
        assert path.read_bytes() == b"second"
    assert path.read_bytes() == b"first"
    assert names(tmp_path) == ["file"]


def test_many_writers_at_once_leave_one_whole_file(tmp_path: Path):
    path = tmp_path / "file"

    def write(number: int) -> None:
        for _ in range(10):
            with atomic_write(path) as partial:
                partial.write_bytes(bytes([number]) * 1000)
            assert len(set(path.read_bytes())) == 1

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(8)))
    assert names(tmp_path) == ["file"]


def test_a_folder_with_many_files_is_not_looked_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("listdir", "scandir"):
        monkeypatch.setattr(os, name, lambda *_: pytest.fail("the folder was listed"))
    for content in (b"1", b"2"):
        with atomic_write(tmp_path / "file") as partial:
            partial.write_bytes(content)
    monkeypatch.undo()
    assert names(tmp_path) == ["file"]


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
def test_saved_weights_have_the_umasks_mode(open_umask: None, suffix: str, tmp_path: Path):
    save_state_dict({"weight": torch.ones(3)}, tmp_path / f"weights{suffix}")
    assert stat.S_IMODE((tmp_path / f"weights{suffix}").stat().st_mode) == 0o640


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
def test_a_save_killed_half_way_leaves_the_old_weights(suffix: str, tmp_path: Path):
    path = tmp_path / f"weights{suffix}"
    old = {"weight": torch.randn(1000)}
    save_state_dict(old, path)
    writer = start(
        """
        import sys, torch
        from ldm.weights import save_state_dict
        state = {str(i): torch.ones(2_000_000) for i in range(40)}
        while True:
            save_state_dict(state, sys.argv[1])
        """,
        path,
    )
    try:
        partial = stop_in_the_middle(writer, tmp_path)
    finally:
        writer.kill()
        writer.wait()
    assert names(tmp_path) == [partial.name, path.name]
    found = read_state_dict(path)  # the old one, or a whole one of an earlier round
    assert len(found) in (1, 40)
    assert all(torch.equal(tensor, old.get(key, torch.ones(2_000_000))) for key, tensor in found.items())
    save_state_dict(old, path)
    assert names(tmp_path) == [path.name]


def stop_in_the_middle(writer: subprocess.Popen, folder: Path) -> Path:
    """Freeze a process while its temporary file is neither empty nor finished."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and writer.poll() is None:
        for partial in folder.glob(".*.partial.*"):
            writer.send_signal(signal.SIGSTOP)
            if partial.exists() and 0 < partial.stat().st_size < 320_000_000:
                return partial
            writer.send_signal(signal.SIGCONT)
        time.sleep(0.005)
    raise AssertionError("the writer never wrote")


def test_a_full_disk_leaves_the_old_weights_and_says_so(tmp_path: Path):
    """A real limit of the system on the size of a file; the writer reports what it saw."""
    child = start(
        """
        import json, resource, sys, torch
        from pathlib import Path
        from ldm.weights import WeightsError, save_state_dict
        small, big = {"weight": torch.ones(10)}, {str(i): torch.ones(300_000) for i in range(4)}
        errors = {}
        for suffix in (".ckpt", ".safetensors"):
            path = Path(sys.argv[1]) / f"weights{suffix}"
            save_state_dict(small, path)
            resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, resource.RLIM_INFINITY))
            try:
                save_state_dict(big, path)
            except WeightsError as error:
                errors[path.name] = str(error)
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        print(json.dumps(errors))
        """,
        tmp_path,
    )
    errors = json.loads(child.communicate(timeout=120)[0])
    assert child.returncode == 0
    assert names(tmp_path) == ["weights.ckpt", "weights.safetensors"]
    for name in names(tmp_path):
        assert torch.equal(read_state_dict(tmp_path / name)["weight"], torch.ones(10))
        assert errors[name].startswith(str(tmp_path / name))
        assert "could not be saved (4,800,000 bytes;" in errors[name]
        assert "File too large" in errors[name]
        assert "unchanged" in errors[name]


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
def test_views_shared_and_strided_tensors_are_saved_as_they_look(suffix: str, tmp_path: Path):
    base = torch.arange(100_000.0)
    state = {
        "slice": base[10:20],
        "same": base[10:20],
        "overlap": base[15:25],
        "transposed": base[:12].reshape(3, 4).T,
        "expanded": torch.ones(1).expand(5),
        "channels last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "parameter": torch.nn.Parameter(torch.randn(3)),
        "empty": torch.empty(0, 4),
        **{
            str(dtype): torch.ones(3).to(dtype)
            for dtype in (torch.bool, torch.uint8, torch.int16, torch.bfloat16)
        },
        "float8": torch.ones(3).to(torch.float8_e4m3fn),
        "scalar": torch.tensor(3),
    }
    path = tmp_path / f"odd{suffix}"
    save_state_dict(state, path)
    assert path.stat().st_size < 10_000, "only what is seen, not the storages behind it"
    found = read_state_dict(path)
    assert found.keys() == state.keys()
    for key, tensor in state.items():
        assert found[key].dtype == tensor.dtype
        assert torch.equal(found[key].float(), tensor.detach().float())


def test_types_that_safetensors_lacks_are_named(tmp_path: Path):
    with pytest.raises(
        WeightsError, match=r"odd: torch\.complex128 cannot be saved as safetensors; use \.ckpt"
    ):
        save_state_dict({"odd": torch.ones(2, dtype=torch.complex128)}, tmp_path / "odd.safetensors")
    assert names(tmp_path) == []


def test_a_file_may_be_saved_over_itself_while_mapped(tmp_path: Path):
    from ldm.weights import map_state_dict

    for path in (tmp_path / "a.ckpt", tmp_path / "a.safetensors"):
        save_state_dict({"weight": torch.arange(10_000)}, path)
        mapped = map_state_dict(path)
        save_state_dict(mapped, path)
        assert torch.equal(mapped["weight"], torch.arange(10_000))
        assert torch.equal(read_state_dict(path)["weight"], torch.arange(10_000))


def test_what_cannot_be_saved_is_said_before_anything_is_written(tmp_path: Path):
    state = {"weight": torch.ones(2)}
    for path, says in [
        (tmp_path / "weights.txt", "unknown suffix"),
        (tmp_path / "weights", "unknown suffix"),
        (tmp_path / "nowhere" / "weights.ckpt", "nowhere does not exist"),
    ]:
        with pytest.raises(WeightsError, match=says):
            save_state_dict(state, path)
    (tmp_path / "folder.ckpt").mkdir()
    with pytest.raises(WeightsError, match="this is a folder"):
        save_state_dict(state, tmp_path / "folder.ckpt")
    with pytest.raises(WeightsError, match="weight: has a shape but no data"):
        save_state_dict({"weight": torch.ones(2, device="meta")}, tmp_path / "meta.ckpt")
    with pytest.raises(WeightsError, match="no tensors"):
        save_state_dict({}, tmp_path / "empty.ckpt")
    assert names(tmp_path) == ["folder.ckpt"]
