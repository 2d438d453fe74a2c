"""Nets that draw random numbers: each call must draw new ones, and the same as eager from the same seed."""

import torch
from torch import Tensor, nn

from ..case import Case
from ..fields import normal
from .net import net


class Noisy(nn.Module):
    """A variational layer and a sampled token."""

    def __init__(self) -> None:
        super().__init__()
        self.mean, self.scale = nn.Linear(16, 8), nn.Linear(16, 8)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        code = self.mean(x) + torch.randn_like(self.mean(x)) * self.scale(x).exp()
        token = torch.multinomial(code.softmax(-1), 1)
        return code, token, torch.bernoulli(code.sigmoid())


class Shuffled(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        noise = torch.empty_like(x).uniform_(-1, 1).exponential_()
        return x[torch.randperm(x.shape[0], device=x.device)] + torch.rand(x.shape[1], device=x.device), noise.normal_(
            0, 2
        )


def dropout() -> nn.Module:
    return nn.Sequential(nn.Linear(16, 32), nn.Dropout(0.5), nn.ReLU(), nn.AlphaDropout(0.2), nn.Linear(32, 4))


CASES: list[Case] = [
    net("dropout-train", dropout, normal(4, 16), train=True),
    net("transformer-train", lambda: nn.TransformerEncoderLayer(16, 2, 32, 0.3), normal(5, 2, 16), train=True),
    net("sampling", Noisy, normal(4, 16)),
    net("shuffled", Shuffled, normal(6, 8)),
]
