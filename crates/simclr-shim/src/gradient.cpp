// The backward pass from a tensor with a given gradient, on the calling thread; dropping gradients.

#include <c10/core/AutogradState.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/torch.h>

#include "guard.h"

namespace {

// By default the nodes of CUDA tensors run on one thread per device, where backward passes that wait for each other would
// deadlock. CPU nodes always run on the calling thread.
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

char* simclr_drop_gradient(const torch::Tensor* weight) {
    return simclr::guarded([&] { weight->mutable_grad().reset(); });
}

}  // extern "C"
