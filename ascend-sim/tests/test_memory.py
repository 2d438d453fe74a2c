"""Device memory: bounded, given back, known to be live, out of reach for host code in check mode."""

from __future__ import annotations

import ascend_sim
import pytest
import torch

from .alone import run

MIB = 2**20


def test_free_memory_shrinks_by_what_is_taken() -> None:
    torch.npu.empty_cache()
    free, total = torch.npu.mem_get_info()
    held = torch.empty(64 * MIB, dtype=torch.uint8, device="npu")
    now, _ = torch.npu.mem_get_info()
    assert total == 8 * 1024 * MIB and 64 * MIB <= free - now <= 68 * MIB
    del held
    torch.npu.empty_cache()
    assert torch.npu.mem_get_info()[0] == free


def test_more_than_there_is_is_out_of_memory_and_nothing_is_lost() -> None:
    before = ascend_sim.usage().bytes
    with pytest.raises(torch.OutOfMemoryError, match="out of memory"):
        torch.empty(9 * 1024 * MIB, dtype=torch.uint8, device="npu")
    assert ascend_sim.usage().bytes <= before
    assert torch.ones(3, device="npu").sum().item() == 3


def test_an_allocation_fails_when_it_is_told_to() -> None:
    torch.npu.empty_cache()
    ascend_sim.fail_allocation(1)
    held = torch.empty(32 * MIB, dtype=torch.uint8, device="npu")  # torch_npu empties its cache and tries again
    assert held.numel() == 32 * MIB


def test_expandable_segments() -> None:
    program = """
import os, torch
x = [torch.ones(2**20 * k, device="npu") for k in (1, 5, 9)]
print([int(t.sum().item()) // 2**20 for t in x], torch.npu.memory_reserved() // 2**20)
del x; torch.npu.empty_cache(); print(torch.npu.memory_reserved())
"""
    done = run("import os; os.environ['PYTORCH_NPU_ALLOC_CONF'] = 'expandable_segments:True'\n" + program)
    assert done.stdout.splitlines()[0].startswith("[1, 5, 9]"), done.stderr
    assert done.stdout.splitlines()[1] == "0"


def test_host_code_that_touches_device_memory_ends_the_process_in_check_mode() -> None:
    program = "import torch, ctypes; x = torch.ones(3, device='npu'); print(x.sum().item())"
    program += "; ctypes.string_at(x.data_ptr(), 4)"
    done = run(program, check=1)
    assert "3.0" in done.stdout and done.returncode < 0
    assert "host code touched device memory" in done.stderr


def test_fresh_memory_is_not_zero_in_check_mode() -> None:
    done = run("import torch; print(torch.empty(3, device='npu').isnan().all().item())", check=1)
    assert done.stdout.strip() == "True", done.stderr


@pytest.mark.parametrize("value", ["x", "0", "1e3Q"])
def test_a_setting_that_cannot_be_read_says_what_is_expected(value: str) -> None:
    done = run("import torch; torch.empty(1, device='npu')", hbm=value)
    assert done.returncode == 2 and "ASCEND_SIM_HBM" in done.stderr and "expected bytes" in done.stderr
