"""A program as a native list of calls, for calls outside a graph: what its Python code does, without Python.

Owns the translation. A program with anything but the dispatcher's ops, items of their results, sizes computed with
integers and switches of modes has no script, and runs as Python.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
import torch.fx as fx

from graphmode import _C
from graphmode.program.effects import switches_mode

_ARITHMETIC: dict[Any, str] = {
    operator.add: "+",
    operator.sub: "-",
    operator.mul: "*",
    operator.floordiv: "/",
    operator.mod: "%",
    torch.sym_min: "<",
    torch.sym_max: ">",
}
_DATA = torch._C._autograd._get_data_attr  # type: ignore[attr-defined]  # `x.data`


def kinds_of(args: Sequence[Any]) -> str:
    """What a script is made for: of each argument, whether it is a tensor, an integer, or something else."""
    return "".join("t" if isinstance(a, torch.Tensor) else "i" if type(a) is int else "?" for a in args)


def script_of(gm: fx.GraphModule, kinds: str, fuel: int) -> _C.Script:
    """The script of a program, for arguments of these kinds. Its constants are those of the module now.

    `fuel`: how many runs of its calls may become kernels, the option of that name.

    Raises:
        Unscriptable: it has none, and why.
    """
    placeholders = gm.graph.find_nodes(op="placeholder")
    if len(placeholders) != len(kinds):
        raise _C.Unscriptable("it is called with another number of arguments")
    script = _C.Script(kinds, fuel)
    places = {n: _C.Register(i) for i, n in enumerate(placeholders)}
    dead = _last_uses(gm.graph)
    for node in gm.graph.nodes:
        if node.op == "placeholder":
            continue
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: places[n])  # type: ignore[arg-type,return-value]
        if node.op == "output":
            results = args[0]
            script.results(list(results) if isinstance(results, (tuple, list)) else [results])
            break
        if node.op == "get_attr":
            value: Any = gm
            for name in node.target.split("."):
                value = getattr(value, name)
            if type(value) not in (torch.Tensor, torch.nn.Parameter):
                raise _C.Unscriptable("a constant that is no plain tensor")
            places[node] = _C.Register(script.constant(value))
            continue
        places[node] = _C.Register(_call(script, node, args, kwargs))
        script.drop([places[n].number for n in dead.get(node, ())])
    return script


def _call(script: _C.Script, node: fx.Node, args: Sequence[Any], kwargs: dict[str, Any]) -> int:
    target = node.target
    if isinstance(target, torch._ops.OpOverload):
        schema = target._schema
        return script.call(schema.name, schema.overload_name, *args, **kwargs)
    if target is operator.getitem and isinstance(args[0], _C.Register) and type(args[1]) is int and args[1] >= 0:
        return script.item(args[0], args[1])
    if target in _ARITHMETIC and len(args) == 2 and not kwargs:
        return script.number(_ARITHMETIC[target], args[0], args[1])
    if target is _DATA and isinstance(args[0], _C.Register):
        return script.data(args[0])
    if switches_mode(node) and not kwargs:
        return script.python(target, *args)  # type: ignore[arg-type]
    raise _C.Unscriptable(f"a call of {getattr(target, '__name__', type(target).__name__)}")


def _last_uses(graph: fx.Graph) -> dict[fx.Node, list[fx.Node]]:
    """Per node: what nobody uses after it. Inputs are the caller's, and go with the others."""
    seen: set[fx.Node] = set()
    found: dict[fx.Node, list[fx.Node]] = {}
    for node in reversed(graph.nodes):
        for used in dict.fromkeys([node, *node.all_input_nodes]):
            if used not in seen and used.op != "get_attr":
                seen.add(used)
                if node.op.startswith("call"):
                    found.setdefault(node, []).append(used)
    return found
