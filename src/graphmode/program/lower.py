"""From Dynamo's graph to ATen: every call becomes the ATen calls it makes first, above autograd and autocast.

Composites stay whole, as eager calls them, so the bits stay; mutation is kept, so in-place ops stay in place. A call
that can't be seen whole stays Dynamo's own, as one opaque node. Decides nothing about capture.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import sympy
import torch
import torch.fx as fx
from torch._guards import TracingContext, detect_fake_mode
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx import traceback as fx_traceback
from torch.fx.experimental.proxy_tensor import (
    disable_proxy_modes_tracing,
    get_proxy_mode,
    get_proxy_slot,
    make_fx,
    track_tensor_tree,
)
from torch.fx.experimental.symbolic_shapes import PropagateUnbackedSymInts, ShapeEnv
from torch.utils import _pytree as pytree

from graphmode.program.effects import PURE_PYTHON, is_foreign_python, switches_mode

_CHECKS = (torch._check, torch._check_is_size)  # what they state is in the shape guards already
_TELEMETRY = torch._C._log_api_usage_once  # of a module made in the call: it was done when Dynamo traced that
_UNSEEN = (torch._C._autograd._get_data_attr,)  # type: ignore[attr-defined]  # `x.data`: seen by no dispatcher
_MOST_TRACES = 32


class LoweringError(Exception):
    """The graph can't be traced to ATen; it is captured as Dynamo gave it."""


class _MustBeOpaque(Exception):
    """A call can't be seen whole: `args` are its node and why."""


class _Pins(RuntimeError):
    """A fake kernel would fix a symbolic size to one number."""


def lower(gm: fx.GraphModule, example_inputs: Sequence[Any]) -> fx.GraphModule:
    """Lowers Dynamo's graph to ATen calls, with the user's source lines on the nodes.

    Shape guards that the trace needs land in Dynamo's guards.

    Args:
        gm: Dynamo's graph.
        example_inputs: what Dynamo gave with it: real tensors, symbolic integers.

    Raises:
        LoweringError: the graph can't be traced; the message says why.
    """
    mode = _fake_mode(gm)
    with _no_guards_on_own_sizes(mode.shape_env):
        lowered = _lower(gm, example_inputs, mode)
    _check(gm, lowered)
    return lowered


def _lower(gm: fx.GraphModule, example_inputs: Sequence[Any], mode: FakeTensorMode) -> fx.GraphModule:
    opaque = {n.name for n in gm.graph.nodes if n.target in _UNSEEN}
    failed: set[Any] = set()
    for _ in range(_MOST_TRACES):
        try:
            return _trace(gm, [_fake(mode, x) for x in example_inputs], mode, opaque)
        except _MustBeOpaque as found:
            node, why = found.args
            if node.name in opaque:
                raise LoweringError(f"{node.name}: {why}") from found
            opaque.add(node.name)
            if node.target in failed:  # each costs a trace from the start, and what failed twice is likely to again
                opaque |= {n.name for n in gm.graph.nodes if n.op == node.op and n.target == node.target}
            failed.add(node.target)
        except LoweringError:
            raise
        except Exception as error:  # whatever a fake kernel raises: the graph still runs, as it came
            raise LoweringError(_brief(error)) from error
    raise LoweringError(f"more than {_MOST_TRACES} kinds of its calls can't be seen whole")


@contextlib.contextmanager
def _no_guards_on_own_sizes(env: ShapeEnv | None) -> Iterator[None]:
    """A guard on a size that only this trace made (a nested tensor's) is one that no call could be checked for."""
    before = 0 if env is None else len(env.guards)
    own: list[Any] = []
    try:
        yield
    finally:
        if env is not None:
            own = [g for g in env.guards[before:] if not all(_has_a_source(env, s) for s in g.expr.free_symbols)]
            env.guards[before:] = [g for g in env.guards[before:] if g not in own]
    if own:
        raise LoweringError(f"it depends on a size that it makes itself: {own[0].expr}")


def _has_a_source(env: ShapeEnv, symbol: Any) -> bool:
    return any(not source.is_ephemeral() for source in env.var_to_sources.get(symbol, ()))


def _brief(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:160]}" if lines else type(error).__name__


def _fake_mode(gm: fx.GraphModule) -> FakeTensorMode:
    # Dynamo's example values belong to the mode of its trace, which may have changed their metadata; the context's
    # mode is a fresh one over the same symbols.
    context = TracingContext.try_get()
    values = [n.meta.get("example_value") for n in gm.graph.find_nodes(op="placeholder")]
    mode = context.fake_mode if context is not None else detect_fake_mode(values)
    return mode if mode is not None else FakeTensorMode(shape_env=ShapeEnv())


