"""Hand-written nets of the public suite that no package ships: an MLP, a recommender, recurrent steps.

Plain torch.nn, nothing that knows of a peer.
"""

import torch
from torch import Tensor, nn


def mlp() -> nn.Module:
    """64-256-256-18 with ReLU: a policy net, small enough that overhead is most of its time."""
    return nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 18))


class ManyParameters(nn.Module):
    """300 parameters of eight elements, one cheap op on each: what a call costs is to check them."""

    def __init__(self, layers: int = 100) -> None:
        super().__init__()
        self.scales, self.shifts, self.gains = (
            nn.ParameterList(torch.rand(8) * 0.1 + 0.9 for _ in range(layers)) for _ in range(3)
        )

    def forward(self, x: Tensor) -> Tensor:
        for scale, shift, gain in zip(self.scales, self.shifts, self.gains, strict=True):
            x = (x * scale + shift) * gain
        return x


class GruStep(nn.Module):
    """One step of a two-layer GRU, 256 wide: takes the input and both hidden states, returns the new ones."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.GRUCell(256, 256), nn.GRUCell(256, 256)

    def forward(self, x: Tensor, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        first = self.first(x, first)
        return first, self.second(first, second)


class Lstm(nn.Module):
    """A two-layer LSTM, 256 wide, over a whole sequence, and a classifier on its last state."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(128, 256, num_layers=2, batch_first=True)
        self.head = nn.Linear(256, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0][:, -1])


class Dlrm(nn.Module):
    """A recommender in the manner of DLRM: dense features, embedding bags, pairwise dot products, two MLPs.

    Source: Naumov et al., Deep Learning Recommendation Model, arXiv:1906.00091.
    """

    def __init__(self, tables: int = 26, rows: int = 10_000, width: int = 32) -> None:
        super().__init__()
        self.bags = nn.ModuleList(nn.EmbeddingBag(rows, width, mode="sum") for _ in range(tables))
        self.bottom = nn.Sequential(nn.Linear(13, 256), nn.ReLU(), nn.Linear(256, width), nn.ReLU())
        pairs = torch.tril_indices(tables + 1, tables + 1, offset=-1)
        self.register_buffer("left", pairs[0])
        self.register_buffer("right", pairs[1])
        self.top = nn.Sequential(nn.Linear(width + pairs.shape[1], 256), nn.ReLU(), nn.Linear(256, 1))

    def forward(self, dense: Tensor, sparse: Tensor) -> Tensor:
        """dense: (batch, 13) floats; sparse: (tables, batch, indices per bag) int64. Returns (batch, 1)."""
        bottom = self.bottom(dense)
        features = torch.stack([bottom, *(bag(ids) for bag, ids in zip(self.bags, sparse, strict=True))], dim=1)
        products = features @ features.transpose(1, 2)
        return self.top(torch.cat([bottom, products[:, self.left, self.right]], dim=1)).sigmoid()
