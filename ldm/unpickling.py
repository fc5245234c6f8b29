"""Reading pickled checkpoints without running anything that is in them.

A ``.ckpt`` or ``.pth`` file is a pickle, and a pickle may name any importable function and call it. torch's
weights-only unpickler refuses every name that tensors do not need. Stable Diffusion's own checkpoints name a few more:
Lightning's ``ModelCheckpoint`` (a key of its "callbacks"), numpy scalars (its best score), and the detector's may hold
numpy arrays (its "meta"). Nothing of that is a weight, so those names, and no others, resolve to a stand-in that does
nothing.
"""

from __future__ import annotations

import pickletools
import threading
import zipfile
from pathlib import Path
from typing import IO, Any

import torch


class StandIn:
    """What an inert name of a checkpoint becomes: swallows its arguments and its state, keeps and does nothing."""

    def __new__(cls, *_args: Any, **_kwargs: Any) -> StandIn:
        return super().__new__(cls)

    def __setstate__(self, _state: Any) -> None:
        pass


_NUMPY_TYPES = ("Bool", "Int8", "Int16", "Int32", "Int64", "UInt8", "Float16", "Float32", "Float64", "Str", "Bytes")
INERT_NAMES: frozenset[str] = frozenset(
    {
        "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
        "numpy.dtype",
        "numpy.ndarray",
        # numpy 2 renamed numpy.core; files from both sides are about.
        *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")),
        *(f"numpy.dtypes.{name}DType" for name in _NUMPY_TYPES),
    }
)

# torch keeps one list of allowed names per process, and its context manager takes names off that list at the end,
# whoever else is still reading. So our own readers take turns; with memory mapping a turn lasts milliseconds.
_turn = threading.Lock()


def unpickle(path: Path, *, mmap: bool) -> Any:
    """Read a file of ``torch.save``, zip or legacy, with torch's weights-only unpickler and the stand-ins above.

    Raises whatever torch raises; :func:`refused_names` then says which names a file was refused for.
    """
    with _turn, torch.serialization.safe_globals([(StandIn, name) for name in sorted(INERT_NAMES)]):
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)


def refused_names(path: Path) -> list[str]:
    """Names that a pickled checkpoint asks for and that weights never need, for the text of an error.

    Walks through the opcodes and runs nothing; an unreadable file gives what was found before it broke.
    """
    if zipfile.is_zipfile(path):
        names: list[str] = []
        with zipfile.ZipFile(path) as archive:
            for record in (name for name in archive.namelist() if name.endswith(".pkl")):
                with archive.open(record) as stream:
                    names += _names_in(stream)
    else:
        with path.open("rb") as stream:
            names = _names_in(stream)
    return [name for name in dict.fromkeys(names) if not _is_harmless(name)]


def _names_in(stream: IO[bytes], pickles: int = 4) -> list[str]:
    """Every ``module.name`` in the first few pickles of a stream (a legacy file has its objects in the fourth)."""
    names: list[str] = []
    try:
        for _ in range(pickles):
            strings: list[str] = []
            for opcode, argument, _position in pickletools.genops(stream):
                if opcode.name in ("GLOBAL", "INST"):
                    names.append(argument.replace(" ", ".", 1))
                elif opcode.name == "STACK_GLOBAL" and len(strings) > 1:
                    names.append(".".join(strings[-2:]))
                elif isinstance(argument, str):
                    strings.append(argument)
    except Exception:  # pickletools raises many kinds on damaged input, and this is only the text of an error
        pass
    return [name.replace("__builtin__.", "builtins.", 1) for name in names]


def _is_harmless(name: str) -> bool:
    return name in INERT_NAMES or name.startswith(("torch.", "collections.", "_codecs.encode"))
