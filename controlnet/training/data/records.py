"""The list of a data set: which picture belongs to which hint and prompt, checked before training begins.

Two layouts are read. The original's ``prompt.json`` holds one JSON object a line::

    {"source": "source/0.png", "target": "target/0.png", "prompt": "pale golden rod circle with old lace
    background"}

and Hugging Face's ``metadata.jsonl`` the same under the names ``image`` (or ``file_name``),
``conditioning_image`` and ``text``. Paths are relative to the folder of the list.
"""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from annotator.ade20k import CLASSES, colorize
from controlnet.lines import Line, LinesError, capped, read_objects
from controlnet.pictures import PictureError, decode, read_picture

HINT_KINDS = ("picture", "color-map", "class-index")
"""``picture``: edges, depth, any picture. ``color-map``: a segmentation map in colours, whose pixels must not
be averaged. ``class-index``: a one-channel map of ADE20K's class numbers, painted with its palette when it is
read."""

LISTS: dict[str, dict[str, tuple[str, ...]]] = {
    "prompt.json": {"source": ("source",), "target": ("target",), "prompt": ("prompt",)},
    "metadata.jsonl": {
        "source": ("conditioning_image", "conditioning_image_file_name"),
        "target": ("image", "file_name", "image_file_name"),
        "prompt": ("text", "caption"),
    },
}
"""File name of a list -> our name of a column -> the names that it may have there, the first found taken."""


@dataclass(frozen=True)
class Record:
    """One line of the list. ``source`` is None in a data set without hints."""

    target: Path
    source: Path | None
    prompt: str
    line: int


@dataclass(frozen=True)
class Fault:
    """What is wrong with one line of a list."""

    file: Path
    line: int
    reason: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.reason}"


class DataError(ValueError):
    """Data that cannot be trained on, or not with these settings; the text says which, and what to do."""


class DataSetError(DataError):
    """A data set with faults; the text has the first of them, one a line, ``faults`` all of them."""

    def __init__(self, root: Path, faults: Iterable[Fault]):
        self.faults = sorted(faults, key=lambda fault: (str(fault.file), fault.line))
        count = "1 fault" if len(self.faults) == 1 else f"{len(self.faults)} faults"
        super().__init__("\n".join([f"The data set {root} has {count}:", *capped(self.faults)]))


def find_list(root: Path) -> Path:
    """The list in the folder ``root``.

    Raises:
        FileNotFoundError: neither ``prompt.json`` nor ``metadata.jsonl`` is there.
    """
    for name in LISTS:
        if (root / name).is_file():
            return root / name
    raise FileNotFoundError(
        f"No data set in {root}: a folder with {' or '.join(LISTS)} is wanted. "
        "The tutorial's own is drawn by: python -m controlnet.training.make_fill50k training/fill50k"
    )


def read_records(root: str | Path, *, with_hints: bool = True) -> list[Record]:
    """Read the list of a data set without opening its pictures.

    Args:
        root: the folder of the list.
        with_hints: False for data sets of pictures and prompts alone; the source column is then not asked
            for.

    Raises:
        FileNotFoundError: no list.
        DataSetError: lines that are no JSON objects, columns that are missing or hold no text, an empty list.
        DataError: no lines at all, but one piece of JSON, or another encoding.
    """
    root = Path(root)
    path = find_list(root)
    records, faults = [], []
    try:
        for line in read_objects(path):
            try:
                records.append(_record(line, root, LISTS[path.name], with_hints))
            except ValueError as error:
                faults.append(Fault(path, line.number, str(error)))
    except LinesError as error:
        raise DataError(str(error)) from None
    if not records and not faults:
        faults.append(Fault(path, 1, "the list is empty"))
    if faults:
        raise DataSetError(root, faults)
    return records


def _record(line: Line, root: Path, columns: dict[str, tuple[str, ...]], with_hints: bool) -> Record:
    if line.problem:
        raise ValueError(line.problem)
    target = root / _column(line.content, columns["target"])
    source = root / _column(line.content, columns["source"]) if with_hints else None
    return Record(target, source, _column(line.content, columns["prompt"], may_be_empty=True), line.number)


