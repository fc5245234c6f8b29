"""Weights that a stranger made to take all time and memory, or to break whoever looks at them: each is one
line of error in no time, by the function that reads weights and by a tool that a user would start.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import time
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from controlnet.commands import merge_control
from ldm import torch_files, unpickling
from ldm.torch_files import read_torch_file
from ldm.weights import WeightsError, map_state_dict, read_state_dict

LEGACY_START = [0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}]


def zip_of(pickled: bytes, path: Path, records: Mapping[str, bytes] = {}, compressed: bool = False) -> None:
    """An archive like torch.save's around any pickle."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED) as archive:
        for name, content in {"data.pkl": pickled, **records}.items():
            archive.writestr(f"archive/{name}", content)


def program(*opcodes: bytes) -> bytes:
    return b"\x80\x02" + b"".join(opcodes) + b"."


def name_of(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def tuples_of_tuples(depth: int) -> bytes:
    """Each holds the one before twice: a hash of the last takes 2 ** depth steps."""
    steps = [b"0h%ch%c\x86q%c" % (level, level, level + 1) for level in range(depth)]
    return b")q\x00" + b"".join(steps)


def many_keys(count: int) -> bytes:
    """Numbers that Python hashes to one value, so that each new key is compared with all before."""
    numbers = ((2**61 - 1) * 2**70 * number for number in range(1, count))
    return b"".join(b"\x8a\x14" + number.to_bytes(20, "little") + b"N" for number in numbers)


def reaching(size: bytes, stride: bytes, numbers: int = 4) -> bytes:
    """A dictionary of one tensor: this shape, over so many numbers."""
    storage = b"(" + text("storage") + name_of("torch", "FloatStorage") + text("0") + text("cpu")
    storage += b"J" + struct.pack("<i", numbers) + b"tQ"
    tensor = (
        name_of("torch._utils", "_rebuild_tensor_v2") + b"(" + storage + b"K\x00" + size + stride + b"\x89}tR"
    )
    return program(b"}", text("weight"), tensor, b"s")


class OddMapping(OrderedDict):
    """Pickled as an OrderedDict whose methods are replaced by attributes."""

    def __reduce__(self) -> Any:
        return OrderedDict, (), dict.fromkeys(("get", "items", "keys", "values"), 3), None, iter(self.items())


def shared(count: int) -> dict[str, torch.Tensor]:
    numbers = torch.zeros(100_000)
    return {f"weight{index}": numbers[:] for index in range(count)}


def sparse_file(path: Path, head: bytes, size: int) -> None:
    with path.open("wb") as file:
        file.write(head)
        file.truncate(size)


def index_of(name: str) -> bytes:
    return json.dumps({"weight_map": {"key": name}}).encode()


CALLS = (name_of("collections", "OrderedDict") + b"h\x00\x85R") * 5_000
FROM_TYPE = name_of("torch._tensor", "_rebuild_from_type_v2")

# What a file is called, how it is made, and what is said about it.
FILES: dict[str, tuple[str, Callable[[Path], Any], str]] = {
    "nested tuples as a key": (
        "a.ckpt",
        lambda path: zip_of(program(b"}", tuples_of_tuples(200), b"K\x01s"), path),
        "holds no tensors",
    ),
    "nested tuples in a set": (
        "a.ckpt",
        lambda path: zip_of(
            program(name_of("builtins", "set"), b"]", tuples_of_tuples(200), b"a\x85R"), path
        ),
        "holds a builtins.set",
    ),
    "nested tuples as the name of a record": (
        "a.ckpt",
        lambda path: zip_of(
            program(
                b"(", text("storage"), name_of("torch", "FloatStorage"), tuples_of_tuples(200), b"NK\x01tQ"
            ),
            path,
        ),
        "does not say where its numbers are",
    ),
    "keys that collide": (
        "a.ckpt",
        lambda path: zip_of(program(b"}(", many_keys(10_000), b"u"), path),
        "holds no tensors; its keys are a long number",
    ),
    "a number of a million digits": (
        "a.ckpt",
        lambda path: zip_of(
            program(b"\x8b" + struct.pack("<i", 400_000) + b"\x7f" * 400_000, b"q\x000h\x00h\x00\x86"), path
        ),
        "holds a tuple",
    ),
    "lists in lists": (
        "a.ckpt",
        lambda path: zip_of(program(b"]" * 20_000, b"a" * 19_999), path),
        "holds a list",
    ),
    "one long list, made a dictionary over and over": (
        "a.ckpt",
        lambda path: zip_of(
            program(b"(]q\x00(", b"K\x01K\x02\x86" * 9_000, b"e", CALLS, b"t"),
            path,
        ),
        "more than 80,000 opcodes",
    ),
    "a call with long arguments": (
        "a.ckpt",
        lambda path: zip_of(
            program(name_of("torch._utils", "_rebuild_tensor_v2"), b"(", b"K\x01" * 9_000, b"tR"), path
        ),
        "no arguments, or too many",
    ),
    "a tensor of many dimensions": (
        "a.ckpt",
        lambda path: zip_of(
            reaching(b"(" + b"K\x01" * 65 + b"t", b"(" + b"K\x01" * 65 + b"t"), path, {"data/0": bytes(16)}
        ),
        "more than 64 numbers",
    ),
    "a tensor that is made as itself": (
        "a.ckpt",
        lambda path: zip_of(program(b"}", text("odd"), FROM_TYPE, b"q\x00(h\x00N", b"(h\x00N)NtNtRs"), path),
        "odd is not a plain dense tensor",
    ),
    "a view that begins before its numbers": (
        "a.ckpt",
        lambda path: zip_of(
            program(
                *(b"(", text("storage"), name_of("torch", "FloatStorage"), text("0"), text("cpu"), b"K\x04"),
                *(b"(", text("1"), b"J\xff\xff\xff\xff", b"K\x04ttQ"),
            ),
            path,
            {"data/0": bytes(16)},
        ),
        "does not say where its numbers are",
    ),
    "opcodes without end": (
        "a.ckpt",
        lambda path: zip_of(program(b"}" * 30_000), path),
        "more than 20,000 opcodes",
    ),
    "a data.pkl that is a bomb": (
        "a.ckpt",
        lambda path: zip_of(b"\x80\x02" + bytes(5_000_000), path, compressed=True),
        "would become 5,000,0",
    ),
    "a data.pkl that is long": (
        "a.ckpt",
        lambda path: zip_of(bytes(3_000_000), path),
        "its data.pkl has more than",
    ),
    "a record that is a bomb": (
        "a.ckpt",
        lambda path: zip_of(program(b"}"), path, {"data/0": bytes(5_000_000)}, compressed=True),
        "would become 5,000,0",
    ),
    "a thousand tensors over the same numbers": (
        "a.ckpt",
        lambda path: torch.save(shared(1000), path),
        "would become 400,000,000 in memory",
    ),
    "a legacy file with more numbers than bytes": (
        "a.pth",
        lambda path: path.write_bytes(
            b"".join(pickle.dumps(part, 2) for part in LEGACY_START)
            + reaching(b"K\x04\x85", b"K\x01\x85", 2**30)
        ),
        "longer than the file",
    ),
    "a tensor that reaches beyond its numbers": (
        "a.ckpt",
        lambda path: zip_of(reaching(b"K\x05\x85", b"K\x01\x85"), path, {"data/0": bytes(16)}),
        "reaches beyond its numbers",
    ),
    "a stride that reaches beyond the numbers": (
        "a.ckpt",
        lambda path: zip_of(reaching(b"K\x02\x85", b"K\x04\x85"), path, {"data/0": bytes(16)}),
        "reaches beyond its numbers",
    ),
    "a record shorter than its storage": (
        "a.ckpt",
        lambda path: zip_of(reaching(b"K\x04\x85", b"K\x01\x85"), path, {"data/0": bytes(8)}),
        "longer than its record",
    ),
    "a negative shape": (
        "a.ckpt",
        lambda path: zip_of(reaching(b"J\xff\xff\xff\xff\x85", b"K\x01\x85"), path, {"data/0": bytes(16)}),
        "not made of numbers",
    ),
    "nested tensors": (
        "a.ckpt",
        lambda path: torch.save({"odd": torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])}, path),
        "odd is not a plain dense tensor",
    ),
    "an unknown opcode": ("a.ckpt", lambda path: zip_of(program(b"\x82\x01"), path), "EXT1 is no opcode"),
    "a header of 99 MB": (
        "a.safetensors",
        lambda path: sparse_file(path, struct.pack("<Q", 99_000_000) + b"{", 99_001_000),
        "its header has 99,000,000 bytes",
    ),
    "an index of 99 MB": (
        "a.index.json",
        lambda path: sparse_file(path, b"{", 99_000_000),
        "99,000,000 bytes",
    ),
    "a shard of 300 characters": (
        "a.index.json",
        lambda path: path.write_bytes(index_of("x" * 300)),
        "cannot be opened: File name too long",
    ),
    "a shard with a zero": ("a.index.json", lambda path: path.write_bytes(index_of("x\0y")), "points to 'x"),
    "a shard that is no text": (
        "a.index.json",
        lambda path: path.write_bytes(index_of("\ud800")),
        "points to",
    ),
    "a pipe": ("a.ckpt", os.mkfifo, "a device or a pipe, not a file"),
}