def _fake(mode: FakeTensorMode, value: Any) -> Any:
    if not isinstance(value, torch.Tensor) or (isinstance(value, FakeTensor) and value.fake_mode is mode):
        return value
    own_dispatch = type(value).__torch_dispatch__ is not torch.Tensor.__torch_dispatch__
    if value.layout != torch.strided or (own_dispatch and not isinstance(value, FakeTensor)):
        raise LoweringError(f"an input is a {type(value).__name__} of layout {value.layout}")
    context = TracingContext.try_get()
    known = context is not None and value in context.tensor_to_context
    symbols = context.tensor_to_context[value] if context is not None and known else None
    plain = value
    if type(value) not in (torch.Tensor, torch.nn.Parameter, FakeTensor):  # its __torch_function__ Dynamo has traced
        plain = torch.Tensor._make_subclass(torch.Tensor, value, value.requires_grad)
    if symbols is None:
        return mode.from_tensor(plain, static_shapes=True)
    return mode.from_tensor(plain, symbolic_context=symbols, source=symbols.tensor_source)


def _trace(gm: fx.GraphModule, fakes: Sequence[Any], mode: FakeTensorMode, opaque: set[str]) -> fx.GraphModule:
    with contextlib.ExitStack() as stack:
        stack.enter_context(mode)
        stack.enter_context(torch.set_grad_enabled(torch.is_grad_enabled()))  # the graph may leave it switched
        stack.enter_context(fx_traceback.preserve_node_meta())
        if mode.shape_env is not None:
            stack.enter_context(mode.shape_env.ignore_fresh_unbacked_symbols())
            stack.enter_context(pinning_no_size(mode.shape_env))
        interpreter = _Lowering(gm, opaque)
        lowered: fx.GraphModule = make_fx(interpreter.run, tracing_mode="real", pre_dispatch=True)(*fakes)
    for name, value in interpreter.constants.items():
        setattr(lowered, name, value)
    return lowered


class _Lowering(PropagateUnbackedSymInts):
    """Runs Dynamo's nodes under make_fx, and checks after each that nothing it did went unseen."""

    def __init__(self, gm: fx.GraphModule, opaque: set[str]) -> None:
        super().__init__(gm, garbage_collect_values=False)
        self.constants: dict[str, Any] = {}
        self.extra_traceback = False
        self._bodies: dict[int, fx.Proxy] = {}  # of higher-order ops
        self._switches: dict[fx.Node, fx.Node] = {}  # of modes, by Dynamo's node
        self._opaque = opaque

    def run_node(self, n: fx.Node) -> Any:
        if n.op == "get_attr":
            return self._constant(n)
        if not n.op.startswith("call"):
            return super().run_node(n)
        target = n.target
        if n.op == "call_module" or _functorch(target):
            raise LoweringError(f"{_name(target)} changes what later calls mean")
        if switches_mode(n):
            return self._mode(n)
        if _only_known_by_its_result(target) or n.name in self._opaque:
            with self._set_current_node(n):
                return self._as_it_is(n)
        tracer = _tracer()
        last = tracer.graph._root._prev
        try:
            result = super().run_node(n)
        except LoweringError:
            raise
        except Exception as error:  # a fake kernel that can't, a size that would be pinned
            raise _MustBeOpaque(n, _brief(error)) from error
        made = _after(last)
        unseen = [t for t in pytree.tree_leaves(result) if isinstance(t, torch.Tensor) and not _tracked(t, tracer)]
        baked = any(a.op == "get_attr" and isinstance(_attribute(tracer.root, a), FakeTensor) for a in made)
        if unseen or baked:
            raise _MustBeOpaque(n, "part of its work is not seen by the dispatcher")
        silent = not made and not any(isinstance(t, torch.Tensor) for t in pytree.tree_leaves(result))
        if silent and not _harmless(n):
            self._keep_silent(n)
        return result

    def _keep_silent(self, n: fx.Node) -> None:
        """A call that no op stands for stays as it is, if nothing is made of what it gives."""
        if n.users or n.all_input_nodes:
            raise LoweringError(f"{_name(n.target)} leaves no trace")
        with self._set_current_node(n):
            _tracer().create_node(n.op, n.target, n.args, n.kwargs)

    def _constant(self, n: fx.Node) -> Any:
        value = self.fetch_attr(str(n.target))
        tracer = _tracer()
        name = f"constant_{len(self.constants)}"
        self.constants[name] = value
        setattr(tracer.root, name, value)
        if not isinstance(value, torch.Tensor):  # the body of a higher-order op
            self._bodies[id(value)] = tracer.create_proxy("get_attr", name, (), {})
            return value
        fake = _fake(_mode_inside(), value)
        track_tensor_tree(fake, tracer.create_proxy("get_attr", name, (), {}), constant=None, tracer=tracer)
        return fake

    def _mode(self, n: fx.Node) -> Any:
        """A switch of modes is a node of its own, and what is traced after it is traced in that mode."""
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        tracer = _tracer()
        assert callable(n.target)
        with self._set_current_node(n), torch._C.DisableTorchFunction():
            entered = n.all_input_nodes
            made = self._switches[entered[0]] if entered else None
            node = tracer.create_node("call_function", n.target, (made,) if made is not None else args, kwargs)
            self._switches[n] = node
            return n.target(*args, **kwargs)

    def _as_it_is(self, n: fx.Node) -> Any:
        """Keeps Dynamo's node as one node, with proxies for its results."""
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        tracer = _tracer()
        proxies = pytree.tree_map(
            lambda a: self._bodies[id(a)] if id(a) in self._bodies else tracer.unwrap_proxy(a), (args, kwargs)
        )
        proxy = tracer.create_proxy(n.op, n.target, *proxies, name=n.name)
        with disable_proxy_modes_tracing():
            try:
                if _only_known_by_its_result(n.target):
                    raise NotImplementedError("it is traced when it runs, or never")
                result = getattr(super(), n.op)(n.target, args, kwargs)
            except Exception:  # no fake kernel: Dynamo knew what it gives
                result = pytree.tree_map_only(
                    torch.Tensor,
                    lambda t: torch.empty_strided(t.size(), t.stride(), dtype=t.dtype, device=t.device),
                    n.meta["example_value"],
                )
        return track_tensor_tree(result, proxy, constant=None, tracer=tracer)


