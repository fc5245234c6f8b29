"""Batches in an order that follows from a seed alone, and a loader that resumes at the very next batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import cv2
import numpy as np
import torch
from safetensors import SafetensorError
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from controlnet.training.data.dataset import Draw
from controlnet.training.data.records import DataError


class BatchStream(Sampler[list[Draw]]):
    """The batches of each epoch, cut for one of several processes.

    Every epoch is shuffled by (seed, epoch). Batches hold items of one shape. A last batch that would be too
    small is filled with items from the beginning of its shape's order, so all batches, epochs and processes
    have equal sizes.
    Batches are made for all processes together and then divided: two processes with half the batch each train
    on the same batches as one process with the whole.

    Args:
        shapes: what must be equal within a batch, one entry an item (height and width).
        batch_size: items per batch and process.
        seed: of the order.
        shuffle: False keeps the order of the data set, and makes all epochs equal.
        rank, world_size: this process and how many there are.
        accumulate: batches per optimizer step; an epoch's batches are filled up to a multiple of it, so that
            no step is made of fewer.
    """

    def __init__(
        self,
        shapes: Sequence[Any],
        batch_size: int,
        *,
        seed: int = 0,
        shuffle: bool = True,
        rank: int = 0,
        world_size: int = 1,
        accumulate: int = 1,
    ):
        if not len(shapes):
            raise DataError("The data set is empty.")
        if batch_size < 1:
            raise ValueError(f"The batch size must be at least 1, got {batch_size}.")
        members: dict[Any, list[int]] = {}
        for index, shape in enumerate(shapes):
            members.setdefault(shape, []).append(index)
        self.groups = [np.array(indices) for indices in members.values()]
        self.batch_size, self.seed, self.shuffle = batch_size, seed, shuffle
        self.rank, self.world_size, self.accumulate = rank, world_size, accumulate
        self.epoch = 0
        self.start = 0  # the first batch that __iter__ gives

    @property
    def sampler(self) -> BatchStream:
        """Lightning calls ``set_epoch`` of a batch sampler's ``sampler``."""
        return self

    def set_epoch(self, epoch: int) -> None:
        if self.shuffle:  # validation sees the same samples with the same noise every time
            self.epoch = epoch

    @property
    def global_batch_size(self) -> int:
        return self.batch_size * self.world_size

    def __len__(self) -> int:
        """Batches per epoch, in each process."""
        return self._round_up(
            sum(-(-len(group) // self.global_batch_size) for group in self.groups), self.accumulate
        )

    @staticmethod
    def _round_up(number: int, multiple: int) -> int:
        return -(-number // multiple) * multiple

    def fingerprint(self) -> dict[str, int]:
        """What must be equal for a stream to be continued."""
        return {
            "pictures": sum(map(len, self.groups)),
            "shapes": len(self.groups),
            "global batch size": self.global_batch_size,
            "batches per epoch": len(self),
            "seed": self.seed,
        }

    def _epoch_batches(self) -> list[np.ndarray]:
        random = np.random.default_rng([self.seed, self.epoch])
        batches = []
        for group in self.groups:
            order = random.permutation(group) if self.shuffle else group
            padded = np.resize(order, self._round_up(len(group), self.global_batch_size))
            batches += list(padded.reshape(-1, self.global_batch_size))
        if self.shuffle:
            batches = [batches[place] for place in random.permutation(len(batches))]
        return [batches[place % len(batches)] for place in range(len(self))]

    def __iter__(self) -> Iterator[list[Draw]]:
        batches = self._epoch_batches()
        first = self.epoch * len(self) * self.global_batch_size
        mine = slice(self.rank * self.batch_size, (self.rank + 1) * self.batch_size)
        for number in range(self.start, len(batches)):
            start = first + number * self.global_batch_size
            draws = [Draw(int(index), start + place) for place, index in enumerate(batches[number])]
            yield draws[mine]


class BrokenBatch:
    """Stands for a batch that could not be made; ``faults`` says why, one line for each item."""

    def __init__(self, faults: Sequence[str]):
        self.faults = list(faults)


class _Broken(str):
    """Stands for an item that could not be read: an error would come out of a worker as another error, with a
    traceback in its text.
    """


class _Guarded(Dataset):
    def __init__(self, dataset: Any):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: Any) -> Any:
        try:
            return self.dataset[key]
        except (ValueError, OSError, SafetensorError) as error:
            return _Broken(" ".join(str(error).split()))


class ResumableLoader(DataLoader):
    """A ``DataLoader`` over a ``BatchStream`` with the ``state_dict`` that Lightning saves and restores.

    The state counts batches that were handed out, not those that workers have fetched in advance.

    Args:
        items: the data set.
        hand_out_broken: give a `BrokenBatch` where an item cannot be read, instead of raising DataError, so
            that all processes can stop together.
    """

    def __init__(
        self, items: Dataset, stream: BatchStream, *, hand_out_broken: bool = False, **loader_options: Any
    ):
        super().__init__(_Guarded(items), batch_sampler=stream, **loader_options)
        self.items = items
        self.stream = stream
        self.hand_out_broken = hand_out_broken
        self._resume_at: tuple[int, int] | None = None  # epoch and batch
        self._handed_out = 0

    def __iter__(self) -> Iterator[Any]:
        # A generator, so that nothing starts before the first batch is asked for: Lightning calls iter()
        # before it sets the epoch.
        resume_at, self._resume_at = self._resume_at, None
        self.stream.start = resume_at[1] if resume_at and resume_at[0] == self.stream.epoch else 0
        self._handed_out = self.stream.start
        for batch in super().__iter__():
            self._handed_out += 1
            if isinstance(batch, BrokenBatch) and not self.hand_out_broken:
                raise DataError("\n".join(batch.faults))
            yield batch

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self.stream.epoch, "batch": self._handed_out, "stream": self.stream.fingerprint()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises DataError when the stream is another one than that of the state."""
        ours = self.stream.fingerprint()
        differences = [
            f"{name} {state['stream'].get(name)} then, {value} now"
            for name, value in ours.items()
            if value != state["stream"].get(name)
        ]
        if differences:
            raise DataError(
                f"Training cannot resume in the middle of other data: {'; '.join(differences)}. "
                "Start anew from the checkpoint's weights instead, with --base."
            )
        self._resume_at = state["epoch"], state["batch"]


def make_loader(
    dataset: Any,
    batch_size: int,
    *,
    seed: int = 0,
    shuffle: bool = True,
    workers: int = 0,
    pin_memory: bool = False,
    rank: int = 0,
    world_size: int = 1,
    accumulate: int = 1,
    hand_out_broken: bool = False,
) -> ResumableLoader:
    """The loader for a torch data set with a length.

    Its ``shapes`` attribute, if it has one, says which items may share a batch: those of equal shape.
    """
    shapes = getattr(dataset, "shapes", None) or [None] * len(dataset)
    stream = BatchStream(
        shapes,
        batch_size,
        seed=seed,
        shuffle=shuffle,
        rank=rank,
        world_size=world_size,
        accumulate=accumulate,
    )
    return ResumableLoader(
        dataset,
        stream,
        hand_out_broken=hand_out_broken,
        num_workers=workers,
        pin_memory=pin_memory,
        persistent_workers=workers > 0,
        collate_fn=_batch_of,
        worker_init_fn=_one_thread_per_worker,
        generator=torch.Generator(),  # else every new iterator draws from torch's global stream
    )


def _batch_of(items: list[Any]) -> Any:
    """torch's own batch, where all items could be read and are of one size."""
    if faults := [str(item) for item in items if isinstance(item, _Broken)]:
        return BrokenBatch(faults)
    if isinstance(items[0], dict):
        for key in items[0]:
            sizes = sorted({np.shape(item[key]) for item in items})
            if len(sizes) > 1:
                fault = (
                    f"One batch got {key!r} of sizes {' and '.join(map(str, sizes))}. Leave out --no-check, "
                    "so that batches are made of pictures of one size, or give --resolution."
                )
                return BrokenBatch([fault])
    return default_collate(items)


def _one_thread_per_worker(worker: int) -> None:
    """OpenCV's pool of threads does not survive a fork."""
    cv2.setNumThreads(0)
