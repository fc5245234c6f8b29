"""Text encoders: CLIP of SD 1.x and OpenCLIP of SD 2.x, built without any download.

Architectures come from known configurations, weights from the checkpoint, the tokenizer from open_clip_torch.
Source: ldm/modules/encoders/modules.py of the original, and its cldm/hack.py for long prompts.
"""

from __future__ import annotations

import html
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import ftfy
import torch
from torch import nn

from ldm.modules.encoders.learned_words import LearnedWords, TokenEmbedding
from ldm.modules.encoders.tokenizer import clip_tokenizer

logger = logging.getLogger(__name__)

VIT_L_14 = {
    "vocab_size": 49408,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 77,
    "projection_dim": 768,
    "hidden_act": "quick_gelu",
}
"""Text part of openai/clip-vit-large-patch14, fields of ``transformers.CLIPTextConfig``."""

CHUNKS = 3
"""How many chunks a long prompt is encoded in, as by the original's ``hack_everything``."""


class AbstractEncoder(nn.Module):
    """The base of encoders of one's own, as in the original: what a condition is embedded by."""

    def encode(self, *args: Any, **kwargs: Any) -> Any:
        """A condition of a batch -> its embedding ``[B, M, D]``."""
        raise NotImplementedError(f"{type(self).__name__} has no method encode; write one")


class TextEncoder(AbstractEncoder):
    """What the text encoders have in common.

    Args:
        layer: which output is the embedding.
        layers: the outputs that the encoder has.
        max_length: tokens of a prompt, with start and end.
        freeze: take no gradients, and stay in eval mode.
        long_prompts: see `FrozenCLIPEmbedder`; None takes what holds for the class.
    """

    pad_token_id: int
    long_prompts = "truncate"

    def __init__(
        self, layer: str, layers: Sequence[str], max_length: int, freeze: bool, long_prompts: str | None
    ):
        super().__init__()
        if layer not in layers:
            raise ValueError(f"layer {layer!r} unknown; expected one of {layers}")
        if long_prompts not in (None, "truncate", "chunk"):
            raise ValueError(f"long_prompts {long_prompts!r} unknown; expected truncate or chunk")
        self.layer = layer
        self.max_length = max_length
        if long_prompts is not None:
            self.long_prompts = long_prompts
        self.frozen = freeze
        self.words = LearnedWords()

    @property
    def device(self) -> torch.device:
        """Where the weights are, and prompts are encoded; setting it moves them there."""
        return next(self.parameters()).device

    @device.setter
    def device(self, value: str | torch.device) -> None:
        self.to(value)

    @property
    def tokenizer(self) -> Any:
        """CLIP's tokenizer, loaded when it is first asked for."""
        return clip_tokenizer()

    def freeze(self) -> None:
        """Take no gradients from now on."""
        self.frozen = True
        self.eval().requires_grad_(False)

    def unfreeze(self) -> None:
        """Take gradients again."""
        self.frozen = False
        self.requires_grad_(True)

    def train(self, mode: bool = True) -> TextEncoder:
        """As usual, but a frozen encoder stays in eval mode."""
        return super().train(mode and not self.frozen)

    def tokenize(self, text: str | Sequence[str]) -> torch.Tensor:
        """Token ids, int64 ``[B, chunks, max_length]``: 3 chunks for ``long_prompts="chunk"``, else 1."""
        start, end = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        room = self.max_length - 2
        chunks = self.chunk_count
        rows = []
        for prompt in [text] if isinstance(text, str) else text:
            ids = self.ids(prompt)
            if len(ids) > chunks * room:
                lost = self.tokenizer.decode([token for token in ids[chunks * room :] if token >= 0])
                logger.warning("prompt cut after %d tokens; lost: %r", chunks * room, lost)
            parts = [ids[i * room : (i + 1) * room] for i in range(chunks)]
            rows.append([[start, *part, end] + [self.pad_token_id] * (room - len(part)) for part in parts])
        return torch.tensor(rows)

    @property
    def chunk_count(self) -> int:
        """How many chunks of ``max_length`` every prompt is encoded in."""
        return CHUNKS if self.long_prompts == "chunk" else 1

    def ids(self, text: str) -> list[int]:
        """The tokens of a text, without start and end; negative ones are learned."""
        ids: list[int] = []
        for part, learned in self.words.split(self.clean(text)):
            ids += [*self.tokenizer(part, add_special_tokens=False)["input_ids"], *learned]
        return ids

    def add_embedding(self, names: Sequence[str], vectors: torch.Tensor) -> None:
        """Let each of some names stand for learned vectors ``[n, width]`` in prompts (textual inversion).

        Raises:
            ValueError: the vectors are not as wide as the encoder's.
        """
        owner = self.token_table_owner
        width = owner.token_embedding.weight.shape[1]
        if vectors.ndim != 2 or vectors.shape[1] != width:
            raise ValueError(
                f"embedding {names[0]!r}: its vectors are {list(vectors.shape)}, and this text encoder's are "
                f"{width} wide: it was made for another version of Stable Diffusion"
            )
        if not isinstance(owner.token_embedding, TokenEmbedding):
            owner.token_embedding = TokenEmbedding.over(owner.token_embedding)
        self.words.add(names, owner.token_embedding.add(vectors))

    @property
    def token_table_owner(self) -> nn.Module:
        """The module whose ``token_embedding`` is the table of the vocabulary."""
        raise NotImplementedError

    @staticmethod
    def clean(prompt: str) -> str:
        """Mend broken Unicode and straighten quotes, as CLIP's tokenizer did for the original."""
        return ftfy.fix_text(prompt)

    def embed_tokens(self, tokens: torch.Tensor) -> torch.Tensor:
        """Token ids ``[B, max_length]`` -> ``[B, max_length, width]``."""
        raise NotImplementedError

    def forward(self, text: str | Sequence[str]) -> torch.Tensor:
        """B prompts -> ``[B, chunks * max_length, width]``."""
        tokens = self.tokenize(text).to(self.device)  # [B, chunks, max_length]
        embedding = self.embed_tokens(tokens.flatten(0, 1))  # [B * chunks, max_length, width]
        return embedding.unflatten(0, tokens.shape[:2]).flatten(1, 2)

    def encode(self, text: str | Sequence[str]) -> torch.Tensor:
        """The same as calling it."""
        return self(text)


