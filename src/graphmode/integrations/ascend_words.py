"""What becomes here of the options of torch_npu's own backends: one table, from which the docs are made as well.

Names and values are those of torch_npu 2.13.0, which is not imported: a test walks its two `CompilerConfig` classes.
A name without a dot is npugraph_ex's; one with dots is where it stands in torchair's `CompilerConfig`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Takes = tuple[Any, ...] | range | type[str] | type[list[int]] | type[dict[str, Any]] | Literal["a function"] | None


@dataclass(frozen=True)
class Word:
    """One option of theirs, under each of its names."""

    names: tuple[str, ...]
    takes: Takes  # the values, or their kind; None: anything
    default: Any  # theirs: it asks for nothing
    says: str  # what is so here, or why it is refused and what to do
    option: str | None = None  # ours that it becomes
    values: Mapping[Any, Any] | None = None  # ours, by theirs that asks for something; None: as it is
    refused: bool = False  # any value but the default


_SWITCH = (True, False)
_COUNT = range(1, 2**63)
_INDEX = range(0, 2**63)
_ACL = "experimental_config.aclgraph."

_IN_PLACE = "in place whatever is given: programs are never made functional, so no copy is there to be undone."
_NO_OPS = "always so: calls that give back their argument are dropped where aliasing and bits stay what they are."
_ONE_POOL = "always so: all graphs of a device share a pool. Results are copied out of it, so no graph can spoil them."
_COPIED_OUT = "always so: results are yours, and no later call changes them."
_FROZEN = "always so: weights are read where they lie. One that moved is seen, and captured anew."
_FUSION = '`False` is `fuel=0`: no calls become one. Fusions onto NPU operators come with `mode="max-autotune"`.'
_ADD_A_PASS = (
    "it is written for torch_npu's functional graph, and graphmode's program keeps mutation in place. Add a pass of "
    "graphmode's instead (the page *Add a pass*)."
)
_NO_DUMP = (
    "a graph's tensors are not written to files. Results are eager's bit for bit: dump in eager, or compare with "
    "`verify=True` where the device can."
)
_NO_LOG = "graphmode logs no values. Results are eager's bit for bit: look at them in eager."
_NO_STATIC_KERNELS = (
    "graphmode compiles no kernels for fixed shapes: a graph replays those that eager chose. Leave it out."
)
_NO_SUPER_KERNELS = "graphmode merges no tasks into super kernels. Leave it out."
_NO_DEADLOCK_CHECK = 'a graph\'s tasks are not analysed here. Check such a model once with `backend="npugraph_ex"`.'
_OWN_POOL = "graphs here share a pool of their own and take no other. Leave it out; `max_bytes` caps it."
_GE = (
    'an option of GE, which compiles nothing here. Leave it out, or keep GE: `engine="torchair"` with your '
    "`CompilerConfig` as `compiler_config`."
)
_EXPORT = "graphmode exports nothing: call `torchair.dynamo_export`, as before."
_WITH = "read only with `{}`, which is refused: alone it does nothing."
_SEEN_IN_EXPLAIN = "no such file is written: `graphmode.explain(model, *inputs)` says what was captured, with each {}."


def _so(names: str, takes: Takes, default: Any, says: str) -> Word:
    return Word(tuple(names.split()), takes, default, says)


def _is(
    names: str, takes: Takes, default: Any, option: str, says: str, values: Mapping[Any, Any] | None = None
) -> Word:
    return Word(tuple(names.split()), takes, default, says, option, values)


def _no(names: str, takes: Takes, default: Any, says: str) -> Word:
    return Word(tuple(names.split()), takes, default, says, refused=True)


_MODES = ("max-autotune", "reduce-overhead", "npugraph_ex")

WORDS = (
    # --- npugraph_ex's, and the same by torchair's paths ---------------------------------------------------------
    _so(
        "mode",
        _MODES,
        "max-autotune",  # torchair's; npugraph_ex's has one value
        "`npugraph_ex`, and `reduce-overhead` in a `CompilerConfig`, are what graphmode does: it captures the device's "
        'graphs. torchair\'s `max-autotune`, its default, asks for nothing: GE is `engine="torchair"`.',
    ),
    _is(
        "force_eager debug.run_eagerly",
        _SWITCH,
        False,
        "mode",
        '`True` is `mode="eager"`: the program runs, nothing is captured.',
        {True: "eager"},
    ),
    _is(
        "capture_limit debug.aclgraph.static_capture_size_limit",
        _COUNT,
        64,
        "max_graphs",
        "`max_graphs`. Beyond it the least recently used graph goes; nothing is eager for ever.",
    ),
    _so(
        "clone_input debug.aclgraph.clone_input",
        _SWITCH,
        True,
        "found out: an input that lies where it lay is read in place, one that moves is copied in.",
    ),
    _so("clone_output debug.aclgraph.enable_output_clone", _SWITCH, False, _COPIED_OUT),
    _so("frozen_parameter experimental_config.frozen_parameter", _SWITCH, False, _FROZEN),
    _so("inplace_pass", _SWITCH, True, _IN_PLACE),
    _so("input_inplace_pass experimental_config.keep_inference_input_mutations", _SWITCH, True, _IN_PLACE),
    _so("debug.aclgraph.disable_reinplace_inplaceable_ops_pass", _SWITCH, False, _IN_PLACE),
    _so("debug.aclgraph.disable_reinplace_input_mutated_ops_pass", _SWITCH, False, _IN_PLACE),
    _so("remove_noop_ops experimental_config.remove_noop_ops", _SWITCH, True, _NO_OPS),
    _so(
        "remove_cat_ops debug.aclgraph.remove_cat_ops",
        _SWITCH,
        True,
        "no cat is written around here: each runs as in eager, and only a cat of one tensor is dropped.",
    ),
    _is(
        "pattern_fusion_pass experimental_config.pattern_fusion_pass",
        _SWITCH,
        True,
        "fuel",
        _FUSION,
        {False: 0},
    ),
    _so("reuse_graph_pool_in_same_fx", _SWITCH, True, _ONE_POOL),
    _so("debug.aclgraph.disable_mempool_reuse_in_same_fx", _SWITCH, False, _ONE_POOL),
    _no("use_graph_pool aclgraph_config.use_custom_pool", None, None, _OWN_POOL),
    _so(
        "capture_error_mode",
        ("global", "thread_local", "relaxed"),
        "global",
        "always thread_local: other threads go on. What a capture can't hold runs live, between two graphs.",
    ),
    _no(
        "force_recapture",
        _SWITCH,
        False,
        'graphmode captures anew when something moved, and no more often. To run without graphs: `mode="eager"`; to '
        "drop them once: `graphmode.reset()`.",
    ),
    _so(
        "unsafe_skip_npugraph_capture_validation",
        _SWITCH,
        False,
        "never skipped: the check is native, and asks nothing of the device.",
    ),
    _no("static_kernel_compile " + _ACL + "_aclnn_static_shape_kernel", _SWITCH, False, _NO_STATIC_KERNELS),
    _so("disable_static_kernel_compile_cache", _SWITCH, False, _WITH.format("static_kernel_compile")),
    _so(
        "_vllm_aclnn_static_kernel_sym_index " + _ACL + "_aclnn_static_shape_kernel_sym_index",
        _INDEX,
        0,
        _WITH.format("static_kernel_compile"),
    ),
    _so(
        "_vllm_aclnn_static_kernel_sym_range " + _ACL + "_aclnn_static_shape_kernel_sym_value_range",
        list,
        None,
        _WITH.format("static_kernel_compile"),
    ),
    _so(_ACL + "_aclnn_static_shape_kernel_build_dir", str, None, _WITH.format("_aclnn_static_shape_kernel")),
    _no("super_kernel_optimize " + _ACL + "_super_kernel_optimize", _SWITCH, False, _NO_SUPER_KERNELS),
    _so(
        "super_kernel_optimize_options " + _ACL + "_super_kernel_optimize_options",
        dict,
        None,
        _WITH.format("super_kernel_optimize"),
    ),
    _so(
        "super_kernel_debug_options " + _ACL + "_super_kernel_debug_options",
        dict,
        None,
        _WITH.format("super_kernel_optimize"),
    ),
    _no("deadlock_check debug.deadlock_check", _SWITCH, False, _NO_DEADLOCK_CHECK),
    _no("post_grad_custom_pre_pass", "a function", None, _ADD_A_PASS),
    _no("post_grad_custom_post_pass", "a function", None, _ADD_A_PASS),
    _no("dump_tensor_data dump_config.enable_dump", _SWITCH, False, _NO_DUMP),
    _so(
        "data_dump_stage dump_config.data_dump_stage",
        ("original", "optimized"),
        "optimized",
        _WITH.format("dump_tensor_data"),
    ),
    _so("data_dump_dir dump_config.dump_path", str, "./", _WITH.format("dump_tensor_data")),
    _no("record_statistics_debug_info", _SWITCH, False, _NO_LOG),
    # --- torchair's alone: debugging -----------------------------------------------------------------------------
    _so("dump_config.dump_mode", ("input", "output", "all"), "all", _WITH.format("dump_config.enable_dump")),
    _so("dump_config.quant_dumpable", _SWITCH, False, _WITH.format("dump_config.enable_dump")),
    _so("dump_config.dump_step", str, "", _WITH.format("dump_config.enable_dump")),
    _so("dump_config.dump_layer", str, "", _WITH.format("dump_config.enable_dump")),
    _so("dump_config.dump_data", ("tensor", "stats"), "tensor", _WITH.format("dump_config.enable_dump")),
    _no("dump_config.dump_config_path", str, None, _NO_DUMP),
    _no("debug.data_dump.type", ("npy",), None, _NO_DUMP),
    _so("debug.data_dump.path", str, None, _WITH.format("debug.data_dump.type")),
    _so("debug.data_dump.filter", None, None, _WITH.format("debug.data_dump.type")),
    _no("debug.graph_dump.type", ("txt", "pbtxt", "py"), None, _SEEN_IN_EXPLAIN.format("reason and your line")),
    _so("debug.graph_dump.path", str, None, _WITH.format("debug.graph_dump.type")),
    _no("debug.fx_summary.type", ("csv",), None, _SEEN_IN_EXPLAIN.format("region's calls")),
    _so("debug.fx_summary._path", str, None, _WITH.format("debug.fx_summary.type")),
    _so("debug.fx_summary.skip_compile", _SWITCH, True, _WITH.format("debug.fx_summary.type")),
    # --- torchair's alone: export --------------------------------------------------------------------------------
    _no("export.export_mode", _SWITCH, False, _EXPORT),
    _so("export.export_path_dir", str, "./", _WITH.format("export.export_mode")),
    _so("export.export_name", str, None, _WITH.format("export.export_mode")),
    _so("export.weight_name", None, None, _WITH.format("export.export_mode")),
    _so("export.inputs_name", None, None, _WITH.format("export.export_mode")),
    _so("export.experimental.enable_record_nn_module_stack", _SWITCH, False, _WITH.format("export.export_mode")),
    _so("export.experimental.auto_atc_config_generated", _SWITCH, False, _WITH.format("export.export_mode")),
    _no("export.experimental.enable_lite_export", _SWITCH, False, _EXPORT),
    # --- torchair's alone: GE ------------------------------------------------------------------------------------
    _no("aoe_config.aoe_mode", ("2",), None, _GE),
    _so("aoe_config.work_path", str, "./", _WITH.format("aoe_config.aoe_mode")),
    _so("aoe_config.aoe_config_file", str, None, _WITH.format("aoe_config.aoe_mode")),
    _no("fusion_config.fusion_switch_file", str, None, _GE),
    _so(
        "inference_config.dynamic_gears_merge_policy",
        ("zip", "product"),
        "zip",
        "there are no gears to merge: each size that comes has a graph of its own, up to `max_graphs`.",
    ),
    _no("experimental_config.cc_parallel_enable", _SWITCH, False, _GE),
    _no("experimental_config.memory_efficiency", _SWITCH, False, _GE),
    _no("experimental_config.static_model_ops_lower_limit", range(-1, 2**63), None, _GE),
    _so("experimental_config.jit_compile", ("auto",), "auto", "it takes one value, which is torch_npu's own default."),
    _no(
        "experimental_config.npu_fx_pass",
        _SWITCH,
        False,
        "it rewrites the joint graph of a training step, which runs under autograd here, outside graphs. Leave it out.",
    ),
    _no(
        "experimental_config.aot_config_enable_joint_graph",
        _SWITCH,
        False,
        "forward and backward in one graph: a call that needs gradients runs under autograd here. Leave it out.",
    ),
    _so(
        "experimental_config.aot_config_output_loss_index",
        None,
        0,
        _WITH.format("experimental_config.aot_config_enable_joint_graph"),
    ),
    _no("experimental_config.topology_sorting_strategy", ("BFS", "DFS", "RDFS", "StableRDFS"), "DFS", _GE),
    _so("experimental_config.enable_ref_data", _SWITCH, False, _IN_PLACE),
    _so("experimental_config.enable_view_optimize", _SWITCH, True, "always so: views stay the views that eager makes."),
    _no("experimental_config.tiling_schedule_optimize", _SWITCH, False, _GE),
    _so(
        "ge_config.enable_single_stream",
        _SWITCH,
        False,
        "always so: a graph runs its calls in order, on one stream.",
    ),
    _no("ge_config.oo_level", ("O1", "O3"), "O3", _GE),
    _no("ge_config.oo_constant_folding", _SWITCH, None, _GE),
    _no("ge_config.oo_dead_code_elimination", _SWITCH, None, _GE),
    _no("ge_config.export_compile_stat", ("0", "1", "2"), "2", _GE),
    _no("ge_config.aicore_num", None, None, _GE),
    _no("ge_config.optimization_switch", None, None, _GE),
    _no("ge_config.multistream_parallel_mode", None, None, _GE),
)
