"""vLLM's attention on the CPU: its two Python ops per layer become direct calls of the kernels they end in.

What the ops read from vLLM's forward context is resolved once a step: metadata once per cache group, the cache per
layer. A layer that is not known for certain keeps vLLM's own ops, which a replay calls as they are.
"""

from __future__ import annotations

import copy
import operator
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.fx as fx
from torch._library.fake_class_registry import FakeScriptObject
from vllm.distributed.kv_transfer import has_kv_transfer_group
from vllm.forward_context import ForwardContext, get_forward_context, is_forward_context_available
from vllm.v1.attention.backend import AttentionType
from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackendImpl, CPUAttentionMetadata

from graphmode.runtime.outside import How, Operands, Resolver

_ATTENTION = "vllm::unified_attention_with_output"
_UPDATE = "vllm::unified_kv_cache_update"
_METADATA = ("query_start_loc", "seq_lens", "block_table", "scheduler_metadata")


@dataclass
class _Layer:
    """One attention layer of the program."""

    name: str
    attention: fx.Node  # of the program as it came
    update: fx.Node | None  # absent where the layer reads another one's cache


@dataclass
class _Group:
    """Layers that share their metadata and slots, as one cache group does."""

    names: list[str]


class AttentionResolver(Resolver):
    """Resolves the attention layers of one program."""

    def __init__(self, gm: fx.GraphModule, layers: list[_Layer]) -> None:
        self._gm = gm
        self._found = layers
        self._tokens = _where_the_number_of_tokens_is(gm, layers[0].attention)
        self._direct: fx.GraphModule | None = None
        places = {n: i for i, n in enumerate(gm.graph.find_nodes(op="placeholder"))}
        self._names = [(places[n], layer.name) for layer in layers if (n := layer.attention.args[4]) in places]
        self._groups: list[_Group] = []
        self._caches: list[tuple[Any, weakref.ref[torch.Tensor]]] = []  # (vLLM's layer, its cache)

    @property
    def direct(self) -> fx.GraphModule:
        assert self._direct is not None
        return self._direct

    def operands(self, args: Sequence[Any]) -> Operands | How:
        if not is_forward_context_available() or has_kv_transfer_group():
            return How.AS_IT_IS  # a connector waits for each layer's cache, and saves it, in vLLM's op
        context = get_forward_context()
        if context.attn_metadata is None:
            return How.LIVE  # vLLM measures memory, or warms up
        if not isinstance(context.attn_metadata, dict) or not isinstance(context.slot_mapping, dict):
            return How.AS_IT_IS
        if any(_layer_name(args[i]) != name for i, name in self._names):
            return How.AS_IT_IS  # the program serves other layers at this call
        found = self._read(context, args)
        if found is None and self._build(context):
            found = self._read(context, args)
        return How.AS_IT_IS if found is None else found

    def _read(self, context: ForwardContext, args: Sequence[Any]) -> Operands | How | None:
        """The operands; None where layers, caches or groups are others than the direct program's."""
        if self._direct is None:
            return None
        metadata, slots = context.attn_metadata, context.slot_mapping
        tokens = self._tokens if isinstance(self._tokens, int) else self._tokens(args)
        operands = Operands([])
        for group in self._groups:
            shared, slot_mapping = metadata.get(group.names[0]), slots.get(group.names[0])
            if slot_mapping is None or not _serves(shared, tokens):
                return How.AS_IT_IS
            for name in group.names:
                if metadata.get(name) is not shared or slots.get(name) is not slot_mapping:
                    return None
            operands.values.extend(getattr(shared, name) for name in _METADATA)
            operands.values.append(slot_mapping)
            # Each request has one token: a decode step. Prompts are of ever other lengths, and so is what holds one.
            operands.comes_again = operands.comes_again and shared.max_query_len == 1
        for layer, cache in self._caches:
            now = layer.kv_cache
            if now is not cache():
                return None
            operands.values.append(now)
        return operands

    def _build(self, context: ForwardContext) -> bool:
        """Makes the direct program for the layers as they are now; False where none can be direct."""
        metadata, slots = context.attn_metadata, context.slot_mapping
        groups: dict[tuple[int, int], _Group] = {}
        layers, objects, group_of = [], [], {}
        for layer in self._found:
            served = context.no_compile_layers.get(layer.name)
            if not _is_direct(served) or not isinstance(metadata.get(layer.name), CPUAttentionMetadata):
                continue
            key = id(metadata[layer.name]), id(slots.get(layer.name))
            group = groups.setdefault(key, _Group([]))
            group.names.append(layer.name)
            group_of[layer.name] = list(groups).index(key)
            layers.append(layer)
            objects.append(served)
        if not layers:
            return False
        self._groups = list(groups.values())
        self._caches = [(o, weakref.ref(o.kv_cache)) for o in objects]
        self._direct = _direct_program(self._gm, layers, objects, group_of, len(self._groups))
        return True


