"""YAML files that a stranger may have written: model definitions, data sets, settings of a training.

A file is looked at before anything is made of it: how long it is, how deep its lists lie in one another (a
parser in C overflows its stack), what its aliases expand to, whether it asks for the environment, and for a
model, how large it would be.
"""

from __future__ import annotations

import io
import itertools
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

MOST_BYTES = 2**18
MOST_NODES = 10_000
MOST_DEPTH = 50
MOST_REFERENCES = 100
MOST_CHARACTERS = 1_000
"""Of a value without quotes, such as a number."""

MOST_WEIGHTS = 10**10
"""As estimated: three times those of Stable Diffusion XL's UNet."""

_REFERENCE = re.compile(r"\$\{\w+(\.\w+|\[\d+\])*\}")

# What a number in a definition may be at most; in the largest known models they are a tenth of that.
_LAYERS = ("num_res_blocks", "transformer_depth", "num_attention_blocks", "num_hidden_layers")
_WIDTHS = ("model_channels", "ch", "hidden_size")
_FACTORS = ("channel_mult", "ch_mult")
_MOST = {
    **dict.fromkeys(_LAYERS, 256),
    **dict.fromkeys(_FACTORS, 64),
    **dict.fromkeys(_WIDTHS, 16_384),
    **dict.fromkeys(
        ("channels", "in_channels", "out_channels", "hint_channels", "z_channels", "out_ch"), 16_384
    ),
    **dict.fromkeys(
        ("context_dim", "embed_dim", "projection_dim", "num_heads", "num_head_channels", "num_groups"), 16_384
    ),
    **dict.fromkeys(("image_size", "resolution", "num_attention_heads", "max_length"), 16_384),
    **dict.fromkeys(("intermediate_size", "max_position_embeddings", "timesteps", "num_timesteps"), 100_000),
    **dict.fromkeys(("vocab_size", "n_embed", "num_classes"), 1_000_000),
}
_MOST_OF_TORCH = 16_384  # any number that a class of torch.nn is made with


class DefinitionError(ValueError):
    """A YAML file that cannot be used; the text is one line and names it."""


@contextmanager
def one_line_errors(path: str | Path) -> Iterator[None]:
    """Whatever goes wrong inside becomes a DefinitionError that names the file: parsers, resolvers and
    constructors that get a stranger's values raise errors of all kinds.
    """
    try:
        yield
    except DefinitionError:
        raise
    except Exception as error:
        text = str(error.args[0] if isinstance(error, KeyError) and error.args else error)
        if isinstance(error, OmegaConfBaseException):
            text = text.partition("\n")[0]  # the other lines are about its own types
        text = re.sub(r'in "<[^>]*>", ', "at ", text)  # YAML's words for a file without a name
        reason = " ".join(text.split())[:500] or type(error).__name__
        raise DefinitionError(f"{path}: {reason}") from error


def read_yaml(path: str | Path) -> DictConfig:
    """Read a YAML file with a mapping in it. References to other values (``${a.b}``) are put in their place.

    Raises:
        DefinitionError: no file, no YAML, no mapping; or one of the limits of this module is passed, or
            something else than a reference is to be put in: ``${oc.env:HOME}`` would show the environment.
    """
    with one_line_errors(path):
        text = _text_of(Path(path))
        _check_events(text)
        config = OmegaConf.load(io.StringIO(text))
        if not isinstance(config, DictConfig):
            raise ValueError("a mapping of names to values is wanted, this is a list")
        plain = OmegaConf.to_container(config, resolve=False)
        return OmegaConf.create(_resolved(plain, plain, itertools.count()))


def check_sizes(node: Any, key: str = "") -> None:
    """Make sure that a definition, read with `read_yaml`, is not of a model larger than any.

    Args:
        node: a mapping, a list or a value.
        key: of the node, for the error.

    Raises:
        ValueError: a number, or what follows from several, is too large.
    """
    if isinstance(node, ListConfig | list):
        for item in node:
            check_sizes(item, key)
        return
    if not isinstance(node, DictConfig | Mapping):
        return
    of_torch = str(node.get("target")).startswith("torch.")
    for name, value in node.items():
        place = f"{key}.{name}".lstrip(".")
        _check_numbers(value, place, _MOST.get(name))
        check_sizes(value, place)
        if of_torch and name == "params":
            _check_all_numbers(value, place)
    weights = _estimated_weights(node)
    if weights > MOST_WEIGHTS:
        raise ValueError(f"{key}: a network of about {weights:.0e} weights is more than {MOST_WEIGHTS:.0e}")


