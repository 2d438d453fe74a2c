"""Nets with code of the user's own below the module: autograd functions, custom ops, hooks, transforms."""

from typing import Any

import torch
from torch import Tensor, nn

from ..case import Case
from ..fields import normal
from .net import net


class Swish(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x.sigmoid()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return grad * (x.sigmoid() + x * x.sigmoid() * (1 - x.sigmoid()))


@torch.library.custom_op("zoo::scaled_rows", mutates_args=())
def scaled_rows(x: Tensor, by: Tensor) -> Tensor:
    return torch.from_numpy(x.cpu().numpy() * by.cpu().numpy()[:, None]).to(x.device)


@scaled_rows.register_fake
def _(x: Tensor, by: Tensor) -> Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("zoo::accumulate", mutates_args=("total",))
def accumulate(total: Tensor, x: Tensor) -> None:
    total.add_(x.sum(0))


class OwnFunction(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return Swish.apply(self.linear(x))


class OwnOps(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("total", torch.zeros(8))

    def forward(self, x: Tensor) -> Tensor:
        y = scaled_rows(x, x.mean(1))
        accumulate(self.total, y)
        return y + self.total


class Mapped(nn.Module):
    """vmap over a batch, and a jvp."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 8))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        rows = torch.vmap(lambda row: (self.weight @ row).tanh())(x)
        return rows, torch.func.jvp(torch.sin, (x,), (rows,))[1]


def hooked() -> nn.Module:
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
    model[0].register_forward_hook(lambda module, args, output: output * 2)
    model[2].register_forward_pre_hook(lambda module, args: (args[0] + 1,))
    return model


CASES: list[Case] = [
    net("autograd-function", OwnFunction, normal(4, 8)),
    net("custom-ops", OwnOps, normal(4, 8)),
    net("vmap", Mapped, normal(4, 8)),
    net("hooks", hooked, normal(4, 8)),
]
