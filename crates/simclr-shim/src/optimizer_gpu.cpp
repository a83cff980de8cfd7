// The optimizer's step by the kernels of gpu/optimizer.cu: a launch or two for every 72 parameters, and nothing comes back to
// the host, so that a step can be recorded.

#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <vector>

#include "gpu/launch.h"
#include "gpu/optimizer.h"
#include "guard.h"
#include "optimizer.h"

namespace simclr {
namespace {

// Parameters that a launch takes, their blocks, and whatever has to live until it is on its way.
struct Batch {
    gpu::Update update;
    int blocks = 0;
    std::vector<at::Tensor> held;

    bool is_full() const { return update.count == gpu::TOGETHER_AT_MOST; }

    void add(const at::Tensor& weight, const at::Tensor& gradient, float* first, float* second, bool decayed, bool adapted) {
        update.tensors[update.count++] = {numbers(weight, weight), first, second, numbers(gradient, weight),
                                          weight.numel(), blocks, decayed, adapted};
        blocks += static_cast<int>((weight.numel() + gpu::PIECE - 1) / gpu::PIECE);
        held.push_back(gradient);
    }

    void launch(const char* kernel) {
        gpu::launch(kernel, {blocks, 1}, &update, held.front());
    }
};

// Where a kernel writes its sums: [blocks, 2].
at::Tensor partial(Batch& batch) {
    at::Tensor sums = at::empty({batch.blocks, 2}, batch.held.front().options().dtype(at::kDouble));
    batch.update.partial = sums.mutable_data_ptr<double>();
    return sums;
}

gpu::Update told(const Rule& rule, const at::Tensor& now, const at::Tensor& guard) {
    gpu::Update update{};
    update.layerwise = rule.layerwise, update.nesterov = rule.nesterov;
    update.lr_in_momentum = rule.lr_in_momentum, update.separate_norms = rule.separate_norms;
    update.now = now.const_data_ptr<double>();
    update.guard = guard.defined() ? guard.const_data_ptr<double>() : nullptr;
    update.decay = static_cast<float>(rule.decay), update.momentum = static_cast<float>(rule.momentum);
    update.beta1 = static_cast<float>(rule.beta1), update.one_less_beta1 = static_cast<float>(1 - rule.beta1);
    update.beta2 = static_cast<float>(rule.beta2), update.one_less_beta2 = static_cast<float>(1 - rule.beta2);
    update.eps = static_cast<float>(rule.eps), update.trust = rule.trust, update.max_norm = rule.max_norm;
    return update;
}

void run(const Rule& rule, Batch& batch) {
    at::Tensor sums = partial(batch);
    if (rule.adam != 0) {
        batch.launch("optimizer_adam_moments");
        batch.launch("optimizer_adam_weights");
        return;
    }
    if (rule.layerwise != 0) batch.launch("optimizer_norms");
    batch.launch("optimizer_momentum");
}

void step(const Rule& rule, const Parameter* parameters, size_t count, const at::Tensor& now, const at::Tensor& guard,
          double* trust_ratios) {
    at::NoGradGuard no_grad;
    Batch empty{told(rule, now, guard)}, batch = empty;
    auto launch = [&] {
        batch.update.trust_ratios = trust_ratios;
        run(rule, batch);
        if (trust_ratios != nullptr) trust_ratios += batch.update.count;
        batch = empty;
    };
    for (size_t i = 0; i < count; i++) {
        const Parameter& p = parameters[i];
        TORCH_CHECK(rule.adam == 0 || p.second != nullptr, "optimizer: no second moment");
        at::Tensor gradient = gradient_like(*p.weight);
        if (!gradient.defined() || gradient.numel() == 0) continue;
        batch.add(*p.weight, gradient, numbers(*p.first, *p.weight),
                  p.second == nullptr ? nullptr : numbers(*p.second, *p.weight), p.decayed != 0, p.adapted != 0);
        if (batch.is_full()) launch();
    }
    if (batch.update.count > 0) launch();
    for (size_t i = 0; i < count; i++) {
        if (parameters[i].weight->grad().defined()) changed(*parameters[i].weight);
    }
}

// [] in f64 on the device.
at::Tensor gradient_norm(const at::Tensor* const* weights, size_t count) {
    at::NoGradGuard no_grad;
    std::vector<at::Tensor> squares;
    Batch batch{};
    auto finish = [&] {
        at::Tensor sums = partial(batch);
        batch.launch("optimizer_norms");
        squares.push_back(sums.select(1, 1));
        batch = Batch{};
    };
    for (size_t i = 0; i < count; i++) {
        at::Tensor gradient = gradient_like(*weights[i]);
        if (!gradient.defined() || gradient.numel() == 0) continue;
        batch.add(*weights[i], gradient, nullptr, nullptr, false, false);
        if (batch.is_full()) finish();
    }
    if (batch.update.count > 0) finish();
    TORCH_CHECK(!squares.empty(), "optimizer: no parameter has a gradient");
    return at::cat(squares).sum().sqrt_();
}

}  // namespace
}  // namespace simclr

extern "C" {

// As simclr_optimizer_step, where gpu::serves. `now`: f64 [3] on the device, learning rate and 1 - beta^steps for both betas;
// `guard`: f64 on the device or null, nothing is updated unless it is finite; `trust_ratios`: null, or f64 on the device, one for
// every parameter that has a gradient, in order; those of adapted parameters are written.
char* simclr_gpu_optimizer_step(const simclr::Rule* rule, const simclr::Parameter* parameters, size_t count,
                                const at::Tensor* now, const at::Tensor* guard, const at::Tensor* trust_ratios) {
    return simclr::guarded([&] {
        simclr::step(*rule, parameters, count, *now, guard == nullptr ? at::Tensor() : *guard,
                     simclr::ratios(trust_ratios, count));
    });
}

// As simclr_gradient_norm, where gpu::serves; the result stays on the device.
char* simclr_gpu_gradient_norm(const at::Tensor* const* weights, size_t count, at::Tensor** out) {
    return simclr::guarded([&] { *out = new at::Tensor(simclr::gradient_norm(weights, count)); });
}

}  // extern "C"
