r"""Prompts as people type them for the web UI of AUTOMATIC1111: weights for words, and breaks between chunks.

``(word)`` weighs 1.1, ``((word))`` 1.21, ``[word]`` 1 / 1.1, ``(word:1.3)`` what it says; they multiply where
they are nested. ``BREAK`` begins a new chunk, also between brackets. ``\(``, ``\)``, ``\[``, ``\]`` and
``\\`` are the signs themselves; any other backslash is dropped. A bracket that nothing closes holds to the
end, one that closes nothing is a sign. What else that program knows (schedules ``[a:b:0.5]``, alternatives
``[a|b]``, ``<lora:...>``) is text here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

STEP = 1.1
"""What a pair of brackets multiplies or divides a weight by."""

_FACTORS = {"(": STEP, "[": 1 / STEP}
_OPENING = {")": "(", "]": "["}
BREAK = re.compile(r"\s*\bBREAK\b\s*")
_SIGN = re.compile(
    r"""
    \\(?P<escaped>[()\[\]\\]?)
    | (?P<open>[(\[])
    | :\s*(?P<weight>[+-]?(?:\d+\.?\d*|\.\d+))\s*\)
    | (?P<close>[)\]])
    | (?P<text>[^\\()\[\]:]+|.)
    """,
    re.VERBOSE | re.DOTALL,
)


@dataclass
class Piece:
    """A stretch of a prompt whose words weigh the same."""

    text: str
    weight: float = 1.0


def parse_weights(prompt: str) -> list[Piece]:
    """The pieces of a prompt, neighbours of one weight together; an empty prompt is one empty piece.

    What ``BREAK`` stands between are still one piece; see `parse_chunks`.
    """
    pieces: list[Piece] = []
    waiting: dict[str, list[int]] = {"(": [], "[": []}  # for their ends: the piece after each bracket

    def weigh(start: int, factor: float) -> None:
        for piece in pieces[start:]:
            piece.weight *= factor

    for sign in _SIGN.finditer(prompt):
        text = sign[0]
        if sign["escaped"] is not None:
            pieces.append(Piece(sign["escaped"]))
        elif sign["open"]:
            waiting[text].append(len(pieces))
        elif sign["weight"] and waiting["("]:
            weigh(waiting["("].pop(), float(sign["weight"]))
        elif sign["close"] and waiting[_OPENING[text]]:
            weigh(waiting[_OPENING[text]].pop(), _FACTORS[_OPENING[text]])
        else:
            pieces.append(Piece(text))
    for bracket, starts in waiting.items():
        for start in starts:
            weigh(start, _FACTORS[bracket])
    return _joined(pieces) or [Piece("")]


def parse_chunks(prompt: str) -> list[list[Piece]]:
    """The pieces of a prompt between its breaks; at least one list of at least one piece."""
    chunks: list[list[Piece]] = [[]]
    for piece in parse_weights(prompt):
        first, *others = BREAK.split(piece.text)
        chunks[-1].append(Piece(first, piece.weight))
        chunks += [[Piece(text, piece.weight)] for text in others]
    return chunks


def _joined(pieces: Iterable[Piece]) -> list[Piece]:
    joined: list[Piece] = []
    for piece in pieces:
        if joined and joined[-1].weight == piece.weight:
            joined[-1].text += piece.text
        else:
            joined.append(piece)
    return joined


Token = tuple[int, float]
"""The id of a token, negative for a learned one, and its weight."""

COMMA_REACH = 20
"""How many tokens back a chunk that is full looks for a comma, to end there."""


def fill_chunks(parts: Sequence[Sequence[Token]], room: int, comma: int) -> list[list[Token]]:
    """Tokens in chunks of at most ``room``, each part beginning a new one; at least one chunk.

    A chunk that is full ends behind its last comma, where that is near its end, as in the web UI.

    Args:
        comma: the id of the token for a comma.
    """
    chunks: list[list[Token]] = []
    for part in parts:
        rest = list(part)
        while len(rest) > room:
            end = _end_of_chunk([token for token, _ in rest], room, comma)
            chunks.append(rest[:end])
            rest = rest[end:]
        chunks.append(rest)
    return chunks


def _end_of_chunk(ids: Sequence[int], room: int, comma: int) -> int:
    """How many of more than ``room`` tokens the first chunk takes."""
    end = room
    if ids[room] != comma:
        near = range(room, max(room - COMMA_REACH, 0), -1)
        end = next((i for i in near if ids[i - 1] == comma), room)
    while end > 1 and ids[end] < 0 and ids[end - 1] == ids[end] + 1:  # a learned word stays whole
        end -= 1
    return end if end > 1 else room


def weighted(embedding: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Embeddings ``[B, N, D]`` times the weights of their tokens ``[B, N]``, each row brought back to its
    mean; rows whose weights are all 1 stay as they are, bit for bit. The weights lie on the CPU.
    """
    changed = (weights != 1).any(1)
    if not changed.any():
        return embedding
    scaled = embedding * weights.to(embedding)[..., None]
    means = [tensor.float().mean((1, 2), keepdim=True) for tensor in (embedding, scaled)]
    scaled = scaled * (means[0] / means[1]).to(embedding)
    return torch.where(changed.to(embedding.device)[:, None, None], scaled, embedding)
