// What a capture recorded: buffers (memory), values (tensors over it) and nodes (calls), in program order.
// Owns no policy and runs nothing; the recorder writes it, the executable reads it.
#pragma once

#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <vector>

namespace graphmode {

enum class BufferKind : uint8_t {
  Temp,    // lives in the arena, or is adopted from the kernel that made it
  Input,   // re-bound to the caller's memory at each replay
  Output,  // fresh memory at each replay, handed to the caller
  Fixed,   // memory that existed before the capture and stays where it is: held, and checked at each replay
};

struct Buffer {
  BufferKind kind = BufferKind::Temp;
  size_t nbytes = 0;
  int input = -1;             // index of the input that owns the memory, for Input
  int first = -1, last = -1;  // nodes between which the memory is in use
  bool written = false;       // by a recorded node
  bool adopted = false;       // made by a kernel without an out-variant: memory comes with each call
  int made_by = -1;           // the node that allocated it
  bool survives = false;      // of a raw graph: made inside, and still held
  bool absolute = false;      // a call counted from the start of the storage: it must lie as it lay at capture
  c10::Storage fixed;         // for Fixed: keeps the memory alive
  c10::weak_intrusive_ptr<c10::StorageImpl> seen;  // identity while recording; keeps no memory
  explicit Buffer(c10::StorageImpl* s) : seen(c10::intrusive_ptr<c10::StorageImpl>::reclaim_copy(s)) {}
};

// A plain strided CPU tensor over a buffer.
struct Value {
  int buffer;
  int64_t offset;  // elements
  std::vector<int64_t> sizes, strides;
  caffe2::TypeMeta dtype;
  c10::DispatchKeySet keys;
  bool operator==(const Value& o) const {
    return buffer == o.buffer && offset == o.offset && sizes == o.sizes && strides == o.strides && dtype == o.dtype &&
           keys == o.keys;
  }
};

int64_t items(const Value& v);
bool contiguous(const Value& v);

// Where in a node's arguments (or results) a tensor stands.
struct TensorRef {
  int arg;
  int item;        // index in a list argument, -1 for a plain one
  int value = -1;  // index into Tape::values, or
  int boxed = -1;  // index of a value that is no plain tensor (sparse, quantised, ...), kept as an IValue, or
  int given = -1;  // of an input that is handed on as each call gives it
};

enum class NodeKind : uint8_t {
  Call,  // executed at each replay
  Lift,  // a tensor constant made inside: replayed as a copy of the pristine one
};

enum class Tier : uint8_t { Held, Out, Boxed };

struct Node {
  c10::OperatorHandle op;
  NodeKind kind = NodeKind::Call;
  std::vector<c10::IValue> args;  // tensors taken out: see `in`
  std::vector<TensorRef> in, out;
  std::vector<bool> writes;  // per argument, as the schema (and our corrections) say
  std::vector<int> written_buffers;
  bool functional = false;  // results are new memory: a planned buffer can take them
  bool random = false;
  Tier tier = Tier::Boxed;
  std::optional<c10::OperatorHandle> out_op;  // for Tier::Out
  std::string held;                           // for Tier::Held: name in the table
  std::string note;                           // why not a better tier
  int line = -1;                              // index into Tape::lines
  int position = -1;                          // of the program's node that made the call
  int8_t autocast = -1;                       // dtype autocast had on, for what the kernel calls itself; -1: off
};

// A tensor as it was first met. From outside the graph: a replay checks that it is still the same memory, laid out the
// same. Made inside a raw graph and still held: a replay overwrites it.
struct Met {
  c10::weak_intrusive_ptr<c10::TensorImpl> impl;
  c10::TensorImpl* raw;  // readable as long as `impl` is held, alive or not
  int value;
  bool inside = false;  // made by the graph: only its memory matters
  bool alive() const {
    return impl.use_count() > 0;
  }
};

// The state a generator was left in by the last call that was seen to draw from it.
struct Drawn {
  at::Generator generator;
  at::Tensor state;
};

struct Tape {
  // Constants of the program; any other tensor from outside is refused. Empty: a raw graph, which takes what it meets.
  std::optional<std::unordered_set<c10::StorageImpl*>> constants;
  std::vector<Met> met;
  std::unordered_map<c10::TensorImpl*, int> met_index;
  std::vector<Met> made;     // raw graphs: results, of which the program may still hold some
  std::vector<Drawn> drawn;  // raw graphs: generators that a replay will draw from too
  int position = -1;         // of the program's node that runs
  std::string position_op;   // the op that it calls
  std::vector<Buffer> buffers;
  std::vector<Value> values;
  std::vector<Node> nodes;
  int boxed = 0;            // number of boxed values
  std::vector<int> inputs;  // per declared input: its value, or -1 where it is no plain tensor or handed on
  std::unordered_map<c10::TensorImpl*, int> given;  // inputs that are handed on as they are
  std::function<std::string()> locate;              // the user's source line of the running call
  std::vector<std::string> lines;                   // user's source lines
  std::string refusal;                              // first reason why this can't be a graph
  std::string refusal_line;
  int random_nodes = 0;

  bool raw() const {
    return !constants.has_value();
  }
  std::unordered_map<c10::StorageImpl*, int> by_storage;
  std::unordered_map<c10::TensorImpl*, int> boxed_by_impl;
  std::unordered_map<std::string, int> line_index;
  std::vector<at::Tensor> keep;  // boxed values seen while recording, kept so that identity holds

  int buffer_of(const at::Tensor& t, int node, BufferKind kind_if_new);
  int value_of(const at::Tensor& t, int node, BufferKind kind_if_new);
  void refuse(std::string why);
  int line();  // index of the user's current source line, -1 when unknown
};

// True for a tensor that is memory, sizes and strides on the CPU and nothing else.
bool is_plain(const at::Tensor& t);

// The dispatch keys that a held tensor over such memory carries: backend and math bits, no autograd.
c10::DispatchKeySet plain_keys(const at::Tensor& t);

// Schemas lie now and then; one table of corrections. Argument indices that the op writes although it does not say so.
const std::vector<int>& undeclared_writes(const c10::OperatorName& name);

}  // namespace graphmode