def resolver_of(gm: fx.GraphModule) -> Resolver | None:
    """The resolver of a program's attention layers; None where it has none."""
    updates = {n: n for n in gm.graph.nodes if _calls(n, _UPDATE)}
    layers = []
    for node in gm.graph.nodes:
        if not _calls(node, _ATTENTION):
            continue
        query, _, _, _, name, *scales = node.args
        dep = node.kwargs.get("kv_cache_dummy_dep", scales[2] if len(scales) > 2 else None)
        scaled = any(s is not None for s in scales[:2]) or any(
            node.kwargs.get(k) is not None for k in ("output_scale", "output_block_scale")
        )
        update = updates.get(dep)
        known = _layer_name(name)
        if scaled or known is None or (update is not None and list(update.users) != [node]):
            continue
        if isinstance(query, fx.Node):
            layers.append(_Layer(known, node, update))
    return AttentionResolver(gm, layers) if layers else None


def _calls(node: fx.Node, name: str) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and str(node.target.name()) == name  # type: ignore[no-untyped-call]


def _layer_name(value: Any) -> str | None:
    if isinstance(value, fx.Node):
        value = value.meta.get("val")
    if isinstance(value, FakeScriptObject):
        value = value.real_obj
    name = getattr(value, "value", value)
    return name if isinstance(name, str) else None


def _where_the_number_of_tokens_is(gm: fx.GraphModule, attention: fx.Node) -> Any:
    """A number, or what reads it from a call's arguments."""
    query = attention.args[0]
    assert isinstance(query, fx.Node)
    tokens = query.meta["val"].shape[0]
    if not isinstance(tokens, torch.SymInt):
        return int(tokens)
    for i, node in enumerate(gm.graph.find_nodes(op="placeholder")):
        value = node.meta.get("val")
        if isinstance(value, torch.SymInt) and value.node.expr == tokens.node.expr:
            return operator.itemgetter(i)
    for i, node in enumerate(gm.graph.find_nodes(op="placeholder")):
        value = node.meta.get("val")
        for dim, size in enumerate(value.shape if isinstance(value, torch.Tensor) else ()):
            if isinstance(size, torch.SymInt) and size.node.expr == tokens.node.expr:
                return lambda args, i=i, dim=dim: args[i].shape[dim]
    return -1  # no call has that many: every one runs as it is


def _serves(metadata: Any, tokens: int) -> bool:
    """Whether the direct calls do what the ops would do with this metadata."""
    return (
        type(metadata) is CPUAttentionMetadata
        and metadata.causal is True
        and metadata.dynamic_causal is None
        and metadata.scheduler_metadata is not None
        and metadata.num_actual_tokens == tokens
    )


def _is_direct(layer: Any) -> bool:
    """Whether all that vLLM's ops do for a layer is to call the two kernels."""
    impl: Any = getattr(layer, "impl", None)
    return (
        type(impl) is CPUAttentionBackendImpl
        and impl.attn_type == AttentionType.DECODER
        and not impl.is_fp8_kv_cache
        and (impl.sinks is None or impl.sinks.dtype in (torch.bfloat16, torch.float32))
        and isinstance(layer.kv_cache, torch.Tensor)
        and layer.kv_cache.dim() == 4
        and isinstance(getattr(layer, "isa", None), str)
    )


