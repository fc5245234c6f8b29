"""Teaches the embedded model's text encoder what prompts say, through Lightning.

``python -m controlnet.storybook.train_text --config configs/train/tiny_text.yaml``

Stable Diffusion's text encoder comes from CLIP, which read 400 M captions before any diffusion. The embedded
model's
learns from a few thousand scenes while the UNet does: enough for the time of day, which colours the whole
picture, and too little for whose colour is "red" in "a red house and a white boat". Here it reads prompts
without pictures, and a linear reader must tell from the mean of its embedding what each prompt says of time,
season and colours. The embedding also stays close to what it was, so that a UNet which reads it already goes
on understanding it.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.utils.data import Dataset

from cldm.model import load_model
from controlnet.storybook.dataset import draw_prompts
from controlnet.storybook.lesson import fit, rising_and_falling, run_training
from controlnet.storybook.scenes.looks import BOAT_COLOURS, CAR_COLOURS, HOUSE_COLOURS, SEASONS, TIMES
from controlnet.storybook.scenes.prompts import named_in
from controlnet.training.data.dataset import Draw
from controlnet.training.data.loader import make_loader
from ldm.modules.encoders.modules import TextEncoder
from ldm.weights import save_state_dict

logger = logging.getLogger(__name__)

QUESTIONS: dict[str, tuple[str, ...]] = {
    "time": tuple(TIMES),
    "season": tuple(SEASONS),
    "house": tuple(HOUSE_COLOURS),
    "car": tuple(CAR_COLOURS),
    "boat": tuple(BOAT_COLOURS),
}
"""What the reader must tell of a prompt, and the possible answers; answer 0 is always "it does not say"."""


class Prompts(Dataset):
    """Prompts with the answers to `QUESTIONS`.

    Args:
        first_seed: seed of the first layout.
        layouts: number of layouts; drawing one takes about 10 ms, and each is drawn when it is first asked
            for.
        prompts: for each layout.
    """

    def __init__(self, first_seed: int, layouts: int, prompts: int) -> None:
        self.first_seed, self.layouts, self.prompts = first_seed, layouts, prompts
        self._drawn: dict[int, list[str]] = {}

    def __len__(self) -> int:
        return self.layouts * self.prompts

    def describe(self, index: int) -> str:
        """What an item is made of, for messages."""
        return (
            f"prompt {index % self.prompts} of the layout of seed {self.first_seed + index // self.prompts}"
        )

    def __getitem__(self, key: int | Draw) -> dict[str, Any]:
        """``txt``, and ``answers``, int64 ``[questions]``."""
        index = key.index if isinstance(key, Draw) else key
        layout, variant = divmod(index, self.prompts)
        if layout not in self._drawn:
            self._drawn[layout] = draw_prompts(self.first_seed + layout, self.prompts)
        prompt = self._drawn[layout][variant]
        named = named_in(prompt)
        answers = [
            1 + values.index(named[name]) if name in named else 0 for name, values in QUESTIONS.items()
        ]
        return {"txt": prompt, "answers": torch.tensor(answers), "index": index}


class TextTraining(pl.LightningModule):
    """A text encoder with a linear reader: cross entropy of the answers, and the distance to the former
    embedding.

    Args:
        encoder: CLIP's or OpenCLIP's text encoder; it is changed.
        learning_rate: of AdamW, which rises over 50 steps and falls to 0 at ``max_steps`` by a cosine.
        keep: weight of the mean squared distance to the former embedding.
        max_steps: length of the training.
    """

    def __init__(self, encoder: TextEncoder, learning_rate: float, keep: float, max_steps: int) -> None:
        super().__init__()
        self.former = copy.deepcopy(encoder)
        self.former.freeze()
        self.encoder = encoder
        self.encoder.unfreeze()
        width = encoder([""]).shape[-1]
        self.reader = nn.Linear(width, sum(1 + len(values) for values in QUESTIONS.values()))
        self.learning_rate, self.keep, self.max_steps = learning_rate, keep, max_steps

    def answers(self, embedding: Tensor) -> tuple[Tensor, ...]:
        """Embedding ``[B, M, width]`` -> logits ``[B, 1 + values]`` for each question."""
        return self.reader(embedding.mean(1)).split([1 + len(values) for values in QUESTIONS.values()], dim=1)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        tokens = self.encoder.tokenize(batch["txt"]).flatten(0, 1).to(self.device)  # [B, M]
        embedding = self.encoder.embed_tokens(tokens)  # [B, M, width]
        with torch.no_grad():
            former = self.former.embed_tokens(tokens)
        distance = F.mse_loss(embedding, former)
        logits, right = self.answers(embedding), batch["answers"].T
        reading = torch.stack([F.cross_entropy(*pair) for pair in zip(logits, right, strict=True)]).mean()
        accuracy = torch.stack(
            [(a.argmax(1) == b).float().mean() for a, b in zip(logits, right, strict=True)]
        ).mean()
        self.log_dict({"reading": reading, "distance": distance, "accuracy": accuracy}, prog_bar=True)
        return reading + self.keep * distance

    def configure_optimizers(self) -> Any:
        trained = [*self.encoder.parameters(), *self.reader.parameters()]
        optimizer = torch.optim.AdamW(trained, self.learning_rate, weight_decay=0.01, fused=True)
        return rising_and_falling(optimizer, self.max_steps)


def train_text(settings: DictConfig, output: Path, resume: str | Path | None = None) -> Path:
    """Train a model's text encoder, and write the whole model's weights with it.

    Args:
        settings: the keys of ``configs/train/tiny_text.yaml``.
        output: folder for ``last.ckpt``, ``metrics.csv`` and the weights.
        resume: a ``last.ckpt`` to continue from.

    Returns:
        the path of the weights, ``model.safetensors``.
    """
    pl.seed_everything(settings.seed, verbose=False)
    model = load_model(settings.model, settings.base)
    module = TextTraining(model.cond_stage_model, settings.learning_rate, settings.keep, settings.max_steps)
    prompts = Prompts(settings.first_seed, settings.layouts, settings.prompts)
    loader = make_loader(prompts, settings.batch_size, seed=settings.seed, workers=0)
    fit(module, loader, settings, output, resume)
    weights = output / "model.safetensors"
    save_state_dict(model.state_dict(), weights)
    logger.info("The model with its new text encoder: %s", weights)
    return weights


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line of ``python -m controlnet.storybook.train_text``."""
    run_training(train_text, "train_text", "tiny_text", "Teach a text encoder.", arguments)


if __name__ == "__main__":
    main()
