"""Doing with less memory: networks that rest in main memory, attention in slices, pictures one after another
in the VAE, and weights that leave nothing behind when they are packed. What large pictures need, the VAE does
by itself: see `ldm.modules.strips`.
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
        enabled: attention one head at a time, one picture at a time through the VAE, and on a GPU only the
            networks at work are there.
        further: networks that work along with the model's own.
    """

    def __init__(
        self,
        model: ControlLDM,
        device: torch.device,
        enabled: bool,
        further: Sequence[nn.Module] = (),
    ):
        self.model, self.device, self.enabled = model, device, enabled
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
        return self._few_at_a_time(self.model.decode_first_stage, latents)

    def encode(self, pictures: Tensor) -> Tensor:
        """Pictures ``[N, 3, H, W]`` in [-1, 1] -> latents ``[N, 4, h, w]``, the means of what the encoder
        finds: no noise is drawn.
        """
        return self._few_at_a_time(self._means, pictures)

    def _few_at_a_time(self, work: Callable[[Tensor], Tensor], whole: Tensor) -> Tensor:
        return torch.cat([work(one) for one in whole.split(1)]) if self.enabled else work(whole)

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


def give_back_memory() -> None:
    """Let the system have main memory that was freed. glibc keeps it, once for each thread that ever worked;
    other C libraries have no such call, and are left alone. Takes some 30 ms in a process of 1 GB.
    """
    if (trim := _libc_function("malloc_trim")) is not None:
        trim(0)
