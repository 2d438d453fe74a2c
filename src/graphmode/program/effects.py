"""Which calls change something: arguments, generators, the outside. One table for all passes.

Schemas lie now and then: corrections stand here and in native/tape.cpp (undeclared_writes), which must agree.
"""

from __future__ import annotations

import operator
import types
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.fx as fx
from torch._dynamo.variables.misc import produce_trampoline_autograd_apply

# Ops that write arguments without saying so: running statistics, when training.
UNDECLARED_WRITES: dict[str, tuple[int, ...]] = {
    "aten::native_batch_norm": (3, 4),
    "aten::batch_norm": (3, 4),
    "aten::_batch_norm_impl_index": (3, 4),
    "aten::cudnn_batch_norm": (3, 4),
    "aten::miopen_batch_norm": (3, 4),
    "aten::native_batch_norm.out": (3, 4),
    "aten::instance_norm": (3, 4),
    "aten::batch_norm_update_stats": (1, 2),
}
PURE_PYTHON = {operator.getitem, operator.add, operator.sub, operator.mul, operator.floordiv, operator.mod,
                   operator.truediv, operator.neg, operator.eq, operator.ne, operator.lt, operator.le, operator.gt,
                   operator.ge, operator.and_, operator.or_, operator.not_, torch.sym_max, torch.sym_min,
                   torch.sym_float, torch.sym_int, torch.sym_not, torch.sym_ite,
                   torch.Size}  # fmt: skip


# Where functions come from that do nothing but compute. einops has its own put into Dynamo's graphs, before 0.8.2.
_ONLY_COMPUTE = {"torch", "_operator", "operator", "builtins", "math", "functorch", "einops"}


def is_foreign_python(target: Any) -> bool:
    """Whether a call is to a user's Python, which gets into Dynamo's graph unseen: by `allow_in_graph`."""
    if isinstance(target, torch._ops.OpOverload | torch._ops.OpOverloadPacket | torch._ops.HigherOrderOperator | str):
        return False
    if getattr(target, "_origin", None) is produce_trampoline_autograd_apply:
        return True  # an autograd.Function's forward, which Dynamo did not look into
    if isinstance(target, types.FunctionType):
        module = target.__globals__.get("__name__", "")  # __module__ may be another's, after functools.wraps
    else:
        module = getattr(target, "__module__", None) or "torch"  # functions and methods of torch's C part name none
    return module.partition(".")[0] not in _ONLY_COMPUTE


def op_name(target: torch._ops.OperatorBase) -> str:
    """An op's qualified name, as `aten::add.Tensor`."""
    return str(target.name())  # type: ignore[no-untyped-call]


def written_arguments(target: Any) -> tuple[int, ...]:
    """Indices of the arguments that an op overload writes."""
    if not isinstance(target, torch._ops.OpOverload):
        return ()
    schema = target._schema
    declared = tuple(i for i, a in enumerate(schema.arguments) if a.alias_info is not None and a.alias_info.is_write)
    return declared + UNDECLARED_WRITES.get(op_name(target), ())


def written_inputs(gm: fx.GraphModule) -> set[int]:
    """Positions of the placeholders that the program may write, itself or through a view; opaque calls write all."""
    roots: dict[fx.Node, frozenset[int]] = {}  # whose memory a value may be
    written: set[int] = set()
    for node in gm.graph.nodes:
        if node.op == "placeholder":
            roots[node] = frozenset([len(roots)])
        elif node.op.startswith("call"):
            everything = frozenset().union(*(roots.get(n, frozenset()) for n in node.all_input_nodes))
            roots[node] = everything
            if not isinstance(node.target, torch._ops.OpOverload):
                written |= set() if node.target in PURE_PYTHON else everything
                continue
            for argument, given in _arguments(node):
                if argument.alias_info is not None and argument.alias_info.is_write:
                    written |= frozenset().union(*(roots.get(n, frozenset()) for n in given))
            for i in UNDECLARED_WRITES.get(op_name(node.target), ()):
                if i < len(node.args) and isinstance(node.args[i], fx.Node):
                    written |= roots.get(node.args[i], frozenset())
            if all(r.alias_info is None for r in node.target._schema.returns):
                roots[node] = frozenset()  # memory of its own
    return written


