"""A folder of pictures, hints and prompts as a data set of the original's items."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch.utils.data import Dataset

from controlnet.conditions import find_condition
from controlnet.pictures import read_picture
from controlnet.training.data.buckets import MULTIPLE, assign_buckets, fit, make_buckets
from controlnet.training.data.records import HINT_KINDS, DataError, check_pictures, read_hint, read_records


class Draw(NamedTuple):
    """One sample of the training stream: the picture ``index``, drawn as the ``position``-th sample since the
    start.

    All randomness of an item follows from (seed, position), so it is the same in whichever process or worker
    the item is made, and after a resume.
    """

    index: int  # type: ignore[assignment]  # a tuple has a method of this name, which nobody needs here
    position: int


class ControlDataset(Dataset):
    """Items of a data set in the original's format, or in Hugging Face's; see
    ``controlnet.training.data.records``.

    The list and all pictures are checked when the object is made.

    Args:
        root: the folder that holds ``prompt.json`` or ``metadata.jsonl``.
        resolution: in pixels, a multiple of 64. None keeps each picture's own size.
        buckets: train at several aspects of about resolution² pixels; otherwise all pictures are cut to
            squares.
        hint_kind: one of ``HINT_KINDS``; maps are resized by nearest neighbours, pictures by area or Lanczos.
        empty_prompts: the share of items, in [0, 1], whose prompt is dropped: for classifier-free guidance.
        dropped_prompt: what stands in its place; a page's negative prompt makes that mean "anything".
        flip: the share of items, in [0, 1], that are mirrored, picture and hint alike.
        with_hints: False for data sets without hints (autoencoder, text to image).
        condition: hints are made of the pictures on the fly, by this condition with its default options; the
            list then needs no hints.
        check: False skips decoding all pictures in advance.
        seed: for flips and dropped prompts.

    Raises:
        FileNotFoundError: no list in ``root``.
        DataSetError: with every fault of the data set.
        DataError: pictures and settings that do not go together.
        ValueError: a setting out of its range.
    """

    def __init__(
        self,
        root: str | Path,
        resolution: int | None = None,
        *,
        buckets: bool = False,
        hint_kind: str = "picture",
        empty_prompts: float = 0.0,
        dropped_prompt: str = "",
        flip: float = 0.0,
        with_hints: bool = True,
        check: bool = True,
        seed: int = 0,
        condition: str = "",
    ):
        if hint_kind not in HINT_KINDS:
            raise ValueError(f"hint_kind must be one of {', '.join(HINT_KINDS)}, got {hint_kind!r}.")
        for name, share in {"empty_prompts": empty_prompts, "flip": flip}.items():
            if not 0 <= share <= 1:
                raise ValueError(f"{name} is a share in [0, 1], got {share}.")
        if buckets and resolution is None:
            raise DataError("buckets need a resolution.")
        self.root = Path(root)
        self.hint_kind = hint_kind
        self.empty_prompts = empty_prompts
        self.dropped_prompt = dropped_prompt
        self.flip = flip
        self.seed = seed
        self.condition = find_condition(condition)(device="cpu") if condition and with_hints else None
        self.records = read_records(self.root, with_hints=with_hints and self.condition is None)
        sizes = None
        if check or buckets:
            sizes = check_pictures(self.root, self.records, hint_kind)
        self.shapes = self._choose_shapes(sizes, resolution, buckets)

    def _choose_shapes(
        self, sizes: np.ndarray | None, resolution: int | None, buckets: bool
    ) -> list[tuple[int, int] | None]:
        """(height, width) of each item; None is the picture's own size, not looked up without a check."""
        if resolution is None and sizes is None:
            return [None] * len(self.records)
        if resolution is None:
            assert sizes is not None
            odd = np.flatnonzero((sizes % MULTIPLE).any(axis=1))
            if len(odd):
                height, width = sizes[odd[0]]
                raise DataError(
                    f"{len(odd)} pictures have sides that are no multiples of {MULTIPLE}, the first is "
                    f"{self.describe(odd[0])} with {width}x{height} pixels: give a resolution to resize to."
                )
            return [(height, width) for height, width in sizes.tolist()]
        if not buckets:
            (square,) = make_buckets(resolution, max_aspect=1.0)
            return [square] * len(self.records)
        assert sizes is not None  # buckets are never without a check
        shapes = make_buckets(resolution)
        return [shapes[bucket] for bucket in assign_buckets(sizes, shapes)]

    def __len__(self) -> int:
        return len(self.records)

    def describe(self, index: int) -> str:
        """The files of an item, for messages."""
        record = self.records[index]
        return f"line {record.line}: {record.target}" + (f", {record.source}" if record.source else "")

    def augmentation(self, draw: Draw) -> tuple[bool, str, int]:
        """What chance decides about a sample.

        Returns:
            whether it is mirrored, its prompt (perhaps dropped), and the seed of its noise in training, in
            [0, 2^63).
        """
        random = np.random.default_rng([self.seed, draw.position])
        mirrored = bool(random.random() < self.flip)
        dropped = bool(random.random() < self.empty_prompts)
        prompt = self.dropped_prompt if dropped else self.records[draw.index].prompt
        return mirrored, prompt, int(random.integers(2**63))

    def picture(self, index: int, mirrored: bool = False) -> np.ndarray:
        """float32 ``[H, W, 3]`` RGB in [-1, 1]."""
        picture = self._prepare(read_picture(self.records[index].target), index, mirrored)
        return picture.astype(np.float32) / 127.5 - 1.0

    def hint(self, index: int, mirrored: bool = False) -> np.ndarray | None:
        """float32 ``[H, W, 3]`` RGB in [0, 1], or None in a data set without hints."""
        if self.condition is not None:
            picture = self._prepare(read_picture(self.records[index].target), index, mirrored)
            found = self.condition.detect(np.ascontiguousarray(picture), **self.condition.with_defaults({}))
            return self.condition.control(found).astype(np.float32) / 255.0
        source = self.records[index].source
        if source is None:
            return None
        hint = self._prepare(
            read_hint(source, self.hint_kind), index, mirrored, nearest=self.hint_kind != "picture"
        )
        return hint.astype(np.float32) / 255.0

    def _prepare(self, picture: np.ndarray, index: int, mirrored: bool, nearest: bool = False) -> np.ndarray:
        shape = self.shapes[index]
        if shape is not None:
            picture = fit(picture, *shape, nearest=nearest)
        return picture[:, ::-1] if mirrored else picture

    def __getitem__(self, key: int | Draw) -> dict[str, Any]:
        """One item.

        Args:
            key: an index, or a ``Draw`` of the training stream; an index alone is its own position.

        Returns:
            ``jpg`` float32 ``[H, W, 3]`` RGB in [-1, 1]; ``hint`` float32 ``[H, W, 3]`` RGB in [0, 1], where
            the data set has hints; ``txt``. For a ``Draw`` also ``index`` and ``noise_seed``, integers.
        """
        draw = key if isinstance(key, Draw) else Draw(range(len(self))[key], range(len(self))[key])
        mirrored, prompt, noise_seed = self.augmentation(draw)
        item: dict[str, Any] = {"jpg": self.picture(draw.index, mirrored), "txt": prompt}
        hint = self.hint(draw.index, mirrored)
        if hint is not None:
            item["hint"] = hint
        if isinstance(key, Draw):
            item |= {"index": draw.index, "noise_seed": noise_seed}
        return item
