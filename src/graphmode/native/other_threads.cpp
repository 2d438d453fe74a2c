#include "other_threads.h"

#include <ATen/record_function.h>

#include <mutex>
#include <unordered_map>

#include "recorder.h"

namespace graphmode {

namespace {
struct Seen {
  std::mutex mutex;
  int watchers = 0;
  at::CallbackHandle handle = at::INVALID_CALLBACK_HANDLE;
  // Weak: an address is not given to other memory while it stands here.
  std::unordered_map<const c10::StorageImpl*, c10::weak_intrusive_ptr<c10::StorageImpl>> storages;
};
Seen& seen() {
  static auto* s = new Seen();  // a thread may outlive the statics of this file
  return *s;
}

void note(const at::Tensor& t) {
  if (t.defined() && t.has_storage()) {
    const auto& storage = t.storage();
    auto& s = seen();
    std::lock_guard<std::mutex> guard(s.mutex);
    s.storages.try_emplace(storage.unsafeGetStorageImpl(), storage.getWeakStorageImpl());
  }
}

void after_call(const at::RecordFunction& call, at::ObserverContext*) {
  if (recording() != nullptr) {
    return;
  }
  for (const auto& result : call.outputs()) {
    if (result.isTensor()) {
      note(result.toTensor());
    } else if (result.isTensorList()) {
      for (const at::Tensor& t : result.toTensorVector()) {
        note(t);
      }
    }
  }
}
}  // namespace

OtherThreads::OtherThreads() {
  auto& s = seen();
  std::lock_guard<std::mutex> guard(s.mutex);
  if (s.watchers++ == 0) {
    const auto none = [](const at::RecordFunction&) -> std::unique_ptr<at::ObserverContext> { return nullptr; };
    s.handle = at::addGlobalCallback(
        at::RecordFunctionCallback(none, &after_call).needsOutputs(true).scopes({at::RecordScope::FUNCTION}));
  }
}

OtherThreads::~OtherThreads() {
  auto& s = seen();
  std::lock_guard<std::mutex> guard(s.mutex);
  if (--s.watchers == 0) {
    at::removeCallback(s.handle);
    s.storages.clear();
  }
}

bool OtherThreads::made(const c10::StorageImpl* storage) {
  auto& s = seen();
  std::lock_guard<std::mutex> guard(s.mutex);
  return s.watchers > 0 && s.storages.count(storage) > 0;
}

}  // namespace graphmode