class FrozenCLIPEmbedder(TextEncoder):
    """CLIP's text transformer: B prompts -> ``[B, max_length, hidden_size]``.

    Args:
        version: kept for the YAML; the architecture comes from ``text_config``.
        device: move there after building; by default the embedder follows its module.
        max_length: tokens of a prompt, with start and end.
        freeze: take no gradients, and stay in eval mode.
        layer: which output: "last"; "pooled" (one vector, ``[B, 1, hidden_size]``); "hidden" (of
            ``layer_idx``).
        layer_idx: 0 is the input embedding, the number of layers the last one; for ``layer="hidden"``.
        text_config: fields of ``CLIPTextConfig`` that differ from ViT-L/14.
        clip_skip: 1 (the default) for the last layer, 2 for the one before, with the final norm applied; for
            ``layer="last"``.
        long_prompts: "truncate" (the default) at max_length, with a warning; or "chunk": always 3 chunks of
            75 tokens, for an embedding of ``[B, 231, hidden_size]``. ``cldm.hack.hack_everything`` sets the
            defaults of both.
    """

    LAYERS = ("last", "pooled", "hidden")
    clip_skip = 1
    pad_token_id = 49407  # CLIP fills up with its end token

    def __init__(
        self,
        version: str = "openai/clip-vit-large-patch14",
        device: str | torch.device | None = None,
        max_length: int = 77,
        freeze: bool = True,
        layer: str = "last",
        layer_idx: int | None = None,
        text_config: Mapping[str, Any] | None = None,
        clip_skip: int | None = None,
        long_prompts: str | None = None,
    ):
        super().__init__(layer, self.LAYERS, max_length, freeze, long_prompts)
        config = {**VIT_L_14, **(text_config or {})}
        depth, positions = config["num_hidden_layers"], config["max_position_embeddings"]
        if layer == "hidden" and (layer_idx is None or abs(layer_idx) > depth):
            raise ValueError(f"got layer_idx={layer_idx} for layer 'hidden'; expected -{depth} to {depth}")
        if clip_skip is not None and not 1 <= clip_skip <= depth:
            raise ValueError(f"got clip_skip={clip_skip}; expected 1 to {depth}, the number of layers")
        if not 3 <= max_length <= positions:
            raise ValueError(f"got max_length={max_length}; expected 3 to {positions}, the model's positions")
        self.layer_idx = layer_idx
        if clip_skip is not None:
            self.clip_skip = clip_skip
        self.transformer = _CLIPText(config)
        if freeze:
            self.freeze()
        if device is not None:
            self.to(device)

    @property
    def token_table_owner(self) -> nn.Module:
        return self.transformer.text_model.embeddings

    def embed_tokens(self, tokens: torch.Tensor) -> torch.Tensor:
        """Token ids ``[B, max_length]`` -> ``[B, max_length, hidden_size]``, ``[B, 1, hidden_size]`` for
        "pooled".
        """
        needs_hidden = self.layer == "hidden" or self.clip_skip > 1
        outputs = self.transformer(input_ids=tokens, output_hidden_states=needs_hidden)
        if self.layer == "pooled":
            return outputs.pooler_output[:, None, :]
        if self.layer == "hidden":
            return outputs.hidden_states[self.layer_idx]
        if self.clip_skip > 1:
            return self.transformer.text_model.final_layer_norm(outputs.hidden_states[-self.clip_skip])
        return outputs.last_hidden_state


