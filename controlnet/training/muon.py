"""Muon, for what has many small convolutions to learn from nothing in few steps."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # coefficients of Jordan's quintic iteration
_STEPS = 5


class Muon(torch.optim.Optimizer):
    """Momentum whose step is made orthogonal, for weights of two and more dimensions; AdamW for everything
    else.

    Source: K. Jordan, "Muon: an optimizer for hidden layers in neural networks" (2024), with the scale of Liu
    et al., "Muon is scalable for LLM training" (arXiv 2502.16982), under which AdamW's learning rates hold.
    ``torch.optim.Muon`` takes matrices only, and works in bfloat16, which is slow on CPUs that have none;
    here a convolution's kernel counts as a matrix of its output channels against the rest, and the type is
    that of the weights.

    Embeddings, and matrices with a side below ``smallest_side`` such as the last convolution, are left to
    AdamW: their rows are not the channels of a hidden layer.

    Args:
        parameters: to train.
        lr: learning rate of both.
        momentum: of the orthogonal steps, in Nesterov's way.
        betas, eps: of AdamW.
        weight_decay: of both, times ``lr`` per step.
        smallest_side, largest_side: of the matrices that take orthogonal steps.
    """

    def __init__(
        self,
        parameters: Iterable[Tensor],
        lr: float = 2e-3,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        smallest_side: int = 8,
        largest_side: int = 16384,
    ):
        parameters = [p for p in parameters if p.requires_grad]

        def is_hidden(p: Tensor) -> bool:
            sides = (p.shape[0], p[0].numel()) if p.ndim >= 2 else (0, 0)
            return min(sides) >= smallest_side and max(sides) <= largest_side

        hidden = [p for p in parameters if is_hidden(p)]
        others = [p for p in parameters if not is_hidden(p)]
        groups = [{"params": hidden, "orthogonal": True}, {"params": others, "orthogonal": False}]
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "betas": tuple(betas),
            "eps": eps,
            "weight_decay": weight_decay,
        }
        super().__init__([group for group in groups if group["params"]], defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        """One step; ``closure`` as in all of torch's optimizers."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            update = self._orthogonal_step if group["orthogonal"] else self._adamw_step
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    update(parameter, parameter.grad, self.state[parameter], group)
        return loss

    @staticmethod
    def _orthogonal_step(parameter: Tensor, gradient: Tensor, state: dict, group: dict) -> None:
        if not state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        average = state["momentum_buffer"].lerp_(gradient, 1 - group["momentum"])
        matrix = gradient.lerp(average, group["momentum"]).flatten(1)  # [out, the rest]
        scale = 0.2 * max(matrix.shape) ** 0.5  # AdamW's usual step has 0.2 per value (root mean square)
        parameter.add_(orthogonalize(matrix).view_as(parameter), alpha=-group["lr"] * scale)

    @staticmethod
    def _adamw_step(parameter: Tensor, gradient: Tensor, state: dict, group: dict) -> None:
        if not state:
            state["step"] = 0
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        state["step"] += 1
        mean, square, (beta1, beta2) = state["exp_avg"], state["exp_avg_sq"], group["betas"]
        mean.lerp_(gradient, 1 - beta1)
        square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        spread = (square / (1 - beta2 ** state["step"])).sqrt_().add_(group["eps"])
        parameter.addcdiv_(mean, spread, value=-group["lr"] / (1 - beta1 ** state["step"]))


def orthogonalize(matrix: Tensor) -> Tensor:
    """``[M, N] -> [M, N]`` with the same singular vectors and all singular values near 1 (0.7 to 1.2).

    Newton-Schulz: ``x <- (a + b g + c g g) x`` with ``g = x x^T``. The factors are collected and ``g`` is
    carried along, both square in the shorter side, so that a kernel's long side is passed over twice and not
    ten times.
    """
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    x = wide / (wide.norm() + 1e-7)
    a, b, c = _NEWTON_SCHULZ
    gram = x @ x.T
    identity = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    product = identity
    for _ in range(_STEPS):
        factor = a * identity + b * gram + c * gram @ gram
        product = factor @ product
        gram = factor @ gram @ factor  # all of them are polynomials of the first gram, and commute
    x = product @ x
    return x if wide is matrix else x.T
