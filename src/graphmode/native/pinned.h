// A device's graph, which reads and writes the addresses of its capture: inputs are copied in, results copied out.
#pragma once

#include <torch/csrc/utils/pybind.h>

#include <memory>

#include "replayable.h"
#include "turn.h"

namespace graphmode {

// Part of an input's storage, and the copy that the graph reads and writes in its place.
struct Span {
  std::vector<int> positions;  // of the inputs that lie in it
  int64_t from = 0;            // bytes from the first one's first element to where the span begins
  int64_t bytes = 0;
  at::Tensor memory;  // uint8: the copy
  at::Tensor whole;   // the first one's stand-in, where the span is that tensor and nothing else
  bool written = false;
  // What is copied back, by position: the stand-ins that the graph writes, so that nothing between their elements is
  // touched. Empty where the program may write all of the span.
  std::vector<std::pair<int, at::Tensor>> back;
};

// How a tensor lies in its storage.
struct Layout {
  std::vector<int64_t> sizes, strides;
  int64_t offset = 0;  // elements
  caffe2::TypeMeta dtype;
  bool conj = false, neg = false;
};

// What a replay hands out.
struct PinnedResult {
  enum Kind : uint8_t { Same, View, Constant, Own } kind = Own;
  int position = -1;       // Same: the input itself. View: the input whose memory it is
  int64_t from = 0;        // View: bytes from the input's first element to its own
  size_t own = 0;          // Own: which memory of the graph's
  bool inference = false;  // Own: made in inference mode
  Layout layout;           // View, Own
  at::Tensor tensor;       // Constant: itself. Own: the graph's
};

// Memory that the capture allocated and that results lie in.
struct OwnMemory {
  at::Tensor bytes;  // uint8, the whole storage
  int base = -1;     // the result that all others lie in; -1: they are views of what is no result
};

class PinnedGraph final : public Replayable {
 public:
  // launch: a Python callable that replays, called with the integers that it is told. busy: one that tells whether
  // another capture is open. turn: null where graphs share no memory. stand_ins: what the capture had as arguments,
  // undefined where that was no tensor. told: arguments that are integers which may be others at a replay. placed:
  // inputs must lie in their storages where they lay at capture. fresh: results are memory of their own already.
  // constants: what the program has besides its inputs.
  PinnedGraph(pybind11::object launch, pybind11::object busy, std::shared_ptr<Turn> turn,
              std::vector<at::Tensor> stand_ins, std::vector<Span> spans, const std::vector<int>& written,
              std::vector<int> told, std::vector<at::Tensor> results, const std::vector<at::Tensor>& constants,
              bool placed, bool fresh, bool poison);
  ~PinnedGraph() override;
  // Lets go of everything that the capture allocated: the device keeps it for the graph, and may give it to the next.
  // What was made outside of it, as inputs that are read in place, is let go of in any case.
  void disown();
  InputUse use(size_t index, const at::Tensor& t) const override;
  bool is_told(size_t index) const override;
  bool fits(at::ArrayRef<const at::Tensor*> inputs) override;
  std::vector<at::Tensor> run(at::ArrayRef<const at::Tensor*> inputs, const char* const* first,
                              at::IntArrayRef told) override;
  // What a call gets whose results are in the graph's memory already.
  std::vector<at::Tensor> hand_out(at::ArrayRef<const at::Tensor*> inputs);

 private:
  void fill(at::ArrayRef<const at::Tensor*> inputs);
  void launch(at::IntArrayRef told);
  bool holds_all(const PinnedResult& r) const;
  void hand_out_own(std::vector<at::Tensor>& results) const;

  pybind11::object launch_, busy_;
  std::shared_ptr<Turn> turn_;
  c10::DeviceIndex device_ = -1;
  std::vector<Span> spans_;
  std::vector<InputUse> uses_;
  std::vector<int> written_, told_;
  std::vector<PinnedResult> results_;
  std::vector<OwnMemory> own_;
  bool fresh_, poison_;
};

void bind_pinned(pybind11::module_& m);

}  // namespace graphmode