def _arguments(node: fx.Node) -> Iterator[tuple[torch.Argument, list[fx.Node]]]:
    """Arguments of an op's schema, each with the nodes given for it."""
    for i, argument in enumerate(node.target._schema.arguments):  # type: ignore[union-attr]
        given = node.args[i] if i < len(node.args) else node.kwargs.get(argument.name)
        yield argument, [n for n in (given if isinstance(given, (list, tuple)) else [given]) if isinstance(n, fx.Node)]


def looks_at_places(gm: fx.GraphModule) -> bool:
    """Whether a call depends on where a tensor lies in its storage: it counts from the storage's begin, or must divide
    the offset into larger elements."""
    names = {op_name(n.target) for n in gm.graph.nodes if isinstance(n.target, torch._ops.OperatorBase)}
    larger = {"aten::view.dtype", "aten::view_as_complex"}
    return any(name.startswith("aten::as_strided") or name in larger for name in names)


def handed_on(gm: fx.GraphModule) -> set[int]:
    """Positions of the placeholders that only custom ops without results take, as they are.

    Such an op alone knows what their sizes mean; nothing that the program computes depends on them.
    """
    return {
        i
        for i, node in enumerate(gm.graph.find_nodes(op="placeholder"))
        if node.users and all(_takes_as_it_is(user) for user in node.users) and _is_tensor(node)
    }


def _takes_as_it_is(node: fx.Node) -> bool:
    target = node.target
    return isinstance(target, torch._ops.OpOverload) and is_opaque(node) and not target._schema.returns


def _is_tensor(node: fx.Node) -> bool:
    return isinstance(node.meta.get("val", node.meta.get("example_value")), torch.Tensor)


_UNDO: dict[Any, Callable[[Any], Any]] = {
    torch.amp.autocast_mode._enter_autocast: torch.amp.autocast_mode._exit_autocast,
    torch.autograd.grad_mode._enter_inference_mode: torch.autograd.grad_mode._exit_inference_mode,
}


def switches_mode(node: fx.Node) -> bool:
    """Whether a call sets a mode of the thread, rather than computing."""
    return node.target is torch._C._set_grad_enabled or node.target in _UNDO or node.target in _UNDO.values()


def leave_mode(node: fx.Node, entered: Any) -> None:
    """Undoes a call that entered a mode; does nothing for any other."""
    leave = _UNDO.get(node.target)
    if leave is not None:
        leave(entered)


def is_opaque(node: fx.Node) -> bool:
    """Whether a call does what no schema tells: a custom op, or Python."""
    if not node.op.startswith("call") or node.target in PURE_PYTHON:
        return False
    return not isinstance(node.target, torch._ops.OpOverload) or node.target.namespace not in ("aten", "prims")


def gives_memory_of_its_own(value: Any) -> bool:
    """Whether a result is by its op's schema no view, neither of an argument nor of anything else."""
    if isinstance(value, fx.Node) and value.target is operator.getitem:
        value = value.args[0]
    if not isinstance(value, fx.Node) or not isinstance(value.target, torch._ops.OpOverload):
        return False
    return all(r.alias_info is None for r in value.target._schema.returns)


def is_random(target: Any) -> bool:
    """Whether an op draws from a generator."""
    return isinstance(target, torch._ops.OpOverload) and torch.Tag.nondeterministic_seeded in target.tags


def has_effect(node: fx.Node) -> bool:
    """Whether a call must run even when nobody uses its result."""
    target = node.target
    if target in PURE_PYTHON:
        return False
    if not isinstance(target, torch._ops.OpOverload):
        return True
    if target.namespace not in ("aten", "prims"):
        return True  # a custom op: its schema tells nothing of the outside
    if not target._schema.returns:
        return True  # an assertion or the like
    return bool(written_arguments(target)) or is_random(target)
