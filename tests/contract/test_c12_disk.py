"""C12: no code runs from a file that someone else could have written. There is no cache yet: nothing is written."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from graphmode.errors import UnsupportedError

from .alone import alone
from .ways import assert_same, replayed

SCRIPT = """
written, loaded, watching = [], [], [False]
def hook(event, args):
    if not watching[0]: return
    if event == "open":
        mode, flags = args[1], args[2] or 0
        if (isinstance(mode, str) and set(mode) & set("wax+")) or flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            written.append(args[0])
    if event in ("pickle.find_class", "marshal.loads", "exec_file"): loaded.append(event)
    if event in ("os.mkdir", "os.rename", "shutil.copyfile", "subprocess.Popen", "os.system"): written.append(args[0])
sys.addaudithook(hook)
net = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.GELU())
f = torch.compile(net, backend="graphmode")
h = graphmode.compile(net)
torch._dynamo.config.suppress_errors = False
watching[0] = True
with torch.no_grad():
    for n in (2, 3, 4):
        for _ in range(4):
            x = torch.randn(n, 8)
            assert torch.equal(f(x), net(x)) and torch.equal(h(x), net(x))
str(graphmode.report()); graphmode.reset()
watching[0] = False
assert graphmode.report() is not None
print(written, loaded)
ours = [str(w) for w in written if w not in ("/dev/null", os.devnull) and not isinstance(w, int)]
assert not ours, ours
assert "pickle.find_class" not in loaded, loaded
"""


def test_c12_compiling_capturing_and_replaying_write_nothing_and_unpickle_nothing() -> None:
    alone(SCRIPT)


def test_c12_ahead_of_time_compilation_runs_here_and_saves_nothing(tmp_path: Path) -> None:
    def f(x: torch.Tensor) -> torch.Tensor:
        return x.sin() * 2

    with torch._dynamo.config.patch(enable_aot_compile=True):
        compiled = torch.compile(f, fullgraph=True, backend="graphmode").aot_compile(((torch.randn(3),), {}))
    with replayed(2):
        for _ in range(4):
            x = torch.randn(3)
            assert_same(compiled(x), f(x))
    with pytest.raises(UnsupportedError, match="made anew"):
        compiled.save_compiled_function(str(tmp_path / "file"))
    assert not list(tmp_path.iterdir())
