// The backward pass from a tensor whose gradient is known, on the thread that asks for it.

#include <c10/core/AutogradState.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/torch.h>

#include "guard.h"

namespace {

// Without this, the nodes of CUDA tensors run on one thread per device, and passes that wait for each other would wait
// there for ever. CPU nodes run on the caller's thread in any case.
struct OnThisThread {
    bool was;
    OnThisThread() : was(c10::AutogradState::get_tls_state().get_multithreading_enabled()) {
        c10::AutogradState::get_tls_state().set_multithreading_enabled(false);
    }
    ~OnThisThread() { c10::AutogradState::get_tls_state().set_multithreading_enabled(was); }
};

}  // namespace

extern "C" {

char* simclr_backward(const torch::Tensor* output, const torch::Tensor* gradient) {
    return simclr::guarded([&] {
        OnThisThread scope;
        torch::autograd::backward({*output}, {*gradient});
    });
}

}  // extern "C"