def _text_of(path: Path) -> str:
    if not path.is_file():
        raise ValueError("this is a folder, a device or a pipe" if path.exists() else "there is no such file")
    if path.stat().st_size > MOST_BYTES:
        raise ValueError(
            f"{path.stat().st_size:,} bytes are more than {MOST_BYTES:,}, so this is no definition"
        )
    return path.read_bytes().decode("utf-8-sig")


def _check_events(text: str) -> None:
    """The parser's limits, kept before there is anything that a deep or repeated list could be made of."""
    depth = references = 0
    for count, event in enumerate(yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        elif isinstance(event, yaml.ScalarEvent):
            references += "${" in event.value
            _check_scalar(event)
        if count > 2 * MOST_NODES or depth > MOST_DEPTH or references > MOST_REFERENCES:
            raise ValueError(
                f"more than {MOST_NODES:,} values, {MOST_DEPTH} lists in one another or {MOST_REFERENCES} "
                "references are no definition"
            )


def _check_scalar(event: yaml.ScalarEvent) -> None:
    value, line = event.value, event.start_mark.line + 1
    if "${" in value and not _REFERENCE.fullmatch(value):
        raise ValueError(
            f"line {line}: {value[:100]!r} is not looked up; whole values may be references such as ${{a.b}}"
        )
    if event.implicit[0] and len(value) > MOST_CHARACTERS:
        raise ValueError(f"line {line}: a value of {len(value):,} characters is wanted in quotes")


def _resolved(node: Any, root: dict[Any, Any], counter: Iterator[int], depth: int = 0) -> Any:
    """Plain data with references followed; also one to itself, or to very much, comes to an end."""
    if next(counter) > MOST_NODES or depth > MOST_DEPTH:
        raise ValueError("its references refer to themselves, or expand to too much")
    if isinstance(node, dict):
        return {key: _resolved(value, root, counter, depth + 1) for key, value in node.items()}
    if isinstance(node, list):
        return [_resolved(value, root, counter, depth + 1) for value in node]
    if isinstance(node, str) and _REFERENCE.fullmatch(node):
        return _resolved(_found(node, root), root, counter, depth + 1)
    return node


def _found(reference: str, node: Any) -> Any:
    try:
        for part in re.findall(r"\w+", reference):
            node = node[int(part) if isinstance(node, list) else part]
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise ValueError(f"{reference}: there is no such value") from error
    return node


def _check_numbers(value: Any, place: str, most: int | None) -> None:
    """A number, or a list of numbers, with a known name."""
    if most is None or value is None or isinstance(value, DictConfig | Mapping):
        return
    numbers = list(value) if isinstance(value, ListConfig | list) else [value]
    if len(numbers) > 64 or any(isinstance(number, int | float) and not number <= most for number in numbers):
        raise ValueError(f"{place}: {str(value)[:100]} is too much; {most:,} is the most")


def _check_all_numbers(node: Any, place: str) -> None:
    for value in node.values() if isinstance(node, DictConfig | Mapping) else node or ():
        _check_numbers(value, place, _MOST_OF_TORCH)


def _estimated_weights(node: Mapping[str, Any]) -> float:
    """Of a network of blocks: convolutions and attention have about 30 times the square of their width."""

    def most(names: tuple[str, ...]) -> float:
        values = [value for name in names for value in _numbers(node.get(name))]
        return max([1, *values])

    layers = 1.0
    for name in _LAYERS:
        layers *= most((name,))
    levels = max([1, *(len(_numbers(node.get(name))) for name in _FACTORS)])
    embedding = most(("vocab_size",)) * most(("hidden_size",))
    return layers * levels * 30 * (most(_WIDTHS) * most(_FACTORS)) ** 2 + embedding


def _numbers(value: Any) -> list[float]:
    values = list(value) if isinstance(value, ListConfig | list) else [value]
    return [number for number in values if isinstance(number, int | float)]
