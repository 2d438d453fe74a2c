// A call of an op as a device has it: values, and addresses of device memory. Nothing of it keeps that memory alive.
#pragma once

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/core/stack.h>

#include <functional>
#include <string>
#include <vector>

#include "../native/sim.h"

namespace sim {

// Where a tensor of a device lies, and how.
struct Place {
  void* address;
  std::vector<int64_t> sizes, strides;
  at::ScalarType dtype;
  bool conj, neg;
  size_t bytes;  // from the address to the last element's end

  // The same memory as a tensor of the host, for the emulation alone.
  at::Tensor on_host() const;
};
Place place_of(const at::Tensor& tensor);

// One value of a call's stack, with tensors of a device as places.
struct Value {
  c10::IValue plain;
  std::vector<Value> list;   // of a list of tensors
  std::vector<Place> place;  // one, for a tensor of a device
  bool is_list = false;
};

// What the device would do: called in the stream's turn with the tensors on the host.
using Work = std::function<void()>;

// Gives work to the current stream of a device, by torch_npu's queue, as its own ops do.
void enqueue(const std::string& name, int device, Work work, std::vector<Place> used);

// Has torch_npu's own copies between strides and dtypes done here.
void copies();

bool on_device(const at::Tensor& tensor);
// Waits for all that the current stream of a device was given.
void synchronize(int device);
bool capturing(int device);

}  // namespace sim
