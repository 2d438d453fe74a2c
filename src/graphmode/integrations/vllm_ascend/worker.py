"""vllm-ascend's worker, whose full graphs are graphmode's: its model runner names ACLGraphWrapper itself."""

from __future__ import annotations

from vllm_ascend.compilation.acl_graph import ACLGraphWrapper
from vllm_ascend.worker.worker import NPUWorker

from graphmode.integrations.vllm.plugin import log
from graphmode.integrations.vllm_ascend.static_graph import NpuGraphWrapper


class GraphmodeNPUWorker(NPUWorker):  # type: ignore[misc]
    """Wraps the model anew where vllm-ascend has wrapped it."""

    def load_model(self) -> None:
        """The weights, then graphs that hold nothing yet."""
        super().load_model()
        runner = self.model_runner
        theirs = runner.model
        if isinstance(theirs, ACLGraphWrapper) and not isinstance(theirs, NpuGraphWrapper):
            runner.model = NpuGraphWrapper(
                theirs.runnable,
                theirs.vllm_config,
                theirs.runtime_mode,
                theirs.aclgraph_options,
                use_eagle=theirs.use_eagle,
                enable_enpu=theirs.enable_enpu,
            )
        if getattr(runner, "drafter", None) is not None:
            log.info("the draft model's graphs stay vllm-ascend's own")
