// Which of libtorch's operations a thread asks for.

#include <ATen/record_function.h>

#include <memory>
#include <string>
#include <vector>

#include "guard.h"

namespace simclr {
namespace {

thread_local std::string names;

std::unique_ptr<at::ObserverContext> note(const at::RecordFunction& function) {
    names += function.name();
    names += '\n';
    return nullptr;
}

}  // namespace
}  // namespace simclr

extern "C" {

// From here on this thread's operations are noted; `handle` ends it.
char* simclr_operations_begin(uint64_t* handle) {
    return simclr::guarded([&] {
        simclr::names.clear();
        at::RecordFunctionCallback callback(&simclr::note);
        *handle = at::addThreadLocalCallback(callback.scopes({at::RecordScope::FUNCTION}));
    });
}

// The names, a line each.
char* simclr_operations_end(uint64_t handle) {
    at::removeCallback(handle);
    return simclr::text_or_null([] { return simclr::names; });
}

}  // extern "C"