@pytest.fixture(autouse=True)
def _small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that files of a few megabytes are too large, and a test takes no time."""
    monkeypatch.setattr(unpickling, "MOST_OPCODES", 20_000 * 4)
    monkeypatch.setattr(torch_files, "MOST_BYTES", 2_000_000)
    monkeypatch.setattr(torch_files, "FREE_BYTES", 1_000_000)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("kind", FILES)
def test_hostile_files_are_one_line_of_error_at_once(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    name, make, says = FILES[kind]
    path = tmp_path / name
    make(path)
    if kind == "opcodes without end":
        monkeypatch.setattr(unpickling, "MOST_OPCODES", 20_000)
    started = time.process_time()
    for read in (read_state_dict, map_state_dict):
        with pytest.raises(WeightsError) as caught:
            read(path)
        assert says in str(caught.value)
        assert str(tmp_path) in str(caught.value)
    files = {"--base": path, "--control": path, "--output": tmp_path / "out.ckpt"}
    assert merge_control.main([str(part) for option in files.items() for part in option]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and says in error
    assert len(error.splitlines()) == 1
    assert time.process_time() - started < 3


def test_attributes_of_a_dictionary_change_nothing(tmp_path: Path):
    torch.save({"state_dict": OddMapping(weight=torch.ones(2))}, tmp_path / "odd.ckpt")
    assert read_state_dict(tmp_path / "odd.ckpt")["weight"].tolist() == [1, 1]


def test_names_in_errors_cannot_write_to_the_terminal(tmp_path: Path):
    torch.save({"a\x1b[2J\nb": 1}, tmp_path / "odd.ckpt")
    with pytest.raises(WeightsError, match=r"'a\\x1b\[2J\\nb'$"):
        read_state_dict(tmp_path / "odd.ckpt")


def test_a_table_of_contents_that_says_it_is_long(tmp_path: Path):
    path = tmp_path / "odd.ckpt"
    zip_of(program(b"}"), path)
    content = bytearray(path.read_bytes())
    place = content.rindex(b"PK\5\6")
    padded = content[:place] + bytes(3_000_000) + content[place:]
    padded[place + 3_000_000 + 12 : place + 3_000_000 + 16] = struct.pack("<I", 3_000_000)
    path.write_bytes(padded)
    with pytest.raises(WeightsError, match="its table of contents has 3,000,000 bytes"):
        read_state_dict(path)


@pytest.mark.parametrize("legacy", [False, True])
def test_everything_plain_is_read_as_torch_reads_it(legacy: bool, tmp_path: Path):
    """The peer is torch's own weights-only unpickler."""
    path, base = tmp_path / "state.pt", torch.randn(20, 7)
    tagged = torch.randn(4)
    tagged.tag = "an attribute"
    types = [
        torch.float64,
        torch.float16,
        torch.bfloat16,
        torch.int8,
        torch.uint8,
        torch.int16,
        torch.complex64,
    ]
    content = {
        "views": [base, base[3:, 2:5], base.t(), base[0, 0], base[:0], base.expand(2, 20, 7)],
        "types": [
            base.to(dtype) for dtype in [*types, *([] if legacy else [torch.float8_e4m3fn, torch.uint16])]
        ],
        "kinds": [torch.nn.Parameter(base), tagged, base > 0],
        "plain": [
            (1, 2.5, "ü", None, True, -(2**62)),
            {3: "x", 2.5: [], None: ()},
            OrderedDict(a=1),
            base.shape,
        ],
    }
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    ours, is_mapped = read_torch_file(path)
    assert is_mapped != legacy
    theirs = torch.load(path, weights_only=True)
    assert ours["plain"] == theirs["plain"]
    for kind in ("views", "types", "kinds"):
        for mine, other in zip(ours[kind], theirs[kind], strict=True):
            assert (mine.dtype, mine.shape, mine.stride()) == (other.dtype, other.shape, other.stride())
            assert mine.tolist() == other.tolist()
    assert len({view.untyped_storage().data_ptr() for view in ours["views"]}) == 1


def test_the_streams_place_is_behind_the_pickle():
    stream = io.BytesIO(pickle.dumps({"a": 1}) + b"rest")
    assert unpickling.unpickle(stream, lambda key, size: torch.UntypedStorage(size)) == {"a": 1}
    assert stream.read() == b"rest"
