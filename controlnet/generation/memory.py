"""Doing with less memory: networks that rest in main memory, attention in slices, decoding in tiles, and
weights that leave nothing behind when they are packed.
"""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor, nn

from ldm.modules.attention import set_attention_slice

if TYPE_CHECKING:
    from cldm.cldm import ControlLDM

T = TypeVar("T")

_TRIM, _MMAP = -1, -3  # of glibc's mallopt
_MIB = 2**20


class MemorySaver:
    """What a run does to save memory, for as long as the ``with`` block lasts; nothing unless ``enabled``.

    Args:
        model: on its device, or where it rests.
        device: where the networks work.
        enabled: attention one head at a time, and on a GPU only the networks at work are there.
        tiled: decode one picture at a time, in tiles.
        further: networks that work along with the model's own.
    """

    def __init__(
        self,
        model: ControlLDM,
        device: torch.device,
        enabled: bool,
        tiled: bool = False,
        further: Sequence[nn.Module] = (),
    ):
        self.model, self.device, self.enabled, self.tiled = model, device, enabled, tiled
        self.further = list(further)
        self.moves = enabled and device.type != "cpu"

    def __enter__(self) -> MemorySaver:
        if self.enabled:
            self._slice_attention(1)
            self._rest(*self.model.children(), *self.further)
        return self

    def __exit__(self, *error: object) -> None:
        if self.enabled:
            self._slice_attention(None)
            self._rest(*self.model.children(), *self.further)

    def _slice_attention(self, size: int | None) -> None:
        for network in (self.model, *self.further):
            set_attention_slice(network, size)

    @contextmanager
    def working(self, *networks: nn.Module) -> Iterator[None]:
        """Have these networks on the device, and send them back afterwards."""
        if self.moves:
            for network in networks:
                network.to(self.device)
        try:
            yield
        finally:
            self._rest(*networks)

    def decode(self, latents: Tensor) -> Tensor:
        """Latents ``[N, 4, h, w]`` -> pictures ``[N, 3, H, W]`` in about [-1, 1]."""
        if not self.tiled:
            return self.model.decode_first_stage(latents)
        return torch.cat([decode_tiled(self.model.decode_first_stage, latent) for latent in latents.split(1)])

    def encode(self, pictures: Tensor) -> Tensor:
        """Pictures ``[N, 3, H, W]`` in [-1, 1] -> latents ``[N, 4, h, w]``, the means of what the encoder
        finds: no noise is drawn.
        """
        if not self.tiled:
            return self._means(pictures)
        return torch.cat([encode_tiled(self._means, picture) for picture in pictures.split(1)])

    def _means(self, pictures: Tensor) -> Tensor:
        found = self.model.encode_first_stage(pictures)
        mean = found.mode() if hasattr(found, "mode") and not isinstance(found, Tensor) else found
        return self.model.get_first_stage_encoding(mean)

    def _rest(self, *networks: nn.Module) -> None:
        if self.device.type == "cpu":
            give_back_memory()  # what one stage has freed the next may need in larger pieces
        if self.moves:
            for network in networks:
                network.to("cpu")


def decode_tiled(
    decode: Callable[[Tensor], Tensor], latents: Tensor, tile: int = 48, overlap: int = 12
) -> Tensor:
    """Decode in overlapping tiles that fade into each other.

    The decoder's norms and attention see one tile instead of the picture, so that the result is close, not
    equal.

    Args:
        decode: latents ``[N, C, h, w]`` -> pictures ``[N, 3, f*h, f*w]``.
        latents: ``[N, C, h, w]``.
        tile: side of a tile, in latent pixels.
        overlap: how far neighbours reach into each other, in latent pixels.

    Returns:
        ``[N, 3, f*h, f*w]``.
    """
    return _in_tiles(decode, latents, tile, overlap)


def encode_tiled(
    encode: Callable[[Tensor], Tensor], pictures: Tensor, tile: int = 384, overlap: int = 96
) -> Tensor:
    """The same the other way: pictures ``[N, 3, H, W]`` -> latents ``[N, C, H / f, W / f]``; ``tile`` and
    ``overlap`` in pixels, multiples of f.
    """
    return _in_tiles(encode, pictures, tile, overlap)


