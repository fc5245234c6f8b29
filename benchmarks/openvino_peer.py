"""OpenVINO as a peer of a step: diffusers' two networks, converted as one model and compiled for a size."""

from __future__ import annotations

import time

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from benchmarks.sampling_step import Clock, Inputs, Peer
from cldm.cldm import ControlLDM

PRECISIONS = {torch.float32: "f32", torch.bfloat16: "bf16"}


class OpenVinoPeer(Peer):
    """`Peer`, whose networks OpenVINO computes, with float32 weights in ``precision``.

    Its bf16 is 8e-2 from fp32, where ours is 1e-2, so that both are compared with fp32.
    """

    def __init__(self, config: DictConfig, ours: ControlLDM, clock: Clock = time.perf_counter):
        super().__init__(config, ours, torch.device("cpu"), clock)
        self.precision = PRECISIONS[self.unet.dtype]
        self.unet.float()
        self.controlnet.float()
        self.compiled = None

    def compile_for(self, inputs: Inputs) -> None:
        """Convert and compile for pairs of these inputs' shapes; takes minutes at the size of SD 1.5."""
        import openvino

        example = tuple(
            torch.cat([tensor] * 2).float() for tensor in (inputs.latent, inputs.text, inputs.hint)
        )
        latents, texts, hints = example
        moment = torch.tensor(501)
        with torch.no_grad():
            converted = openvino.convert_model(
                _Both(self), example_input=(latents, moment, texts, hints),
                input=[list(latents.shape), [], list(texts.shape), list(hints.shape)],
            )  # fmt: skip
        options = {
            "INFERENCE_PRECISION_HINT": self.precision,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        }
        self.compiled = openvino.Core().compile_model(converted, "CPU", options)

    def predict(self, latents: Tensor, t: Tensor, texts: Tensor, hints: Tensor) -> Tensor:
        if self.compiled is None:
            raise RuntimeError("call compile_for(inputs) first")
        arguments = [tensor.float().numpy() for tensor in (latents, texts, hints)]
        arguments.insert(1, t.numpy())
        return torch.from_numpy(self.compiled(arguments)[0])

    def exact(self, latents: Tensor, t: Tensor, texts: Tensor, hints: Tensor) -> Tensor | None:
        if self.precision == "f32":
            return None
        return Peer.predict(self, latents.float(), t, texts.float(), hints.float())


class _Both(nn.Module):
    """Control copy and UNet as one network."""

    def __init__(self, peer: Peer):
        super().__init__()
        self.unet, self.controlnet = peer.unet, peer.controlnet
        self.predict = lambda *arguments: Peer.predict(peer, *arguments)

    def forward(self, latents: Tensor, t: Tensor, texts: Tensor, hints: Tensor) -> Tensor:
        return self.predict(latents, t, texts, hints)
