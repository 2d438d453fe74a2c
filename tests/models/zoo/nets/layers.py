"""Feed-forward nets of torch's own layers."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from ..case import Case
from ..fields import image, normal, tokens
from .net import net


class Convolutional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Conv2d(8, 16, 3),
            nn.ReLU(),
        )
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.adaptive_avg_pool2d(self.features(x), 1).flatten(1))


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv2d(3, 3, 3, padding=1, bias=False) for _ in range(2))
        self.norms = nn.ModuleList(nn.BatchNorm2d(3) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norms[0](self.first(x)))
        return F.relu(self.norms[1](self.second(y)) + x)


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList([nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 16, 3, padding=1)])
        self.bottom = nn.Conv2d(16, 16, 3, padding=1)
        self.up = nn.ModuleList([nn.ConvTranspose2d(16, 8, 2, stride=2), nn.ConvTranspose2d(8, 8, 2, stride=2)])
        self.merge = nn.ModuleList([nn.Conv2d(24, 8, 3, padding=1), nn.Conv2d(16, 8, 3, padding=1)])
        self.out = nn.Conv2d(8, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for layer in self.down:
            x = F.silu(layer(x))
            skips.append(x)
            x = F.max_pool2d(x, 2)
        x = F.silu(self.bottom(x))
        for up, merge, skip in zip(self.up, self.merge, reversed(skips), strict=True):
            x = F.silu(merge(torch.cat([up(x), skip], dim=1)))
        return self.out(x)


class Recommender(nn.Module):
    """Like DLRM: dense features, embedding bags, and the dot products of all pairs."""

    pairs: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.bags = nn.ModuleList(nn.EmbeddingBag(50, 8, mode=mode) for mode in ("sum", "mean", "max"))
        self.dense = nn.Sequential(nn.Linear(13, 16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU())
        self.top = nn.Sequential(nn.Linear(8 + 6, 16), nn.ReLU(), nn.Linear(16, 1), nn.Sigmoid())
        self.register_buffer("pairs", torch.tril_indices(4, 4, offset=-1))

    def forward(self, dense: Tensor, sparse: Tensor) -> Tensor:
        x = self.dense(dense)
        rows = torch.stack([x, *(bag(sparse[:, i]) for i, bag in enumerate(self.bags))], dim=1)
        products = torch.bmm(rows, rows.transpose(1, 2))[:, self.pairs[0], self.pairs[1]]
        return self.top(torch.cat([x, products], dim=1))


class TiedAutoencoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(32, 8)
        self.decoder = nn.Linear(8, 32)
        self.decoder.weight = self.table.weight

    def forward(self, x: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        code = torch.tanh(F.linear(x, self.decoder.weight.T)) + self.table(ids)
        return self.decoder(code), code


class Spectral(nn.Module):
    """Filters in the frequency domain: complex parameters, fft and its inverse."""

    def __init__(self) -> None:
        super().__init__()
        self.filter = nn.Parameter(torch.randn(4, 9, dtype=torch.complex64))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        spectrum = torch.fft.rfft(x, dim=-1) * self.filter
        return torch.fft.irfft(spectrum, n=x.shape[-1], dim=-1), spectrum.conj().angle()


def parametrized() -> nn.Module:
    return nn.Sequential(
        parametrizations.spectral_norm(nn.Linear(16, 16)),
        nn.Tanh(),
        parametrizations.weight_norm(nn.Linear(16, 8)),
        parametrizations.orthogonal(nn.Linear(8, 8)),
    )


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 18))


def attention() -> nn.Module:
    return nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, norm_first=True)


CASES: list[Case] = [
    net("mlp", mlp, normal(1, 64), inference_mode=True),
    net("cnn", Convolutional, image(2)),
    net("resnet-block", Residual, normal(2, 3, 8, 8)),
    net("unet", UNet, image(1)),
    net("transformer-layer", attention, normal(2, 10, 32), inference_mode=True),
    net("dlrm", Recommender, normal(4, 13), tokens(4, 3, 5, low=0, high=50)),
    net("tied-autoencoder", TiedAutoencoder, normal(4, 32), tokens(4, low=0, high=32)),
    net("fft", Spectral, normal(2, 4, 16)),
    net("parametrized", parametrized, normal(4, 16)),
    net("parametrized-train", parametrized, normal(4, 16), train=True),
]
