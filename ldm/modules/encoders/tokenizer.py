"""CLIP's tokenizer from the byte-pair table that open_clip_torch carries: no download, and open_clip stays
unloaded.

Source: CLIP (arXiv 2103.00020).
"""

from __future__ import annotations

import gzip
import importlib.util
from functools import cache
from pathlib import Path
from typing import Any

BPE_FILE = "bpe_simple_vocab_16e6.txt.gz"
START, END = "<|startoftext|>", "<|endoftext|>"
VOCABULARY_SIZE = 49408


@cache
def clip_tokenizer() -> Any:
    """CLIP's tokenizer as a ``transformers.CLIPTokenizer``; it holds no state between calls."""
    from transformers import CLIPTokenizer

    merges = read_merges()
    byte_symbols = _byte_symbols()
    words = [*byte_symbols, *(f"{symbol}</w>" for symbol in byte_symbols), *map("".join, merges), START, END]
    return CLIPTokenizer(
        vocab={word: i for i, word in enumerate(words)}, merges=merges, model_max_length=10**9
    )


def read_merges() -> list[tuple[str, str]]:
    """The table's merges, best first; CLIP uses so many that its vocabulary has 49,408 entries."""
    spec = importlib.util.find_spec("open_clip")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(
            "CLIP's tokenizer needs the package open_clip_torch: pip install open_clip_torch"
        )
    with gzip.open(Path(spec.origin).with_name(BPE_FILE), "rt", encoding="utf-8") as table:
        lines = table.read().split("\n")
    count = VOCABULARY_SIZE - 2 * 256 - 2
    return [tuple(line.split()) for line in lines[1 : 1 + count]]


def _byte_symbols() -> list[str]:
    """A printable symbol for each byte, in the vocabulary's order: those that print as themselves, then the
    others.
    """
    printable = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    others = 256 - len(printable)
    return [chr(byte) for byte in printable] + [chr(256 + i) for i in range(others)]
