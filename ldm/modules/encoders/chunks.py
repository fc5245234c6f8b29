"""Prompts of any length, with weights: in chunks as long as the text encoder takes, set side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from ldm.modules.encoders.prompt_syntax import Token, fill_chunks, parse_chunks, weighted

if TYPE_CHECKING:
    from ldm.modules.encoders.modules import TextEncoder


def token_chunks(encoder: TextEncoder, prompt: str) -> list[list[Token]]:
    """The tokens of a prompt in the web UI's syntax, without start and end, in chunks."""
    parts = [
        [(token, piece.weight) for piece in part for token in encoder.ids(piece.text)]
        for part in parse_chunks(prompt)
    ]
    comma = encoder.ids(",")[0]
    return fill_chunks(parts, encoder.max_length - 2, comma)


@torch.no_grad()
def encode_chunks(encoder: TextEncoder, prompts: Sequence[str], at_least: int = 1) -> torch.Tensor:
    """B prompts in the web UI's syntax -> ``[B, chunks * max_length, width]``.

    All have as many chunks as the longest one, and ``at_least`` so many; those that are missing are empty.

    Raises:
        ValueError: weights for an encoder that does not give an embedding for each token.
    """
    rows = [token_chunks(encoder, prompt) for prompt in prompts]
    count = max(at_least, *map(len, rows))
    start, end = encoder.tokenizer.bos_token_id, encoder.tokenizer.eos_token_id
    ids, weights = [], []
    for chunk in (chunk for row in rows for chunk in [*row, *[[]] * (count - len(row))]):
        filling = encoder.max_length - 2 - len(chunk)
        ids.append([start, *(token for token, _ in chunk), end, *[encoder.pad_token_id] * filling])
        weights.append([1.0, *(weight for _, weight in chunk), 1.0, *[1.0] * filling])
    embedding = encoder.embed_tokens(torch.tensor(ids).to(encoder.device))  # [B * chunks, max_length, width]
    factors = torch.tensor(weights)
    if (factors != 1).any():
        if embedding.shape[1] != encoder.max_length:
            raise ValueError(f"the text encoder's layer {encoder.layer!r} has no place for weights of words")
        embedding = weighted(embedding, factors)
    return embedding.unflatten(0, (len(prompts), count)).flatten(1, 2)
