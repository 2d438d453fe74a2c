"""graphmode's static-graph wrapper in the place of vllm-ascend's ACLGraphWrapper.

Owns what only vllm-ascend's graphs need: that attention's lengths are told to a replay before it is launched, and where
they can't be, vllm-ascend's own way: the flag under which its attention records what is updated after the launch, and
that no update reaches a graph that did not run. The rest is the wrapper of any accelerator.
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Callable, Hashable, Iterator
from typing import Any, ClassVar

import torch
import torch_npu
from vllm.compilation.cuda_graph import CUDAGraphOptions
from vllm.config import CUDAGraphMode, VllmConfig
from vllm.forward_context import get_forward_context
from vllm_ascend.ascend_forward_context import _EXTRA_CTX
from vllm_ascend.compilation import acl_graph

from graphmode.devices.adapter import DeviceGraph
from graphmode.errors import CaptureError, MemoryCapError, first_line
from graphmode.integrations.vllm.places import Place
from graphmode.integrations.vllm.plugin import log
from graphmode.integrations.vllm.static_graph import Runnable, StaticGraphs, StaticGraphWrapper
from graphmode.integrations.vllm_ascend.lengths import Lengths, NotTold, Told
from graphmode.integrations.vllm_ascend.updates import Updates


class NpuGraphWrapper(StaticGraphWrapper, acl_graph.ACLGraphWrapper):  # type: ignore[misc]
    """Also an ACLGraphWrapper, since vllm-ascend asks for that class: to find the model in it, and before it sleeps.

    Args:
        use_eagle, enable_enpu: as vllm-ascend's wrapper has them; they say when a replay must wait for the last one.
    """

    def __init__(
        self,
        runnable: Runnable,
        vllm_config: VllmConfig,
        runtime_mode: CUDAGraphMode,
        cudagraph_options: CUDAGraphOptions | None = None,
        *,
        use_eagle: bool = False,
        enable_enpu: bool = False,
    ) -> None:
        self.use_eagle = use_eagle
        self.enable_enpu = enable_enpu
        self.aclgraph_options = cudagraph_options or CUDAGraphOptions()
        StaticGraphWrapper.__init__(self, runnable, vllm_config, runtime_mode, cudagraph_options)
        self.concrete_aclgraph_entries = _Entries(self._graphs)
        acl_graph._acl_graph_wrappers.add(self)

    def _make_graphs(self) -> NpuGraphs:
        return NpuGraphs(self)


class _Entries:
    """What vllm-ascend clears when it goes to sleep."""

    def __init__(self, graphs: StaticGraphs) -> None:
        self._graphs = graphs

    def clear(self) -> None:
        """Drops every graph; what captured them is captured anew on waking up."""
        self._graphs.clear()

    def __len__(self) -> int:
        return len(self._graphs.graphs)


class NpuGraphs(StaticGraphs):
    """The graphs of one wrapper."""

    _pieces: ClassVar[weakref.WeakSet[NpuGraphs]] = weakref.WeakSet()
    _full: ClassVar[tuple[str, str | None] | None] = None  # why no further size is captured in pieces

    def __init__(self, wrapper: NpuGraphWrapper) -> None:
        super().__init__(wrapper.runnable, wrapper.vllm_config, wrapper.cudagraph_options)
        self._whole = wrapper.runtime_mode == CUDAGraphMode.FULL
        self._use_eagle, self._enable_enpu = wrapper.use_eagle, wrapper.enable_enpu
        self._updates = Updates()
        self._told: dict[Hashable, Told] = {}
        # Of a speculated step vllm-ascend computes lengths where it updates them, and ENPU has an order of its own.
        self._tells = self._whole and not self._enable_enpu and wrapper.vllm_config.speculative_config is None
        self._lengths: Lengths | None = None  # of the attempt that is open
        if not self._whole:
            NpuGraphs._pieces.add(self)

    def _weak_references(self) -> Callable[[torch.Tensor], torch.Tensor]:
        made: Callable[[torch.Tensor], torch.Tensor] = torch_npu._C._weak_ref_tensor
        return made

    def _live(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self._whole:  # the model runner updates the graph of a step that has this mode: there is none to update
            get_forward_context().cudagraph_runtime_mode = CUDAGraphMode.NONE
        return super()._live(args, kwargs)

    def _inside_a_capture(self) -> bool:
        return self._device.capturing_thread == threading.get_ident()  # without asking the runtime at each replay

    # --- attention's lengths ------------------------------------------------------------------------------------

    def _capture(
        self, key: Hashable, place: Place, spot: bytes | None, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if self._tells:
            try:
                return super()._capture(key, place, spot, args, kwargs)
            except Exception as error:  # whatever attention raises that was not made to be captured so
                if self._lengths is None:
                    raise
                self._left_to_vllm_ascend(key, error)
            finally:
                self._lengths = None
            tells, self._tells = self._tells, False
            try:
                return super()._capture(key, place, spot, args, kwargs)
            finally:
                self._tells = tells
        return super()._capture(key, place, spot, args, kwargs)

    def _left_to_vllm_ascend(self, key: Hashable, error: Exception) -> None:
        this_size = isinstance(error, NotTold) and error.this_size
        self._tells = this_size
        why = str(error) if isinstance(error, NotTold) else f"{type(error).__name__}: {first_line(error)}"
        which = f" of {getattr(key, 'num_tokens', key)} tokens" if this_size else ""
        self.counters.note(f"attention's lengths{which} are left to vllm-ascend: {why}")

    def _refusal(self, graph: DeviceGraph, error: BaseException, recorded: bool) -> CaptureError | None:
        refused = super()._refusal(graph, error, recorded)
        if refused is not None and (refused.for_want_of_room or isinstance(refused, MemoryCapError)):
            self._lengths = None  # there is no room for the other attempt either
        return refused if self._lengths is None else None  # None: `_capture` makes the other one

    @contextlib.contextmanager
    def _recording(self, key: Hashable, graph: DeviceGraph) -> Iterator[None]:
        context = get_forward_context()
        before = dict(vars(context))
        try:
            if self._tells:
                self._lengths = Lengths(graph, context.attn_metadata, self._device.capabilities.updates)
                if self._lengths.why_not is not None:
                    raise self._lengths.why_not
                with self._lengths.of(context.no_compile_layers.values()):
                    yield
                return
            context.capturing = True  # attention records a group of tasks that its update replaces
            with self._updates.recorded(key):
                yield
        finally:
            context.capturing = False  # so that the update after this call reaches the first replay
            if self._whole:  # models count their layers in it, and this one may run again
                vars(context).clear()
                vars(context).update(before)

    def _captured(self, key: Hashable) -> None:
        if self._lengths is not None:
            self._told[key] = self._lengths.told(get_forward_context().attn_metadata, self.counters)
            self._lengths = None

    def _gone(self, key: Hashable) -> None:
        self._updates.forget(key)
        self._told.pop(key, None)

    def _before_replay(self, key: Hashable) -> str | None:
        why_not = super()._before_replay(key)
        told = self._told.get(key)
        if told is not None:
            return why_not or told.why_not(get_forward_context().attn_metadata)
        if self._whole and not self._enable_enpu and not (self._use_eagle and _EXTRA_CTX.is_draft_model):
            # The update of this step's attention must find the last replay over: it changes that graph's tasks.
            assert self._device.turn is not None
            self._device.turn.synchronize()
        return why_not

    def _launch(self, key: Hashable, graph: DeviceGraph) -> None:
        told = self._told.get(key)
        if told is None:
            super()._launch(key, graph)
            return
        told.launch()
        get_forward_context().cudagraph_runtime_mode = CUDAGraphMode.NONE  # the model runner has nothing to update

    # --- sizes in pieces ----------------------------------------------------------------------------------------

    def _why_not_now(self, key: Hashable) -> str | None:
        if not self._whole and NpuGraphs._full is not None:
            return NpuGraphs._full[0]
        return super()._why_not_now(key)

    def _refuse(self, key: Hashable, why: CaptureError) -> None:
        super()._refuse(key, why)
        if self._whole or not why.for_want_of_room:
            return
        # A size that has graphs for some of its pieces holds room that whole graphs can use; none of the next fits.
        NpuGraphs._full = why.reason, why.line
        log.warning("no graphs in pieces of %s and of the sizes after it: %s", key, why.reason)
        for pieces in NpuGraphs._pieces:
            pieces.drop(key)
            pieces.refused[key] = NpuGraphs._full

    def drop(self, key: Hashable) -> None:
        """The graph of one size, where there is one."""
        with self._lock:
            self._drop(key)

    def clear(self) -> None:
        """Drops every graph and its memory."""
        super().clear()
        if not self._whole:
            NpuGraphs._full = None
