"""Which calls must run live between graphs, and why."""

from __future__ import annotations

import operator
from typing import Any

import torch
import torch.fx as fx
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

from graphmode.program.effects import is_foreign_python, is_opaque, op_name


def _values(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (tuple, list)) else [value]


def break_reason(node: fx.Node) -> str | None:
    """Why a call can't be part of a graph; None when it can."""
    target = node.target
    if isinstance(target, torch._ops.HigherOrderOperator):
        return f"higher-order op {op_name(target)} runs live"
    if is_foreign_python(target):
        name = getattr(target, "__name__", type(target).__name__)
        return f"{name} is Python that nobody looks into (allow_in_graph): what it does besides is not known"
    if not isinstance(target, torch._ops.OpOverload):
        return None
    if torch.Tag.data_dependent_output in target.tags or target is torch.ops.aten._local_scalar_dense.default:
        return f"{op_name(target)} reads a value from a tensor on the host"
    known = isinstance(node.meta.get("val"), torch.Tensor) and not free_unbacked_symbols(node.meta["val"])
    if torch.Tag.dynamic_output_shape in target.tags and not known:
        return f"{op_name(target)} has an output whose size depends on data"
    if torch.Tag.cudagraph_unsafe in target.tags:
        return f"{op_name(target)} is marked as unsafe to capture"
    for value in _values(node.meta.get("val")):
        if isinstance(value, torch.Tensor) and free_unbacked_symbols(value) and not _inherits(node):
            return f"{op_name(target)} has an output whose size depends on data"
    return None


def _inherits(node: fx.Node) -> bool:
    """Whether the unbacked sizes of a result come from the arguments: then the next graph's signature holds them."""
    given: set[Any] = set()
    for argument in node.all_input_nodes:
        for value in _values(argument.meta.get("val")):
            if isinstance(value, (torch.Tensor, torch.SymInt, torch.SymFloat, torch.SymBool)):
                given |= set(free_unbacked_symbols(value))
    made: set[Any] = set()
    for value in _values(node.meta.get("val")):
        if isinstance(value, torch.Tensor):
            made |= set(free_unbacked_symbols(value))
    return made <= given


def _home(gm: fx.GraphModule, device: str) -> torch.device | None:
    """The device of a kind that a program's first tensor is on: its graphs are of that one."""
    for node in gm.graph.nodes:
        for tensor in _values(node.meta.get("val", node.meta.get("example_value"))):
            if isinstance(tensor, torch.Tensor) and tensor.device.type == device:
                return tensor.device
    return None


_ON_STREAMS = ("_c10d_functional",)  # collectives are tasks of a device's stream, and so is the wait for one


def not_the_devices(node: fx.Node, device: str, home: torch.device | None) -> str | None:
    """Why a graph that keeps a device's kernels, and nothing that the host does, can't hold a call."""
    target = node.target
    if isinstance(target, torch._ops.OpOverload) and is_opaque(node) and target.namespace not in (device, *_ON_STREAMS):
        return f"{op_name(target)} is a custom op: what it does on the host would be lost in a graph of the {device}"
    if isinstance(target, torch._ops.OpOverload) and _reshapes_what_came_in(node, target):
        return f"{op_name(target)} changes the size or the memory of a tensor from outside the graph"
    if isinstance(target, torch._ops.OpOverload) and target.namespace in _ON_STREAMS and not _begins_and_ends(node):
        return f"{op_name(target)}: a collective is begun here and waited for elsewhere, or the other way round"
    for tensor in _tensors_at(node):
        if tensor.device.type == device and home is not None and tensor.device.index not in (None, home.index):
            of_both = f"a tensor on {tensor.device} and the program begins on {home}"
            return f"{_name(target)} has {of_both}: a graph is of one device"
    return _elsewhere(node, device, (device,))


def _reshapes_what_came_in(node: fx.Node, target: torch._ops.OpOverload) -> bool:
    """Whether a call changes how a tensor of the caller's lies (`t_`, `resize_`): a capture has a copy in its place."""
    if torch.Tag.inplace_view not in target.tags:
        return False
    changed: Any = node.args[0]
    while isinstance(changed, fx.Node) and changed.op == "call_function" and _returns_its_first_argument(changed):
        changed = changed.args[0]
    return isinstance(changed, fx.Node) and changed.op != "call_function"


def _returns_its_first_argument(node: fx.Node) -> bool:
    if not isinstance(node.target, torch._ops.OpOverload) or not node.args:
        return False
    alias = node.target._schema.arguments[0].alias_info
    return alias is not None and alias.is_write


def _begins_and_ends(node: fx.Node) -> bool:
    """Whether a collective and the wait for it are both in this program."""
    if node.target is torch.ops._c10d_functional.wait_tensor.default:
        source: Any = node.args[0]
        while isinstance(source, fx.Node) and source.target is operator.getitem:
            source = source.args[0]
        begun = getattr(source, "target", None)
        return isinstance(begun, torch._ops.OpOverload) and begun.namespace in _ON_STREAMS
    results = [u for u in node.users if u.target is operator.getitem] or [node]
    wait = torch.ops._c10d_functional.wait_tensor.default
    return all(any(u.target is wait for u in result.users) for result in results)


def _elsewhere(node: fx.Node, device: str, its: tuple[str, ...]) -> str | None:
    """Why a call is not a device's alone, which holds tensors of `its` kinds."""
    for tensor in _tensors_at(node):
        kind = tensor.device.type
        if kind not in its:
            name = _name(node.target)
            return f"{name} has a tensor on the {kind}: a graph of the {device} holds the {device}'s work alone"
    return None


def _tensors_at(node: fx.Node) -> list[torch.Tensor]:
    """What stands for the tensors that a call takes and gives."""
    values = [v for n in (node, *node.all_input_nodes) for v in _values(n.meta.get("val", n.meta.get("example_value")))]
    return [v for v in values if isinstance(v, torch.Tensor)]


def _name(target: Any) -> str:
    return op_name(target) if isinstance(target, torch._ops.OpOverload) else getattr(target, "__name__", str(target))


def find_breaks(gm: fx.GraphModule, device: str | None = None) -> dict[fx.Node, str]:
    """Breaks of a program with their reasons, in order.

    `device`: whose kernels alone a graph keeps; None where it keeps all that happens on the host.
    """
    found = {}
    home = None if device is None else _home(gm, device)
    for node in gm.graph.nodes:
        if node.op != "call_function":
            continue
        reason = break_reason(node)
        if reason is None:
            reason = _elsewhere(node, "cpu", ("cpu", "meta")) if device is None else not_the_devices(node, device, home)
        if reason is not None:
            found[node] = reason
    return found
