// From a tape to a plan: kinds, lifetimes, offsets in the arena, and what a replay must check of its inputs.
#include <ATen/Parallel.h>

#include <algorithm>

#include "executable.h"

namespace graphmode {

namespace {
std::pair<int64_t, int64_t> extent_bytes(const Value& v) {
  int64_t last = 0;
  for (size_t d = 0; d < v.sizes.size(); ++d) {
    if (v.sizes[d] == 0) {
      return {v.offset, v.offset};
    }
    last += (v.sizes[d] - 1) * v.strides[d];
  }
  const auto item = static_cast<int64_t>(v.dtype.itemsize());
  return {v.offset * item, (v.offset + last + 1) * item};
}
}  // namespace

std::shared_ptr<Plan> make_plan(std::shared_ptr<Tape> tape, std::vector<OutputRef> outputs, int fuel) {
  auto plan = std::make_shared<Plan>();
  auto& t = *tape;
  const int end = static_cast<int>(t.nodes.size());
  for (const auto& out : outputs) {
    if (out.value >= 0) {
      auto& b = t.buffers[t.values[out.value].buffer];
      b.last = end;
      if (b.kind == BufferKind::Temp) {
        b.kind = BufferKind::Output;
        if (!b.written && b.nbytes > 0 && t.refusal.empty()) {
          t.refusal = "an output is memory that no recorded call has written";
        }
      }
    }
  }
  std::vector<bool> inside(t.buffers.size(), false);
  if (t.refusal.empty()) {
    plan->chains = find_row_chains(t, fuel);
  }
  for (const auto& chain : plan->chains) {
    plan->fused += chain.end - chain.begin + 1;
    for (int b : chain.inside) {
      inside[b] = true;
    }
    for (int v : chain.places) {  // a row is written while others have not been read
      auto& b = t.buffers[t.values[v].buffer];
      b.first = std::min(b.first, chain.begin);
      b.last = std::max(b.last, chain.end);
    }
  }
  for (auto& b : t.buffers) {  // what the last step of a chain is to let go
    for (const auto& chain : plan->chains) {
      if (b.adopted && chain.begin <= b.last && b.last < chain.end) {
        b.last = chain.end;
      }
    }
  }
  plan->offsets.assign(t.buffers.size(), -1);
  std::vector<Lifetime> lifetimes;
  std::vector<int> which;
  for (size_t i = 0; i < t.buffers.size(); ++i) {
    auto& b = t.buffers[i];
    if (b.kind == BufferKind::Temp && !b.adopted && !inside[i]) {
      lifetimes.push_back({static_cast<int64_t>(b.nbytes), b.first, b.last});
      which.push_back(static_cast<int>(i));
    } else if (b.kind == BufferKind::Output) {
      plan->output_bytes += b.nbytes;
    } else if (b.kind == BufferKind::Fixed) {
      plan->fixed_bytes += b.nbytes;
    }
  }
  const auto placement = place(lifetimes);
  for (size_t i = 0; i < which.size(); ++i) {
    plan->offsets[which[i]] = placement.offsets[i];
  }
  plan->arena_bytes = static_cast<size_t>(placement.total);
  plan->input_written.assign(t.inputs.size(), false);
  plan->input_extent.assign(t.inputs.size(), {0, 0});
  plan->input_align.assign(t.inputs.size(), 1);
  plan->input_absolute.assign(t.inputs.size(), false);
  plan->input_given.assign(t.inputs.size(), false);
  for (const auto& [impl, i] : t.given) {
    plan->input_given[static_cast<size_t>(i)] = true;
  }
  std::vector<int> first_write(t.buffers.size(), end), first_write_given(t.inputs.size(), end);
  for (int n = end - 1; n >= 0; --n) {
    const auto& node = t.nodes[n];
    for (int b : node.written_buffers) {
      first_write[b] = n;
    }
    for (const auto& ref : node.in) {
      if (ref.given >= 0 && node.writes[ref.arg]) {
        first_write_given[ref.given] = n;
      }
    }
    switch (node.tier) {
      case Tier::Held:
        ++plan->held;
        break;
      case Tier::Out:
        ++plan->out;
        break;
      case Tier::Boxed:
        ++plan->boxed;
    }
  }
  for (size_t i = 0; i < t.inputs.size(); ++i) {
    if (t.inputs[i] < 0) {
      if (first_write_given[i] < end) {
        plan->mutated_inputs.push_back(static_cast<int>(i));
        plan->mutated_from.push_back(first_write_given[i]);
      }
      continue;
    }
    const auto& v = t.values[t.inputs[i]];
    if (first_write[v.buffer] < end) {
      plan->mutated_inputs.push_back(static_cast<int>(i));
      plan->mutated_from.push_back(first_write[v.buffer]);
      plan->input_written[i] = true;
    }
    plan->input_extent[i] = extent_bytes(v);
  }
  for (const auto& v : t.values) {
    plan->splits_work = plan->splits_work || items(v) >= at::internal::GRAIN_SIZE;
    const auto& b = t.buffers[v.buffer];
    if (b.kind == BufferKind::Input) {
      auto [lo, hi] = extent_bytes(v);
      auto& e = plan->input_extent[b.input];
      e = {std::min(e.first, lo), std::max(e.second, hi)};
      plan->input_align[b.input] = std::max<int64_t>(plan->input_align[b.input], v.dtype.itemsize());
      plan->input_absolute[b.input] = b.absolute;
    }
  }
  for (auto& m : t.met) {
    plan->met_written_from.push_back(first_write[t.values[m.value].buffer]);
  }
  for (const auto& chain : plan->chains) {
    for (int n = chain.begin; n <= chain.end; ++n) {
      --(t.nodes[n].tier == Tier::Held ? plan->held : plan->out);
    }
  }
  plan->outputs = std::move(outputs);
  plan->tape = std::move(tape);
  return plan;
}

InputUse Executable::use(size_t index, const at::Tensor& t) const {
  InputUse use;
  const auto& plan = *plan_;
  const auto& tape = *plan.tape;
  use.given = plan.input_given[index];
  use.written = plan.input_written[index];
  if (tape.inputs[index] < 0) {
    return use;
  }
  const auto& v = tape.values[tape.inputs[index]];
  const auto& owner = tape.buffers[v.buffer];
  if (owner.input != static_cast<int>(index)) {
    use.alias_of = owner.input;
    return use;
  }
  const auto item = static_cast<int64_t>(t.itemsize());
  const auto [lo, hi] = plan.input_extent[index];
  use.lo = lo - v.offset * item;
  use.hi = hi - v.offset * item;
  int64_t last = 0;
  for (size_t d = 0; d < v.sizes.size(); ++d) {
    last += v.sizes[d] == 0 ? 0 : (v.sizes[d] - 1) * v.strides[d];
  }
  // looks outside its own extent: as_strided, or an alias beside it. An empty tensor has none to look outside of.
  const bool outside = t.numel() != 0 && (use.lo < 0 || use.hi > (last + 1) * item);
  use.absolute = plan.input_absolute[index] || outside;
  use.align = plan.input_align[index];
  use.offset = v.offset;
  use.needs = hi;
  return use;
}

}  // namespace graphmode
