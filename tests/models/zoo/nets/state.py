"""Nets that change something that outlives the call: buffers, caches, running statistics, attributes."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..case import Case
from ..fields import image, normal, tokens
from .net import net

ROOM = 16


class CachedAttention(nn.Module):
    """One decode step: key and value are written into the cache in place, at a position in a tensor."""

    keys: Tensor
    values: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(32, 96), nn.Linear(32, 32)
        self.register_buffer("keys", torch.zeros(2, 4, ROOM, 8))
        self.register_buffer("values", torch.zeros(2, 4, ROOM, 8))

    def forward(self, x: Tensor, position: Tensor) -> Tensor:
        q, k, v = self.qkv(x).view(2, 1, 12, 8).transpose(1, 2).chunk(3, dim=1)
        self.keys.index_copy_(2, position, k)
        self.values.index_copy_(2, position, v)
        seen = (torch.arange(ROOM, device=position.device) <= position)[None]
        y = F.scaled_dot_product_attention(q, self.keys, self.values, attn_mask=seen)
        return self.out(y.transpose(1, 2).reshape(2, 1, 32))


class MovingAverage(nn.Module):
    mean: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(8))
        self.register_buffer("count", torch.zeros((), dtype=torch.long))

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        self.mean.lerp_(x.mean(0), 1 / self.count)
        return x - self.mean


class RingBuffer(nn.Module):
    """Writes through a view and gives a view of the buffer to the caller."""

    ring: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("ring", torch.zeros(4, 8))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        self.ring.copy_(self.ring.roll(-1, 0))
        self.ring[-1].copy_(x)
        return self.ring[1:], self.ring.sum(0)


class PythonState(nn.Module):
    """Numbers and lists in Python that grow with each call and are read by the next."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0
        self.history: list[Tensor] = []
        self.linear = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        y = self.linear(x) * (1.0 if self.calls % 2 else -1.0)
        self.history.append(y)
        self.history = self.history[-2:]
        return torch.stack(self.history).sum(0)


class Codebook(nn.Module):
    """Replaces a buffer by a new tensor instead of writing into it."""

    codes: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("codes", torch.randn(16, 8))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        nearest = torch.cdist(x, self.codes).argmin(-1)
        step = torch.zeros_like(self.codes).index_add(0, nearest, x - self.codes[nearest])
        self.codes = self.codes + 0.1 * step
        return self.codes[nearest], nearest


class InputWriter(nn.Module):
    """Writes into what it was given, and returns it."""

    def forward(self, x: Tensor, total: Tensor) -> Tensor:
        x.relu_()
        total.add_(x.sum(0))
        return total


def normalized() -> nn.Module:
    features = (nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten())
    return nn.Sequential(*features, nn.Linear(8 * 36, 4), nn.BatchNorm1d(4))


CASES: list[Case] = [
    net("kv-cache", CachedAttention, normal(2, 1, 32), tokens(1, low=0, high=ROOM)),
    net("moving-average", MovingAverage, normal(4, 8)),
    net("ring-buffer", RingBuffer, normal(8)),
    net("python-state", PythonState, normal(2, 8), calls=9),
    net("codebook", Codebook, normal(6, 8)),
    net("input-writer", InputWriter, normal(4, 8), normal(8)),
    net("batch-norm-train", normalized, image(4, 8), train=True),
]
