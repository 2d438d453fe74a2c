// The emulation's own functions: for the kernels, which live in another library, and for Python.
#pragma once

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

// Memory that a task reads or writes.
typedef struct ascsim_range {
  const void* address;
  size_t bytes;
} ascsim_range;

// Gives a kernel to a stream, as a launch does. `run` is called in the stream's turn, at each execution of a graph
// that kept it; it returns null, or a text that says what failed. `drop` is called once, at the end. The ranges must
// lie in live memory whenever the task runs.
int ascsim_launch(void* stream, const char* name, const char* (*run)(void*), void (*drop)(void*), void* argument,
                  const ascsim_range* ranges, size_t count);

// A tensor as aclnn functions know it: the dtype is an aclDataType, the offset counts elements.
typedef struct ascsim_view {
  void* data;
  const int64_t* sizes;
  const int64_t* strides;
  size_t dimensions;
  int dtype;
  int64_t offset;
} ascsim_view;
// Who copies between strides and dtypes: the library that knows torch sets it.
typedef int (*ascsim_copy_function)(void* stream, const ascsim_view* to, const ascsim_view* from);
void ascsim_set_copy(ascsim_copy_function function);

// Where the emulation may touch what lies at an address of a device.
void* ascsim_host(const void* device);

// Names and counts of the functions called since the start; returns how many there are.
size_t ascsim_counters(const char** names, uint64_t* calls, size_t room);

// Of one device: bytes in use and the most that were, streams, graphs, and what graphs take of the budget.
typedef struct ascsim_usage {
  uint64_t bytes, peak, allocations, streams, graphs, graph_slots, graph_tasks, captures, executions;
} ascsim_usage;
int ascsim_usage_of(int device, ascsim_usage* usage);

// The n-th next allocation of device memory fails; 0 for none.
void ascsim_fail_allocation(uint64_t n);
// The n-th next task whose name holds `name` fails; 0 for none.
void ascsim_fail_task(const char* name, uint64_t n);

// Virtual time, microseconds.
double ascsim_host_time(void);
double ascsim_device_time(int device);
// The time line as JSON of the trace-event format; to be freed by ascsim_free. Empty unless it was switched on.
void ascsim_timeline(int on);
char* ascsim_timeline_json(void);
void ascsim_free(char* text);

#ifdef __cplusplus
}
#endif
