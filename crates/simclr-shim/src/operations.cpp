// Records the names of the ATen operations that a thread calls.

#include <ATen/record_function.h>

#include <memory>
#include <string>
#include <vector>

#include "guard.h"

namespace simclr {
namespace {

thread_local std::string names;

std::unique_ptr<at::ObserverContext> record(const at::RecordFunction& function) {
    names += function.name();
    names += '\n';
    return nullptr;
}

}  // namespace
}  // namespace simclr

extern "C" {

// Begins recording this thread's operations; `handle` is the argument of simclr_operations_end.
char* simclr_operations_begin(uint64_t* handle) {
    return simclr::guarded([&] {
        simclr::names.clear();
        at::RecordFunctionCallback callback(&simclr::record);
        *handle = at::addThreadLocalCallback(callback.scopes({at::RecordScope::FUNCTION}));
    });
}

// Ends the recording; returns the names, one per line.
char* simclr_operations_end(uint64_t handle) {
    at::removeCallback(handle);
    return simclr::text_or_null([] { return simclr::names; });
}

}  // extern "C"
