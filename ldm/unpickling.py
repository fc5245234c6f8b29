"""Reading pickles of ``torch.save`` without running anything that is in them.

A pickle may name any importable function and call it. So none of its names is ever imported or called here:
a machine of our own walks through the opcodes, and can make plain data and dense tensors, nothing else.
Stable Diffusion's own checkpoints name a few things besides: Lightning's ``ModelCheckpoint`` (a key of its
"callbacks"), numpy scalars (its best score), and the detector's may hold numpy arrays (its "meta"). Nothing
of that is a weight. So those names, and no others, become an `Inert`; a file with other names is `Refused`.

Bytes and opcodes are bounded, and only texts, small numbers and names are ever hashed, so that a hostile file
takes seconds at most.
"""

from __future__ import annotations

import pickletools
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO, Any

import torch

MOST_BYTES = 64 * 2**20
"""No pickle may be longer; the numbers of its tensors lie outside."""

MOST_OPCODES = 1_000_000
"""A checkpoint of Stable Diffusion with its averages has 60,000; these take about two seconds. What calls are
given counts as well: one long list may be given a million times over."""

_MOST_ARGUMENTS = 16
_SIZED = (list, tuple, dict, set, str, bytes)
_MOST_DIMENSIONS = 64  # torch's own limit for most of what it does

INERT_NAMES: frozenset[str] = frozenset(
    {
        "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
        "collections.OrderedDict",
        "collections.Counter",
        "builtins.bytearray",
        "builtins.complex",
        "builtins.set",
        "_codecs.encode",
        "numpy.dtype",
        "numpy.ndarray",
        # numpy 2 renamed numpy.core; files from both sides are about.
        *(
            f"numpy.{core}.multiarray.{name}"
            for core in ("core", "_core")
            for name in ("scalar", "_reconstruct")
        ),
        *(f"numpy.dtypes.{name}{bits}DType" for name in ("Int", "Float") for bits in (16, 32, 64)),
        *(f"numpy.dtypes.{name}DType" for name in ("Bool", "Int8", "UInt8", "Str", "Bytes")),
    }
)
_NAMES_OF_TORCH = re.compile(
    r"torch\.(_utils\._rebuild_\w+|_tensor\._rebuild_\w+|nn\.parameter\.\w+|serialization\._get_layout"
    r"|Size|Tensor|device|(cuda\.|storage\.)?\w+Storage|b?float\d\w*|q?u?int\d\w*|bool|complex\d+|per_\w+)"
)

_STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
    "UntypedStorage": torch.uint8,
}
_TYPES_WITHOUT_STORAGE = {
    str(dtype): dtype
    for dtype in (torch.float8_e4m3fn, torch.float8_e5m2, torch.uint16, torch.uint32, torch.uint64)
}

# Opcodes that push their argument, a number or text; and those that push something new.
_PUSH_ARGUMENT = frozenset(
    opcode.name
    for opcode in pickletools.opcodes
    if opcode.arg and not opcode.stack_before and opcode.stack_after not in ([], [pickletools.anyobject])
)
_PUSH_NEW = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_SET": lambda: Inert("builtins.set"),
}

StorageOf = Callable[[str, int], torch.UntypedStorage]
"""Brings so many bytes of the numbers that have a key in the file; raises where there are not as many."""


class Refused(ValueError):
    """A file that asks for what weights never need; the text goes on from "refused, because"."""


@dataclass(frozen=True)
class Inert:
    """What becomes of all that is neither plain data nor a dense tensor: its name, with nothing to it."""

    name: str

    def __str__(self) -> str:
        return self.name

    @property
    def is_tensor(self) -> bool:
        """A tensor of another kind: sparse, quantized, nested, or without data."""
        return self.name.startswith(("torch._utils.", "torch._tensor."))


@dataclass(frozen=True)
class _Storage:
    data: torch.UntypedStorage
    dtype: torch.dtype


def unpickle(stream: IO[bytes], storage_of: StorageOf) -> Any:
    """Read one pickle of ``torch.save``; the stream then stands behind it.

    Args:
        stream: of bytes in memory, `MOST_BYTES` of them at most.
        storage_of: brings the numbers of the tensors.

    Returns:
        Plain data: dictionaries (also for ordered ones), lists, tuples, texts, numbers, None; tensors on the
        CPU; and `Inert` for all else.

    Raises:
        Refused: names that weights never need, or more opcodes than weights ever have.
        Exception: nearly anything, for a damaged file.
    """
    machine = _Machine(storage_of)
    try:
        content = machine.run(stream)
    except Exception:
        machine.refuse_names()  # the better reason, also where the file is damaged further on
        raise
    machine.refuse_names()
    return content


