"""Pictures and prompts encoded once, on disk: training then runs neither the VAE nor the text encoder.

What is kept of a picture are the moments of the VAE's posterior, not a sample of it, so that training still
draws a fresh latent each time. A text encoder that is being trained cannot be cached; then only pictures are.
An entry's name is a hash of what it was made from: the file's content, its size and mirroring, and the
encoder's weights. Entries are written atomically, so a fill that was killed continues where it stopped.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import Dataset
from tqdm import tqdm

from controlnet.files import open_regular
from controlnet.training.data.dataset import ControlDataset, Draw
from ldm.weights import save_state_dict


def fingerprint(module: nn.Module) -> str:
    """A hash of a module's class and weights."""
    digest = hashlib.blake2b(type(module).__name__.encode(), digest_size=16)
    for name, tensor in module.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


class CachedDataset(Dataset):
    """A data set whose items hold ``moments`` and ``context`` instead of ``jpg``, as
    `LatentDiffusion.get_input` takes.

    Args:
        dataset: of pictures, hints and prompts.
        model: a `LatentDiffusion` whose VAE is frozen.
        folder: of the cache; data sets may share one.
        crop: side of random crops of the latents (and of the hints, which are 8 times as large); None for
            none.
    """

    def __init__(self, dataset: ControlDataset, model: Any, folder: str | Path, crop: int | None = None):
        self.dataset = dataset
        self.crop = crop
        self.shapes = dataset.shapes
        self.folder = Path(folder)
        self._vae = fingerprint(model.first_stage_model)
        text_is_frozen = not getattr(model, "cond_stage_trainable", False)
        self._text = fingerprint(model.cond_stage_model) if text_is_frozen else None
        self._contents = [_content_hash(record.target) for record in dataset.records]

    def __len__(self) -> int:
        return len(self.dataset)

    def describe(self, index: int) -> str:
        return self.dataset.describe(index)

    def picture_entry(self, index: int, mirrored: bool) -> Path:
        """Where a picture's moments lie."""
        return self._entry("pictures", self._contents[index], self.shapes[index], mirrored, self._vae)

    def prompt_entry(self, prompt: str) -> Path:
        """Where a prompt's embedding lies."""
        return self._entry("prompts", prompt, self._text)

    def _entry(self, kind: str, *parts: Any) -> Path:
        name = hashlib.blake2b(json.dumps(parts).encode(), digest_size=16).hexdigest()
        return self.folder / kind / name[:2] / f"{name}.safetensors"

    @torch.no_grad()
    def fill(self, model: Any, *, rank: int = 0, world_size: int = 1, progress: bool = True) -> int:
        """Encode what is not there yet, one by one, so that an entry does not depend on what it was encoded
        with.

        Args:
            model: with the same weights as before, on any device.
            rank, world_size: this process does its share only.

        Returns:
            how many entries were made.
        """
        pictures = {
            self.picture_entry(index, mirrored): (index, mirrored)
            for index in range(len(self))
            for mirrored in ([False] if self.dataset.flip < 1 else [])
            + ([True] if self.dataset.flip > 0 else [])
        }
        prompts = {self.prompt_entry(prompt): prompt for prompt in self._prompts()}
        missing = [entry for entry in sorted(pictures | prompts) if not _is_whole(entry)][rank::world_size]
        for entry in tqdm(missing, desc=f"Encoding into {self.folder}", disable=not progress or not missing):
            if entry in pictures:
                picture = torch.from_numpy(self.dataset.picture(*pictures[entry]).copy())
                picture = picture.permute(2, 0, 1)[None].contiguous().to(model.device)  # [1, 3, H, W]
                tensors = {"moments": model.encode_first_stage(picture).parameters[0]}
            else:
                tensors = {"context": model.get_learned_conditioning([prompts[entry]])[0]}
            entry.parent.mkdir(parents=True, exist_ok=True)
            save_state_dict(tensors, entry)
        return len(missing)

    def _prompts(self) -> set[str]:
        if self._text is None:
            return set()
        prompts = {record.prompt for record in self.dataset.records}
        return prompts | {self.dataset.dropped_prompt} if self.dataset.empty_prompts else prompts

    def __getitem__(self, key: int | Draw) -> Mapping[str, Any]:
        """Like `ControlDataset`'s, but with ``moments [8, h, w]`` instead of ``jpg`` and, where the text
        encoder is frozen, ``context [M, D]``, both float32."""
        draw = key if isinstance(key, Draw) else Draw(range(len(self))[key], range(len(self))[key])
        mirrored, prompt, noise_seed = self.dataset.augmentation(draw)
        item: dict[str, Any] = {**load_file(self.picture_entry(draw.index, mirrored)), "txt": prompt}
        if self._text is not None:
            item |= load_file(self.prompt_entry(prompt))
        rows, columns = self._window(draw, item["moments"].shape[-2:])
        item["moments"] = item["moments"][:, rows, columns].contiguous()
        hint = self.dataset.hint(draw.index, mirrored)
        if hint is not None:
            rows, columns = (slice(8 * part.start, 8 * part.stop) for part in (rows, columns))
            item["hint"] = hint[rows, columns].copy()
        if isinstance(key, Draw):
            item |= {"index": draw.index, "noise_seed": noise_seed}
        return item

    def _window(self, draw: Draw, sides: Sequence[int]) -> list[slice]:
        """Rows and columns of the latents that an item keeps."""
        if self.crop is None:
            return [slice(0, side) for side in sides]
        random = np.random.default_rng([self.dataset.seed, draw.position, 1])
        starts = [int(random.integers(max(side - self.crop, 0) + 1)) for side in sides]
        return [slice(start, min(start + self.crop, side)) for start, side in zip(starts, sides, strict=True)]


def _content_hash(path: Path) -> str:
    digest = hashlib.blake2b(digest_size=16)
    with open_regular(path) as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def _is_whole(entry: Path) -> bool:
    try:
        load_file(entry)
    except (OSError, SafetensorError):
        return False
    return True