def _column(row: dict[str, Any], names: tuple[str, ...], *, may_be_empty: bool = False) -> str:
    name = next((name for name in names if name in row), None)
    if name is None:
        raise ValueError(f"no {' or '.join(map(repr, names))}, only {reprlib.repr(sorted(row))}")
    value = row[name]
    if not isinstance(value, str) or not (value or may_be_empty):
        raise ValueError(f"{name!r} must be a text, got {reprlib.repr(value)}")
    return value


def read_hint(path: Path, kind: str) -> np.ndarray:
    """Read a hint as colours.

    Args:
        kind: one of ``HINT_KINDS``.

    Returns:
        uint8 ``[H, W, 3]`` RGB. Of maps the colours as the file has them, of a class-index map those of
        ADE20K; black where a map has no class: where it is transparent, or its index is 255.

    Raises:
        PictureError: an unreadable file, or indices that are no class of ADE20K.
    """
    picture = decode(path)
    if kind == "picture":
        return picture.rgb()
    transparent = picture.transparent()
    unlabelled = False if transparent is None else transparent
    if kind == "color-map":
        colors = picture.stored_colors()
    else:
        indices = picture.indices()
        unlabelled = (indices == 255) | unlabelled
        wrong = np.unique(indices[~unlabelled & (indices >= len(CLASSES))])
        if len(wrong):
            reason = (
                f"class indices must be 0 to {len(CLASSES) - 1}, or 255 for none; got {wrong[:8].tolist()}"
            )
            raise PictureError(str(path), reason)
        colors = colorize(np.where(unlabelled, 0, indices))
    colors[unlabelled] = 0
    return colors


def check_pictures(
    root: str | Path,
    records: list[Record],
    hint_kind: str = "picture",
    *,
    workers: int = 8,
    progress: bool = True,
) -> np.ndarray:
    """Decode every picture once, so that nothing is missing or broken when training has begun.

    Args:
        root: the folder of the list.
        records: what ``read_records`` gave.
        hint_kind: one of ``HINT_KINDS``.
        workers: threads; decoders release the interpreter's lock.

    Returns:
        int ``[N, 2]``, height and width of each target in pixels.

    Raises:
        DataSetError: with each missing or broken file and each hint that differs in size from its picture.
    """
    path = find_list(Path(root))

    def check(record: Record) -> tuple[tuple[int, int], list[Fault]]:
        return _check_record(record, lambda reason: Fault(path, record.line, reason), hint_kind)

    with ThreadPoolExecutor(max(1, workers)) as pool:
        checked = list(
            tqdm(pool.map(check, records), total=len(records), desc=f"Checking {root}", disable=not progress)
        )
    faults = [fault for _, found in checked for fault in found]
    if faults:
        raise DataSetError(Path(root), faults)
    return np.array([size for size, _ in checked], dtype=np.int64)


def _check_record(
    record: Record, fault: Callable[[str], Fault], hint_kind: str
) -> tuple[tuple[int, int], list[Fault]]:
    sizes: dict[Path, tuple[int, ...]] = {}
    faults: list[Fault] = []
    readers: dict[Path, Callable[[Path], np.ndarray]] = {record.target: read_picture}
    if record.source is not None:
        readers[record.source] = lambda path: read_hint(path, hint_kind)
    for path, read in readers.items():
        try:
            sizes[path] = read(path).shape[:2]
        except PictureError as error:
            faults.append(fault(f"{path}: {error.reason}"))
    if record.source is not None and len(set(sizes.values())) > 1:
        (height, width), (hint_height, hint_width) = sizes[record.target], sizes[record.source]
        faults.append(
            fault(
                f"{record.target} is {width}x{height} pixels, its hint {record.source} "
                f"{hint_width}x{hint_height}"
            )
        )
    height, width = sizes.get(record.target, (0, 0))
    return (height, width), faults
