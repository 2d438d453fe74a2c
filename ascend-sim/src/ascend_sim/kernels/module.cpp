// The kernels as a Python module.
#include <torch/csrc/utils/pybind.h>

#include "task.h"

namespace sim {
std::vector<std::string> take_over(const std::vector<std::string>& names);
std::vector<std::string> take_over_gradients(const std::vector<std::string>& names);
}  // namespace sim

PYBIND11_MODULE(_kernels, m) {
  sim::copies();
  m.def("take_over", &sim::take_over, "Registers the emulation's kernels for these ops; returns those it took.");
  m.def("take_over_gradients", &sim::take_over_gradients, "The same for ops that torch_npu differentiates itself.");
}