def _mode_inside() -> FakeTensorMode:
    mode = detect_fake_mode()
    assert mode is not None
    return mode


def _tracer() -> Any:
    mode = get_proxy_mode()
    assert mode is not None
    return mode.tracer


def _after(node: fx.Node) -> list[fx.Node]:
    made = []
    node = node.next
    while node.op != "root":
        made.append(node)
        node = node.next
    return made


def _tracked(tensor: torch.Tensor, tracer: Any) -> bool:
    return get_proxy_slot(tensor, tracer, None) is not None


def _attribute(root: Any, node: fx.Node) -> Any:
    value: Any = root
    for name in str(node.target).split("."):
        value = getattr(value, name, None)
    return value


def _name(target: Any) -> str:
    return str(getattr(target, "__name__", target))


def _only_known_by_its_result(target: Any) -> bool:
    return isinstance(target, torch._ops.HigherOrderOperator) or is_foreign_python(target)


def _functorch(target: Any) -> bool:
    return "functorch" in (getattr(target, "__module__", None) or "")


def _harmless(n: fx.Node) -> bool:
    """Whether a call without tensors among its results may vanish: it is arithmetic of sizes, or a check of them."""
    if n.op == "call_method":
        return True  # x.size(), x.dim(): of a tensor, and no op
    return n.target in PURE_PYTHON or n.target in _CHECKS or n.target is _TELEMETRY


@contextlib.contextmanager
def pinning_no_size(env: ShapeEnv) -> Iterator[None]:
    """Refuses guards that would fix a symbolic size to a number: one program serves many sizes."""
    ask = env._check_frozen  # asked before each new guard

    def asked(expression: Any, value: Any) -> None:
        if _pins(expression, value):
            raise _Pins(f"{expression} would be fixed to {value}")
        ask(expression, value)

    env._check_frozen = asked  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        del env._check_frozen


def _pins(expression: Any, value: Any) -> bool:
    if isinstance(value, sympy.Integer) or type(value) is int:
        return True
    if not isinstance(expression, (sympy.Eq, sympy.Ne)):
        return False
    left, right = expression.lhs, expression.rhs
    symbol_to_number = (left.is_Symbol and right.is_number) or (right.is_Symbol and left.is_number)
    return symbol_to_number and bool(value) == isinstance(expression, sympy.Eq)


def _check(gm: fx.GraphModule, lowered: fx.GraphModule) -> None:
    want, got = (len(g.graph.find_nodes(op="placeholder")) for g in (gm, lowered))
    if want != got:
        raise LoweringError(f"lowering changed the number of inputs from {want} to {got}")
    (output,) = lowered.graph.find_nodes(op="output")
    if any(isinstance(a, torch.Tensor) for a in pytree.tree_leaves(output.args)):
        raise LoweringError("a result is not computed by the graph")
    for node in lowered.graph.find_nodes(op="get_attr"):
        if isinstance(_attribute(lowered, node), FakeTensor):
            raise LoweringError("a value of the trace was taken for a constant")