class _Machine:
    """Pickle's stack machine, for what its protocols 2 to 5 write."""

    def __init__(self, storage_of: StorageOf):
        self._storage_of = storage_of
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._storages: dict[str, _Storage] = {}
        self._unknown_names: list[str] = []
        self._steps = 0

    def run(self, stream: IO[bytes]) -> Any:
        stack, memo = self._stack, {}
        for opcode, argument, _position in pickletools.genops(stream):
            self._count(1)
            name = opcode.name
            if name in _PUSH_ARGUMENT:
                stack.append(_plain(argument))
            elif name in ("BINPUT", "LONG_BINPUT", "MEMOIZE"):
                memo[len(memo) if argument is None else argument] = stack[-1]
            elif name in ("BINGET", "LONG_BINGET"):
                stack.append(memo[argument])
            elif name in _PUSH_NEW:
                stack.append(_PUSH_NEW[name]())
            elif name == "MARK":
                self._marks.append(len(stack))
            elif (
                name not in ("PROTO", "FRAME", "STOP")
                and not self._fill(name)
                and not self._name(name, argument)
            ):
                raise ValueError(f"{name} is no opcode that torch.save writes")
        return stack.pop()

    def _count(self, steps: int) -> None:
        self._steps += steps
        if self._steps > MOST_OPCODES:
            raise Refused(f"it has more than {MOST_OPCODES:,} opcodes, and weights never need so many")

    def refuse_names(self) -> None:
        names = [name if name.isprintable() else ascii(name) for name in dict.fromkeys(self._unknown_names)]
        if names:
            raise Refused(
                f"it asks for {', '.join(names[:3])}{', …' if names[3:] else ''}, which weights never need. "
                "Nothing in it was run. If you trust its author, ask for a .safetensors file"
            )

    def _since_mark(self) -> list[Any]:
        mark = self._marks.pop()
        items = self._stack[mark:]
        del self._stack[mark:]
        return items

    def _fill(self, opcode: str) -> bool:
        """Opcodes that make and fill containers; False for another one."""
        stack = self._stack
        match opcode:
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                count = int(opcode[-1])
                stack[-count:] = [tuple(stack[-count:])]
            case "TUPLE":
                stack.append(tuple(self._since_mark()))
            case "APPEND":
                _extend(stack[-2], [stack.pop()])
            case "APPENDS" | "ADDITEMS":
                items = self._since_mark()
                _extend(stack[-1], items)
            case "SETITEM":
                items = [stack.pop(-2), stack.pop()]
                _set_items(stack[-1], items)
            case "SETITEMS":
                items = self._since_mark()
                _set_items(stack[-1], items)
            case "FROZENSET":
                self._since_mark()
                stack.append(Inert("builtins.set"))
            case "POP":
                stack.pop()
            case _:
                return False
        return True

    def _name(self, opcode: str, argument: str | None) -> bool:
        """Opcodes that name things and call them; False for another one."""
        stack = self._stack
        match opcode:
            case "GLOBAL":
                self._push_name(*argument.split(" ", 1))
            case "STACK_GLOBAL":
                name, module = stack.pop(), stack.pop()
                self._push_name(module, name)
            case "REDUCE" | "NEWOBJ" | "NEWOBJ_EX":
                if opcode == "NEWOBJ_EX":
                    stack.pop()  # arguments by keyword
                arguments = stack.pop()
                if type(arguments) is not tuple or len(arguments) > _MOST_ARGUMENTS:
                    raise ValueError("a call has no arguments, or too many")
                self._count(sum(len(part) for part in arguments if isinstance(part, _SIZED)))
                stack[-1] = _made_by(stack[-1], arguments)
            case "BUILD":
                stack.pop()  # the state of an object, which an Inert does not have, and no tensor needs
            case "BINPERSID":
                stack.append(self._storage(*stack.pop()))
            case _:
                return False
        return True

    def _push_name(self, module: Any, name: Any) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            raise ValueError("a name is no text")
        name = f"{module.replace('__builtin__', 'builtins')}.{name}"
        if name not in INERT_NAMES and not _NAMES_OF_TORCH.fullmatch(name):
            self._unknown_names.append(name)
        self._stack.append(Inert(name))

    def _storage(
        self, word: Any, kind: Any, key: Any, _location: Any, count: Any, view: Any = None
    ) -> _Storage | Inert:
        """torch's own extension of pickle: the numbers of a tensor, which lie elsewhere in the file."""
        if word != "storage" or type(key) is not str or type(count) is not int or count < 0:
            raise ValueError("a tensor does not say where its numbers are")
        dtype = _STORAGES.get(kind.name.rpartition(".")[2])
        if dtype is None:
            return Inert(kind.name)
        if key not in self._storages:
            self._storages[key] = _Storage(self._storage_of(key, count * dtype.itemsize), dtype)
        storage = self._storages[key]
        if view is None:
            return storage
        _key, start, length = view  # torch before 1.0
        if not all(type(number) is int and 0 <= number <= count for number in (start, length)):
            raise ValueError("a tensor does not say where its numbers are")
        return _Storage(storage.data[start * dtype.itemsize : (start + length) * dtype.itemsize], dtype)


