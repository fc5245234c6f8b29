"""The texts of a request on their way into the network: as they stand, or with weights and in chunks; and
what of them does not fit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from controlnet.generation.checks import RequestError
from controlnet.generation.class_prompts import class_shares
from ldm.modules.encoders.chunks import encode_chunks, token_chunks
from ldm.modules.encoders.modules import TextEncoder
from ldm.modules.regional import RegionalPrompts

if TYPE_CHECKING:
    from controlnet.generation.request import Request

_MOST_SHOWN = 60  # characters of what is cut


def encode(model: Any, prompts: Sequence[str], syntax: bool = False, at_least: int = 1) -> torch.Tensor:
    """N prompts -> ``[N, M, D]``, M the same for all.

    Args:
        syntax: read weights and breaks, and take as many chunks as the longest prompt needs, ``at_least`` so
            many; else the model's own way, as the prompts stand.

    Raises:
        RequestError: ``syntax`` for a text encoder of somebody's own.
    """
    if not syntax:
        return model.get_learned_conditioning(list(prompts))
    return encode_chunks(_encoder(model), prompts, at_least)


def encode_halves(
    model: Any, prompts: Sequence[str], negative_prompts: Sequence[str], syntax: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """`encode` of both halves of guidance, in equally many chunks."""
    if not syntax:
        return encode(model, prompts), encode(model, negative_prompts)
    encoder = _encoder(model)
    most = max(len(token_chunks(encoder, prompt)) for prompt in (*prompts, *negative_prompts))
    return encode(model, prompts, True, most), encode(model, negative_prompts, True, most)


def _encoder(model: Any) -> TextEncoder:
    encoder = model.cond_stage_model
    if not isinstance(encoder, TextEncoder):
        raise RequestError(
            f"prompt_syntax is for CLIP's text encoders, and this model has a {type(encoder).__name__}: "
            "switch it off."
        )
    return encoder


def regional_prompts(
    model: Any,
    prompts: Mapping[str, str],
    labels: np.ndarray,
    count: int,
    size: tuple[int, int],
    *,
    added: str = "",
    syntax: bool = False,
) -> RegionalPrompts | None:
    """Prompts by class for ``count`` pictures of one map; None where there is none.

    Args:
        model: on its device, its text encoder at hand.
        labels: class indices uint8 ``[H, W]``.
        size: height and width of the latents.
        added: appended to each prompt after a comma.
        syntax: see `encode`.
    """
    if not prompts:
        return None
    texts = encode(model, [f"{text}, {added}" if added else text for text in prompts.values()], syntax)
    shares = class_shares(labels, list(prompts), *size).to(texts)
    return RegionalPrompts(texts[None], shares.expand(count, -1, -1, -1))


def regional_rows(
    model: Any, prompts: Sequence[Mapping[str, str]], maps: Sequence[np.ndarray], size: tuple[int, int]
) -> RegionalPrompts | None:
    """Prompts by class for pictures that each have their own, and a map of their own; None where none has.
    Arguments as of `regional_prompts`.
    """
    most = max(map(len, prompts))
    if not most:
        return None
    rows = [[*row.values(), *[""] * (most - len(row))] for row in prompts]  # what is filled up holds nowhere
    texts = encode(model, [text for row in rows for text in row]).unflatten(0, (len(rows), most))
    shares = texts.new_zeros(len(rows), most, *size)
    for row, labels, place in zip(prompts, maps, shares, strict=True):
        if row:
            place[: len(row)] = class_shares(labels, list(row), *size)[0]
    return RegionalPrompts(texts, shares)


def regional_of(model: Any, request: Request, height: int, width: int) -> RegionalPrompts | None:
    """The prompts for parts of a request's pictures ``[height, width]``, by its ``class_map``."""
    if not request.class_prompts or request.class_map is None:
        return None
    return regional_prompts(
        model,
        request.class_prompts,
        request.class_map,
        request.num_samples,
        (height // 8, width // 8),
        added=request.a_prompt,
        syntax=request.prompt_syntax,
    )


@dataclass(frozen=True)
class Fit:
    """How a prompt fits into the text encoder.

    Attributes:
        tokens: of the prompt, without start and end.
        room: how many one chunk takes.
        chunks: how many chunks there are.
        lost: the words that are cut, or nothing.
    """

    tokens: int
    room: int
    chunks: int
    lost: str

    def sentence(self) -> str:
        """What a person should know, or just the count."""
        if self.lost:
            words = self.lost if len(self.lost) <= _MOST_SHOWN else f"{self.lost[: _MOST_SHOWN - 1]}…"
            return f'{self.tokens} of {self.room * self.chunks} tokens: "{words}" is cut'
        if self.chunks > 1:
            return f"{self.tokens} tokens in {self.chunks} chunks"
        return f"{self.tokens} of {self.room} tokens"


def fit_of(model: Any, prompt: str, syntax: bool) -> Fit | None:
    """How a prompt fits; None for a text encoder of somebody's own."""
    encoder = model.cond_stage_model
    if not isinstance(encoder, TextEncoder):
        return None
    room = encoder.max_length - 2
    if syntax:
        parts = token_chunks(encoder, prompt)
        return Fit(sum(map(len, parts)), room, len(parts), "")
    ids, chunks = encoder.ids(prompt), encoder.chunk_count
    lost = [token for token in ids[chunks * room :] if token >= 0]
    return Fit(len(ids), room, chunks, encoder.tokenizer.decode(lost).strip(" ,") if lost else "")


def cut_remarks(model: Any, request: Request) -> list[str]:
    """A sentence for each of a request's texts that is cut."""
    texts = {"The prompt": f"{request.prompt}, {request.a_prompt}", "The negative prompt": request.n_prompt}
    texts |= {
        f"The prompt for {name}": f"{text}, {request.a_prompt}"
        for name, text in request.class_prompts.items()
    }
    fits = {what: fit_of(model, text, request.prompt_syntax) for what, text in texts.items()}
    return [
        f"{what} has {fit.sentence()}; prompt_syntax takes prompts of any length."
        for what, fit in fits.items()
        if fit is not None and fit.lost
    ]
