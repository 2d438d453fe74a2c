// What kind of call an op is, as far as a recorder must know: by name and tag, since schemas do not say.
// Tables only: no state, nothing runs.
#pragma once

#include <ATen/core/dispatch/Dispatcher.h>

#include <string>
#include <vector>

namespace graphmode {

// "aten::add.Tensor".
std::string full_name(const c10::OperatorHandle& op);

// One of torch's own ops: its schema and its kernels are known. Any other may do what no schema tells.
bool known(const std::string& name);

// Composites whose inside is only dispatched calls: record the inside, which can be planned, rather than the whole.
bool transparent(const c10::OperatorHandle& op);

// An op that needs what lay in the memory of an argument that it writes: arithmetic in place. `random` ones fill it.
bool updates(const std::string& name, bool random);

// A product with beta 0: it takes its first argument for the size alone.
bool ignores_self(const c10::OperatorHandle& op, const std::vector<c10::IValue>& args);

// Allocations: the plan gives the memory, nothing runs at replay.
bool allocates(const std::string& name);

// Calls that return no tensor yet read no data: their result follows from what the signature already holds.
bool reads_metadata(const std::string& name);

// Composites that read values through a bare pointer, which no dispatcher sees.
bool reads_values_unseen(const std::string& name);

// Changes where or how large a tensor is: nothing to replay on our own memory, and no way to replay it on a caller's.
bool changes_metadata(const c10::OperatorHandle& op, const std::string& name);

// Indexing has an output of fixed size, but for a mask, whose set elements count.
bool sizes_follow(const std::string& name, const std::vector<c10::IValue>& args);

// A collective that goes on after its call has returned; torch finds it again by the storage of its result.
bool goes_on(const std::string& name);

// A collective that goes on, and is waited for through an object that no op takes.
bool goes_on_unseen(const std::string& name);

// A view at an offset counted from the start of the storage, whatever the argument's own offset is.
bool offset_is_absolute(const std::string& name, const std::vector<c10::IValue>& args);

}  // namespace graphmode