def _plain(value: Any) -> Any:
    """Arithmetic with numbers of millions of digits takes forever; no checkpoint has any."""
    return Inert("a long number") if isinstance(value, int) and value.bit_length() > 128 else value


def _as_key(value: Any) -> Any:
    """Only what is hashed at once and spread well: no tuples of tuples, no numbers made to collide."""
    if type(value) in (str, bytes, float, bool, type(None), Inert):
        return value
    return value if type(value) is int and value.bit_length() <= 64 else Inert(f"a {type(value).__name__}")


def _extend(target: Any, items: list[Any]) -> None:
    if isinstance(target, list):
        target.extend(items)
    elif not isinstance(target, Inert):
        raise ValueError(f"items are added to a {type(target).__name__}")


def _set_items(target: Any, items: list[Any]) -> None:
    if isinstance(target, dict):
        target.update((_as_key(key), value) for key, value in zip(items[::2], items[1::2], strict=True))
    elif not isinstance(target, Inert):
        raise ValueError(f"items are set in a {type(target).__name__}")


def _made_by(function: Any, arguments: Any) -> Any:
    """What a call would give, without the call."""
    match function.name if isinstance(function, Inert) else "object":
        case "collections.OrderedDict":
            return {_as_key(key): value for key, value in (arguments[0] if arguments else ())}
        case "torch._utils._rebuild_tensor" | "torch._utils._rebuild_tensor_v2" as name:
            storage, offset, size, stride, *_gradient, metadata = (*arguments, None)[:7]
            return Inert(name) if metadata else _tensor(storage, None, offset, size, stride)
        case "torch._utils._rebuild_tensor_v3" as name:
            storage, offset, size, stride, _gradient, _hooks, dtype, *metadata = arguments
            dtype = _TYPES_WITHOUT_STORAGE.get(dtype.name)
            return (
                Inert(name) if any(metadata) or not dtype else _tensor(storage, dtype, offset, size, stride)
            )
        case "torch._utils._rebuild_parameter" | "torch._utils._rebuild_parameter_with_state" | "torch.Size":
            return arguments[0]
        case "torch._tensor._rebuild_from_type_v2" as name:
            # A tensor with attributes: (function, class, arguments, state).
            function, _class, arguments, _state = arguments
            is_plain = isinstance(function, Inert) and function.name.startswith(
                "torch._utils._rebuild_tensor"
            )
            return _made_by(function, arguments[:_MOST_ARGUMENTS]) if is_plain else Inert(name)
        case name:
            return Inert(name)


def _tensor(storage: Any, dtype: torch.dtype | None, offset: Any, size: Any, stride: Any) -> Any:
    """A tensor over a storage that holds all of it; `Inert` over a storage of another kind."""
    if not isinstance(storage, _Storage):
        return Inert("torch._utils.quantized")
    if not all(type(sides) is tuple and len(sides) <= _MOST_DIMENSIONS for sides in (size, stride)):
        raise ValueError(f"the shape of a tensor has more than {_MOST_DIMENSIONS} numbers, or is none")
    if not all(type(number) is int and number >= 0 for number in (offset, *size, *stride)):
        raise ValueError("the shape of a tensor is not made of numbers")
    dtype = dtype or storage.dtype
    last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
    if 0 not in size and (last + 1) * dtype.itemsize > storage.data.nbytes():
        raise ValueError("a tensor reaches beyond its numbers")
    return torch.empty(0, dtype=dtype, device="cpu").set_(storage.data, offset, size, stride)