def _in_tiles(work: Callable[[Tensor], Tensor], whole: Tensor, tile: int, overlap: int) -> Tensor:
    height, width = whole.shape[-2:]
    if max(height, width) <= tile:
        return work(whole)
    total: Tensor | None = None
    weights: Tensor | None = None
    for top in _tile_starts(height, tile, overlap):
        for left in _tile_starts(width, tile, overlap):
            piece = work(whole[..., top : top + tile, left : left + tile])
            across = min(tile, width)

            def out(length: int, piece: Tensor = piece, across: int = across) -> int:
                return length * piece.shape[-1] // across

            if total is None or weights is None:
                total = piece.new_zeros((*piece.shape[:2], out(height), out(width)))
                weights = piece.new_zeros((1, 1, out(height), out(width)))
            window = _window(piece, out(overlap))
            rows = slice(out(top), out(top) + piece.shape[-2])
            columns = slice(out(left), out(left) + piece.shape[-1])
            total[..., rows, columns] += piece * window
            weights[..., rows, columns] += window
    assert total is not None and weights is not None
    return total / weights


@contextmanager
def own_pages() -> Iterator[None]:
    """Give each tensor that is made meanwhile pages of its own, where the C library is glibc.

    Packing lays weights out anew one after the other. What it frees goes back to the system only if it does
    not lie in a heap between what stays: of Stable Diffusion in bf16 that is 1.8 GB. Afterwards large blocks
    come from the heap again, as glibc would have it by then; pages from the system cost time.
    """
    mallopt = _libc_function("mallopt")
    if mallopt is not None:
        mallopt(_MMAP, _MIB // 16)
    try:
        yield
    finally:
        if mallopt is not None:
            mallopt(_MMAP, 32 * _MIB)
            mallopt(_TRIM, 64 * _MIB)


def peak_memory(device: torch.device) -> int:
    """The most memory that this process has held so far, on a GPU that torch gave it there, in bytes; 0 where
    the system does not say.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _libc_function(name: str) -> Callable[..., int] | None:
    """A function of the C library of this process, or None where it has none of that name."""
    try:
        return getattr(ctypes.CDLL(None), name)
    except (OSError, AttributeError, TypeError):
        return None


def is_out_of_memory(error: BaseException) -> bool:
    """True for the errors by which torch says that memory does not suffice, on GPU and CPU."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(
        sign in str(error) for sign in ("out of memory", "can't allocate memory", "not enough memory")
    )


def attempt(work: Callable[[], T]) -> T | None:
    """The result of ``work``, or None where it ran out of memory; then all that it held is free again."""
    try:
        return work()
    except Exception as error:
        if not is_out_of_memory(error):
            raise
    gc.collect()  # outside the except block, where the traceback no longer holds the tensors
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return None


def smaller_sizes(num_samples: int, resolution: int) -> list[tuple[int, int]]:
    """What to try where ``num_samples`` pictures of a short side of ``resolution`` do not fit, best first."""
    sizes = [(num_samples // 2, resolution), (1, resolution)]
    sizes += [(1, int(resolution * part) // 64 * 64) for part in (0.75, 0.5, 0.25)]
    sizes = [size for size in sizes if size[0] >= 1 and size[1] >= 64 and size != (num_samples, resolution)]
    return list(dict.fromkeys(sizes))


def _tile_starts(length: int, tile: int, overlap: int) -> list[int]:
    """Where tiles begin; the last one ends where the picture does."""
    last = max(length - tile, 0)
    return sorted({*range(0, last, tile - overlap), last})


def _window(piece: Tensor, overlap: int) -> Tensor:
    """Weights ``[H, W]`` that rise over the overlap from each border of a tile, never 0."""
    ramps = []
    for length in piece.shape[-2:]:
        position = torch.arange(1, length + 1, device=piece.device, dtype=torch.float32)
        ramps.append((torch.minimum(position, position.flip(0)) / (overlap + 1)).clamp(max=1))
    return torch.outer(*ramps).to(piece.dtype)


def give_back_memory() -> None:
    """Let the system have main memory that was freed. glibc keeps it, once for each thread that ever worked;
    other C libraries have no such call, and are left alone. Takes some 30 ms in a process of 1 GB.
    """
    if (trim := _libc_function("malloc_trim")) is not None:
        trim(0)