def _direct_program(
    gm: fx.GraphModule, layers: list[_Layer], objects: list[Any], group_of: dict[str, int], groups: int
) -> fx.GraphModule:
    copied = fx.GraphModule(gm, copy.deepcopy(gm.graph))
    graph = copied.graph
    twin = dict(zip((n.name for n in gm.graph.nodes), graph.nodes, strict=True))
    last = graph.find_nodes(op="placeholder")[-1]
    shared: list[dict[str, fx.Node]] = []
    for i in range(groups):
        shared.append({})
        for name in (*_METADATA, "slot_mapping"):
            last = shared[i][name] = _placeholder(graph, last, f"{name}_{i}")
    caches = []
    for i in range(len(layers)):
        last = _placeholder(graph, last, f"kv_cache_{i}")
        caches.append(last)
    for i, (layer, served) in enumerate(zip(layers, objects, strict=True)):
        attention = twin[layer.attention.name]
        update = None if layer.update is None else twin[layer.update.name]
        metadata = shared[group_of[layer.name]]
        impl = served.impl
        with graph.inserting_before(update or attention):
            key_cache, value_cache = _halves(graph, caches[i], served.kv_cache)
            scales = (served._k_scale_float, served._v_scale_float, impl.kv_cache_dtype)
            if update is not None:
                key, value = update.args[:2]
                direct = graph.call_function(
                    torch.ops._C.cpu_attn_reshape_and_cache.default,
                    (key, value, key_cache, value_cache, metadata["slot_mapping"], served.isa, *scales),
                )
                direct.meta = _line(update)
        with graph.inserting_before(attention):
            query, _, _, output = attention.args[:4]
            direct = graph.call_function(
                torch.ops._C.cpu_attention_with_kv_cache.default,
                (
                    query,
                    key_cache,
                    value_cache,
                    output,
                    metadata["query_start_loc"],
                    metadata["seq_lens"],
                    impl.scale,
                    True,
                    _constant(copied, f"alibi_slopes_{i}", impl.alibi_slopes),
                    impl.sliding_window,
                    metadata["block_table"],
                    impl.logits_soft_cap,
                    metadata["scheduler_metadata"],
                    _constant(copied, f"sinks_{i}", impl.sinks),
                    None,
                    *scales,
                ),
            )
            direct.meta = _line(attention)
        graph.erase_node(attention)
        if update is not None:
            graph.erase_node(update)
    graph.lint()
    copied.recompile()
    return copied


def _placeholder(graph: fx.Graph, after: fx.Node, name: str) -> fx.Node:
    with graph.inserting_after(after):
        node = graph.placeholder(name)
    node.meta["val"] = torch.empty(0, device="meta")  # a tensor; of what size, only the kernels ask
    return node


def _halves(graph: fx.Graph, cache: fx.Node, tensor: torch.Tensor) -> tuple[fx.Node, fx.Node]:
    """Keys and values of a cache (blocks, heads, block size, 2 * head size), as vLLM's CPU backend cuts it."""
    blocks, heads, size, _ = tensor.shape
    whole = graph.call_function(torch.ops.aten.view.default, (cache, [blocks, heads, 2 * size, -1]))
    halves = graph.call_function(torch.ops.aten.split.Tensor, (whole, size, 2))
    return graph.call_function(operator.getitem, (halves, 0)), graph.call_function(operator.getitem, (halves, 1))


def _constant(gm: fx.GraphModule, name: str, value: torch.Tensor | None) -> fx.Node | None:
    if value is None:
        return None
    setattr(gm, name, value)
    return gm.graph.get_attr(name)


def _line(node: fx.Node) -> dict[str, Any]:
    return {k: v for k, v in node.meta.items() if k != "val"}
