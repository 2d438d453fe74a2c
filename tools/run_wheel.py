"""What an installed wheel must do with no compiler in reach: capture, replay, equal eager."""

import shutil
import sys
from pathlib import Path

import torch

model = torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.ReLU(), torch.nn.Linear(256, 18)).eval()
compiled = torch.compile(model, backend="graphmode")  # the key, found without an import
with torch.inference_mode():
    for _ in range(5):
        x = torch.randn(2, 64)
        assert torch.equal(compiled(x), model(x))

import graphmode  # noqa: E402

found = graphmode.report()
assert found.replays == 3 and not found.fallbacks, found
assert Path(graphmode.__file__).is_relative_to(sys.prefix), graphmode.__file__
assert not any(shutil.which(name) for name in ("g++", "gcc", "cc", "clang")), "a compiler is in reach"
print(f"the wheel works: graphmode {graphmode.__file__}, {found.replays} replays")
