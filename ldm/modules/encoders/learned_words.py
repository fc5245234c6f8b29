"""Textual inversion in a text encoder: words of a prompt that stand for learned vectors (arXiv 2208.01618).

A learned vector has a negative token id, so that the vocabulary and the state dict stay as they are.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import torch
from torch import nn


class LearnedWords:
    """The names of learned vectors, and where they are in a prompt; letter case does not count."""

    def __init__(self) -> None:
        self._ids: dict[str, list[int]] = {}

    def add(self, names: Sequence[str], ids: Sequence[int]) -> None:
        """Let each of some names stand for a row of token ids; a name that is there already is replaced."""
        self._ids.update((name.lower(), list(ids)) for name in names)

    def split(self, prompt: str) -> Iterator[tuple[str, list[int]]]:
        """The prompt in pieces: text without learned words, and the ids of the word after it (or none)."""
        longest_first = sorted(self._ids, key=len, reverse=True)
        if not longest_first:
            yield prompt, []
            return
        words = "|".join(map(re.escape, longest_first))
        *pieces, last = re.split(rf"(?<!\w)({words})(?!\w)", prompt, flags=re.IGNORECASE)
        for text, word in zip(pieces[::2], pieces[1::2], strict=True):
            yield text, self._ids[word.lower()]
        yield last, []


class TokenEmbedding(nn.Embedding):
    """The table of token embeddings, with further rows for negative ids: ``[B, N] -> [B, N, width]``."""

    learned: torch.Tensor

    @classmethod
    def over(cls, table: nn.Embedding) -> TokenEmbedding:
        """A table with the weight of another, which it shares, and no learned rows yet."""
        with torch.device("meta"):
            layer = cls(*table.weight.shape)
        layer.weight = table.weight
        layer.register_buffer("learned", table.weight.detach()[:0].clone(), persistent=False)
        return layer.train(table.training)

    def add(self, vectors: torch.Tensor) -> list[int]:
        """Append learned vectors ``[n, width]``; their ids come back."""
        first = len(self.learned)
        self.learned = torch.cat([self.learned, vectors.to(self.learned)])
        return [-1 - index for index in range(first, len(self.learned))]

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        embedded = super().forward(ids.clamp(min=0))
        is_learned = ids < 0
        if is_learned.any():
            embedded[is_learned] = self.learned[-1 - ids[is_learned]]
        return embedded
