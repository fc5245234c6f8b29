"""The two containers of ``torch.save``: zip archives, and the legacy one, pickles with numbers behind them.

What is in their pickles is read by :mod:`ldm.unpickling`. Here it is found where the numbers of the tensors
lie, and seen to it that there are no more of them than a file of its size should give.
"""

from __future__ import annotations

import io
import struct
import sys
import zipfile
from collections.abc import Collection
from pathlib import Path
from typing import IO, Any

import torch

from ldm.unpickling import MOST_BYTES, Refused, unpickle

MOST_EXPANSION = 8
"""Compressed records and tensors that share their numbers may give so many times the bytes of the file …"""

FREE_BYTES = 64 * 2**20
"""… and so many more."""

_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
_PIECE = 2**20


def read_torch_file(path: Path) -> tuple[Any, bool]:
    """Read a file of ``torch.save``.

    Returns:
        What was saved, see :func:`ldm.unpickling.unpickle`; whether its tensors are views of a memory map.

    Raises:
        Refused: a file that asks for, or expands to, what weights never need.
        Exception: nearly anything, for a damaged file.
    """
    with _BoundedFile(path) as file:
        is_zip = file.read(4) == b"PK\x03\x04"
        file.seek(0)
        return _read_zip(path, file) if is_zip else (_read_legacy(file), False)


def check_expansion(size: int, path: Path) -> None:
    """Refuse what has ``size`` bytes in memory and far fewer in its file."""
    if size > MOST_EXPANSION * path.stat().st_size + FREE_BYTES:
        raise Refused(f"its {path.stat().st_size:,} bytes would become {size:,} in memory")


class _BoundedFile(io.FileIO):
    """The length of a zip's table of contents is a number that a stranger wrote."""

    def read(self, size: int | None = -1) -> bytes:
        if size is not None and size > MOST_BYTES:
            raise Refused(f"its table of contents has {size:,} bytes, and weights never need so many")
        return super().read(size)


def _read_zip(path: Path, file: io.FileIO) -> tuple[Any, bool]:
    with zipfile.ZipFile(file) as archive:
        records = {record.filename: record for record in archive.infolist()}
        root = _root_of(records)
        check_expansion(sum(record.file_size for record in records.values()), path)
        if records[f"{root}data.pkl"].file_size > MOST_BYTES:
            raise Refused(f"its data.pkl has more than {MOST_BYTES:,} bytes, and weights never need so many")
        if f"{root}byteorder" in records:
            with archive.open(f"{root}byteorder") as order:
                _check_byte_order(order.read(6) == b"little")
        # Mapping takes the bytes as they lie; records that someone compressed must be unpacked instead.
        mapped = all(record.compress_type == zipfile.ZIP_STORED for record in records.values())
        whole = torch.UntypedStorage.from_file(str(path), False, path.stat().st_size) if mapped else None

        def storage_of(key: str, size: int) -> torch.UntypedStorage:
            record = records[f"{root}data/{key}"]
            if size > record.file_size:
                raise ValueError(f"a tensor is longer than its record {record.filename}")
            return (
                _unpacked(archive, record, size)
                if whole is None
                else _part(whole, _start_of(file, record), size)
            )

        return unpickle(io.BytesIO(archive.read(f"{root}data.pkl")), storage_of), mapped


def _root_of(records: Collection[str]) -> str:
    """The folder of torch's records in the archive."""
    if any(name.endswith("constants.pkl") for name in records):
        raise ValueError("it is a TorchScript archive, which is a program")
    roots = [name.removesuffix("data.pkl") for name in records if name.endswith("data.pkl")]
    if len(roots) != 1:
        raise ValueError("this zip archive was not written by torch.save: it has no data.pkl")
    return roots[0]


def _start_of(file: io.FileIO, record: zipfile.ZipInfo) -> int:
    """Where the bytes of a record begin: behind a header, a name and padding."""
    file.seek(record.header_offset)
    signature, name, padding = struct.unpack("<4s22xHH", file.read(30))
    if signature != b"PK\x03\x04":
        raise ValueError(f"the record {record.filename} is not where the archive says")
    return record.header_offset + 30 + name + padding


def _part(whole: torch.UntypedStorage, start: int, size: int) -> torch.UntypedStorage:
    if start + size > whole.nbytes():
        raise ValueError("the file ends before its numbers do")
    return whole[start : start + size]


def _unpacked(archive: zipfile.ZipFile, record: zipfile.ZipInfo, size: int) -> torch.UntypedStorage:
    if record.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"the record {record.filename} is compressed in an unusual way")
    storage = torch.UntypedStorage(size)
    with archive.open(record) as stream:
        _fill(storage, stream)
    return storage


def _check_byte_order(little: bool) -> None:
    if little != (sys.byteorder == "little"):
        raise ValueError("its numbers have the byte order of another kind of processor")


def _fill(storage: torch.UntypedStorage, stream: IO[bytes]) -> None:
    """Read a storage's bytes piece by piece."""
    target = memoryview(torch.empty(0, dtype=torch.uint8, device="cpu").set_(storage).numpy())
    while len(target):
        count = stream.readinto(target[:_PIECE])
        if not count:
            raise ValueError("the file ends before its numbers do")
        target = target[count:]


def _read_legacy(file: io.FileIO) -> Any:
    """Five pickles (a magic number, a version, the machine's sizes, the content, the keys of the storages),
    then of each storage its length and its numbers.
    """
    free = file.seek(0, io.SEEK_END)
    file.seek(0)
    start = io.BytesIO(file.read(MOST_BYTES))
    storages: dict[str, torch.UntypedStorage] = {}

    def storage_of(key: str, size: int) -> torch.UntypedStorage:
        nonlocal free
        free -= size
        if free < 0:
            raise ValueError("its tensors are longer than the file")
        storages[key] = torch.UntypedStorage(size)  # filled below: until then the system gives no memory
        return storages[key]

    def next_pickle() -> Any:
        return unpickle(start, storage_of)

    if next_pickle() != _MAGIC or next_pickle() != _PROTOCOL:
        raise ValueError("it is a pickle, but none that torch.save wrote")
    _check_byte_order(bool(next_pickle()["little_endian"]))
    content, keys = next_pickle(), next_pickle()
    if not all(type(key) is str for key in keys) or set(keys) != storages.keys():
        raise ValueError("its list of tensors is another one than its tensors")
    file.seek(start.tell())
    for key in keys:
        file.seek(8, io.SEEK_CUR)  # the length again
        _fill(storages[key], file)
    return content
