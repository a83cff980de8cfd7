// Hooks on leaf tensors: called when a leaf's gradient of a backward pass is complete.

#include <torch/csrc/autograd/variable.h>
#include <torch/types.h>

#include <memory>
#include <utility>

namespace {

struct Hook final : torch::autograd::PostAccumulateGradHook {
    void* context;
    void (*call)(void*);
    void (*release)(void*);
    Hook(void* context, void (*call)(void*), void (*release)(void*)) : context(context), call(call), release(release) {}
    ~Hook() override { release(context); }
    void operator()(const torch::autograd::Variable&) override { call(context); }
};

}  // namespace

extern "C" {

// Takes ownership of `context`, which is released with the hook. Returns 0 if libtorch rejects the hook.
int simclr_hook_set(torch::Tensor* leaf, void* context, void (*call)(void*), void (*release)(void*)) {
    auto hook = std::make_unique<Hook>(context, call, release);
    try {
        torch::autograd::impl::set_post_acc_grad_hooks(*leaf, std::move(hook));
        return 1;
    } catch (...) {
        return 0;
    }
}

void simclr_hook_clear(torch::Tensor* leaf) {
    try {
        torch::autograd::impl::set_post_acc_grad_hooks(*leaf, nullptr);
    } catch (...) {
    }
}

}  // extern "C"
