#include "row_runs.h"

#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <limits>
#include <sstream>

#include "mode.h"
#include "op_kinds.h"

namespace graphmode {

namespace {

constexpr size_t kLayouts = 32;  // of inputs, that a run remembers

bool copies(const std::string& name) {
  return name == "aten::to.dtype" || name == "aten::_to_copy" || name == "aten::clone";
}

// A call, or a kernel for some; and the places that nobody reads after it.
struct Piece {
  int call = -1;
  std::shared_ptr<const RowProgram> program;
  std::vector<int> places;  // one per place of the program
  std::vector<int> drops;
};

}  // namespace

Layout::Layout(const at::Tensor& t)
    : sizes(t.sizes().vec()), strides(t.strides().vec()), dtype(t.dtype()), keys(t.key_set()) {}

bool Layout::is_of(const at::Tensor& t) const {
  return t.dtype() == dtype && t.key_set() == keys && t.sizes() == c10::IntArrayRef(sizes) &&
         t.strides() == c10::IntArrayRef(strides);
}

Seen::Seen(const at::Tensor& t)
    : tensor(c10::intrusive_ptr<c10::TensorImpl>::reclaim_copy(t.unsafeGetTensorImpl())),
      storage(c10::intrusive_ptr<c10::StorageImpl>()) {
  if (is_plain(t)) {
    layout.emplace(t);
    plain = plain_keys(t);
    storage = c10::weak_intrusive_ptr<c10::StorageImpl>(
        c10::intrusive_ptr<c10::StorageImpl>::reclaim_copy(t.storage().unsafeGetStorageImpl()));
  }
}

struct RowRun::Learnt {
  std::vector<Layout> inputs;
  Mode mode;
  std::unordered_map<int, Layout> made;  // by place: what kernels store
  std::vector<Piece> pieces;             // none: call by call
  std::vector<int> same_as;              // by place: itself, or the place whose tensor a call hands on
  int fused = 0;                         // calls
};

namespace {

// A tape of the run, as a capture would have recorded it. Values are the run's places.
class Writer {
 public:
  Writer(size_t inputs, const std::vector<RunCall>& calls, const std::vector<Seen>& places)
      : inputs_(inputs), calls_(calls), places_(places) {}

  bool write() {
    for (size_t p = 0; p < places_.size(); ++p) {
      const auto& seen = places_[p];
      if (!seen.layout) {
        return false;
      }
      same_as.push_back(static_cast<int>(p));
      tape.values.push_back(
          {static_cast<int>(p), 0, seen.layout->sizes, seen.layout->strides, seen.layout->dtype, seen.plain});
      auto& b = tape.buffers.emplace_back(nullptr);
      b.kind = BufferKind::Input;
    }
    for (size_t c = 0; c < calls_.size(); ++c) {
      if (!write_call(c)) {
        return false;
      }
    }
    for (size_t c = 0; c < calls_.size(); ++c) {
      if (calls_[c].kept) {
        auto& b = tape.buffers[same_as[inputs_ + c]];
        b.kind = b.kind == BufferKind::Temp ? BufferKind::Output : b.kind;
      }
    }
    return true;
  }

  Tape tape;
  std::vector<int> call_of;  // by node
  std::vector<int> same_as;

 private:
  bool write_call(size_t c) {
    const auto& call = calls_[c];
    const int out = static_cast<int>(inputs_ + c);
    const int root = call.tensors.size() == 1 ? same_as[call.tensors[0].second] : -1;
    if (root >= 0 && places_[root].tensor == places_[out].tensor) {
      same_as[out] = root;  // as a copy to a dtype that it has
      return true;
    }
    for (int p = 0; p < out; ++p) {
      if (places_[p].storage == places_[out].storage) {
        return false;
      }
    }
    Node node{call.op};
    node.tier = Tier::Held;
    const int index = static_cast<int>(tape.nodes.size());
    if (copies(full_name(call.op))) {
      node.op = c10::Dispatcher::singleton().findSchemaOrThrow("aten::copy_", "");
      node.args = {c10::IValue(), c10::IValue(), false};
      node.in = {TensorRef{0, -1, out}, TensorRef{1, -1, same_as[call.tensors[0].second]}};
    } else {
      node.args = call.args;
      node.functional = true;
      for (const auto& [argument, place] : call.tensors) {
        node.in.push_back(TensorRef{argument, -1, same_as[place]});
      }
    }
    node.out = {TensorRef{0, -1, out}};
    for (const auto& ref : node.in) {
      tape.buffers[ref.value].last = index;
    }
    auto& b = tape.buffers[out];
    b.kind = BufferKind::Temp;
    b.first = b.made_by = b.last = index;
    tape.nodes.push_back(std::move(node));
    call_of.push_back(static_cast<int>(c));
    return true;
  }