class FrozenOpenCLIPEmbedder(TextEncoder):
    """OpenCLIP's text transformer: B prompts -> ``[B, max_length, width]``.

    Args:
        arch: an architecture that open_clip knows.
        version: kept for the YAML; weights come from the checkpoint.
        device: move there after building; by default the embedder follows its module.
        max_length: tokens of a prompt, with start and end.
        freeze: take no gradients, and stay in eval mode.
        layer: "last", or "penultimate" (SD 2.x); the final norm is applied to either.
        text_config: fields of open_clip's ``text_cfg`` that differ from ``arch``.
        long_prompts: see `FrozenCLIPEmbedder`.
    """

    LAYERS = ("last", "penultimate")
    pad_token_id = 0

    def __init__(
        self,
        arch: str = "ViT-H-14",
        version: str = "laion2b_s32b_b79k",
        device: str | torch.device | None = None,
        max_length: int = 77,
        freeze: bool = True,
        layer: str = "last",
        text_config: Mapping[str, Any] | None = None,
        long_prompts: str | None = None,
    ):
        super().__init__(layer, self.LAYERS, max_length, freeze, long_prompts)
        self.model = _OpenCLIPText(arch, text_config or {})
        if max_length != self.model.context_length:
            raise ValueError(f"got max_length={max_length}; {arch} takes {self.model.context_length} tokens")
        if freeze:
            self.freeze()
        if device is not None:
            self.to(device)

    @property
    def token_table_owner(self) -> nn.Module:
        return self.model

    @staticmethod
    def clean(prompt: str) -> str:
        """Mend broken Unicode and resolve HTML entities, also doubled ones, as open_clip does."""
        return html.unescape(html.unescape(ftfy.fix_text(prompt)))

    def embed_tokens(self, tokens: torch.Tensor) -> torch.Tensor:
        """Token ids ``[B, max_length]`` -> ``[B, max_length, width]``."""
        return self.model(tokens, skipped_layers=1 if self.layer == "penultimate" else 0)


class _CLIPText(nn.Module):
    """transformers' CLIP text model, under the key prefix ``text_model.`` of released checkpoints."""

    def __init__(self, config: Mapping[str, Any]):
        super().__init__()
        from transformers import CLIPTextConfig, CLIPTextModel

        model = CLIPTextModel(CLIPTextConfig(**config))
        self.text_model = getattr(model, "text_model", model)
        # Not in checkpoints any more; a skeleton on the meta device must have it all the same.
        positions = torch.arange(config["max_position_embeddings"], device="cpu")[None]
        self.text_model.embeddings.register_buffer("position_ids", positions, persistent=False)

    def forward(self, **inputs: Any) -> Any:
        return self.text_model(**inputs)

    def _load_from_state_dict(self, state_dict: dict[str, torch.Tensor], prefix: str, *args) -> None:
        """Accept the position ids that older checkpoints hold."""
        state_dict.pop(f"{prefix}text_model.embeddings.position_ids", None)
        super()._load_from_state_dict(state_dict, prefix, *args)


class _OpenCLIPText(nn.Module):
    """open_clip's text transformer, with the key names of a whole CLIP whose picture half was deleted."""

    def __init__(self, arch: str, text_config: Mapping[str, Any]):
        super().__init__()
        import open_clip
        from open_clip.transformer import TextTransformer

        config = open_clip.get_model_config(arch)
        if config is None:
            raise ValueError(f"open_clip knows no architecture {arch!r}; see open_clip.list_models()")
        fields = {**config["text_cfg"], **text_config}
        quick_gelu = {"act_layer": open_clip.transformer.QuickGELU} if config.get("quick_gelu") else {}
        text = TextTransformer(output_dim=config["embed_dim"], **quick_gelu, **fields)
        self.context_length = text.context_length
        self.positional_embedding = text.positional_embedding
        self.text_projection = text.text_projection
        self.logit_scale = nn.Parameter(torch.ones([]))
        self.transformer = text.transformer
        self.token_embedding = text.token_embedding
        self.ln_final = text.ln_final

    def forward(self, tokens: torch.Tensor, skipped_layers: int) -> torch.Tensor:
        """Token ids ``[B, N]`` -> ``[B, N, width]``, without the last layers but with the final norm."""
        x = self.token_embedding(tokens) + self.positional_embedding  # [B, N, width]
        length = tokens.shape[1]
        mask = torch.full((length, length), float("-inf"), dtype=x.dtype, device=x.device).triu(1)
        batch_first = self.transformer.batch_first
        x = x if batch_first else x.transpose(0, 1)
        for block in self.transformer.resblocks[: len(self.transformer.resblocks) - skipped_layers]:
            x = block(x, attn_mask=mask)
        return self.ln_final(x if batch_first else x.transpose(0, 1))