  size_t inputs_;
  const std::vector<RunCall>& calls_;
  const std::vector<Seen>& places_;
};

}  // namespace

bool in_row_runs(const c10::OperatorHandle& op) {
  return copies(full_name(op)) || is_row_call(full_name(op));
}

std::string describe_run(int inputs, const std::vector<RunCall>& calls) {
  std::ostringstream s;
  s << inputs;
  for (const auto& call : calls) {
    s << '|' << full_name(call.op) << (call.kept ? '!' : ' ');
    describe_arguments(s, call.args);
    for (const auto& [argument, place] : call.tensors) {
      s << '%' << argument << '=' << place;
    }
  }
  return s.str();
}

RowRun::RowRun(int inputs, std::vector<RunCall> calls)
    : inputs_(static_cast<size_t>(inputs)), calls_(std::move(calls)) {}

std::shared_ptr<const RowRun::Learnt> RowRun::find(const std::vector<at::Tensor>& places) const {
  const std::lock_guard<std::mutex> guard(lock_);
  const auto mode = current_mode();
  for (auto known = learnt_.begin(); known != learnt_.end(); ++known) {
    const auto& layouts = (*known)->inputs;
    if ((*known)->mode == mode && std::equal(layouts.begin(), layouts.end(), places.begin(),
                                             [](const Layout& l, const at::Tensor& t) { return l.is_of(t); })) {
      std::rotate(learnt_.begin(), known, known + 1);
      return learnt_.front();
    }
  }
  return nullptr;
}

RowRun::Known RowRun::run(std::vector<at::Tensor>& places) const {
  const bool grad = at::GradMode::is_enabled();
  if (std::any_of(places.begin(), places.end(),
                  [&](const at::Tensor& t) { return !is_plain(t) || (grad && t.requires_grad()); })) {
    return Known::CallByCall;
  }
  const auto learnt = find(places);
  if (!learnt || learnt->pieces.empty()) {
    return learnt ? Known::CallByCall : Known::No;
  }
  places.resize(inputs_ + calls_.size());
  torch::jit::Stack stack;
  std::vector<char*> addresses;
  for (const auto& piece : learnt->pieces) {
    if (piece.call >= 0) {
      const auto& call = calls_[static_cast<size_t>(piece.call)];
      stack = call.args;
      for (const auto& [argument, place] : call.tensors) {
        stack[static_cast<size_t>(argument)] = places[static_cast<size_t>(learnt->same_as[place])];
      }
      call.op.callBoxed(stack);
      places[inputs_ + static_cast<size_t>(piece.call)] = stack[0].toTensor();
    } else {
      addresses.clear();
      for (size_t i = 0; i < piece.places.size(); ++i) {
        auto& t = places[static_cast<size_t>(piece.places[i])];
        if (piece.program->places[i].written) {
          const auto& layout = learnt->made.at(piece.places[i]);
          t = at::empty_strided(layout.sizes, layout.strides, at::TensorOptions(at::kCPU).dtype(layout.dtype));
        }
        addresses.push_back(static_cast<char*>(const_cast<void*>(t.const_data_ptr())));
      }
      run_row_program(*piece.program, addresses.data());
    }
    for (const int p : piece.drops) {
      places[static_cast<size_t>(p)].reset();
    }
  }
  for (size_t c = 0; c < calls_.size(); ++c) {
    const size_t out = inputs_ + c, from = static_cast<size_t>(learnt->same_as[out]);
    if (calls_[c].kept && out != from) {
      places[out] = places[from];
    }
  }
  return Known::Done;
}

int RowRun::fused() const {
  const std::lock_guard<std::mutex> guard(lock_);
  return learnt_.empty() ? 0 : learnt_.front()->fused;
}

void RowRun::learn(const std::vector<Seen>& places) noexcept {
  try {
    auto learnt = std::make_shared<Learnt>();
    learnt->mode = current_mode();
    for (size_t i = 0; i < inputs_; ++i) {
      learnt->inputs.push_back(places[i].layout.value());
    }
    read(places, *learnt);
    const std::lock_guard<std::mutex> guard(lock_);
    learnt_.insert(learnt_.begin(), std::move(learnt));
    if (learnt_.size() > kLayouts) {
      learnt_.pop_back();
    }
  } catch (const std::exception&) {  // no memory: it is tried again at the next call
  }
}

void RowRun::read(const std::vector<Seen>& places, Learnt& learnt) const {
  Writer writer(inputs_, calls_, places);
  if (!writer.write()) {
    return;
  }
  const auto chains = find_row_chains(writer.tape, std::numeric_limits<int>::max());
  const auto count = static_cast<int>(writer.tape.nodes.size());
  learnt.same_as = writer.same_as;
  auto chain = chains.begin();
  for (int n = 0; n < count && !chains.empty();) {
    Piece piece;
    const int begin = n;
    if (chain != chains.end() && chain->begin == n) {
      piece.program = chain->program;
      piece.places = chain->places;
      for (size_t i = 0; i < chain->places.size(); ++i) {
        if (chain->program->places[i].written) {
          const int p = chain->places[i];
          learnt.made.emplace(p, places[static_cast<size_t>(p)].layout.value());
        }
      }
      n = chain->end + 1;
      learnt.fused += n - begin;
      ++chain;
    } else {
      piece.call = writer.call_of[n++];
    }
    for (size_t p = inputs_; p < places.size(); ++p) {
      const auto& b = writer.tape.buffers[p];
      if (b.kind == BufferKind::Temp && begin <= b.last && b.last < n) {
        piece.drops.push_back(static_cast<int>(p));
      }
    }
    learnt.pieces.push_back(std::move(piece));
  }
}

}  // namespace graphmode
