// One optimizer step on a GPU by the kernels of gpu/optimizer.cu (multi-tensor apply): at most two launches per 72
// parameters, without device-to-host synchronisation, so that a CUDA graph can capture it.

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <vector>

#include "gpu/launch.h"
#include "gpu/optimizer.h"
#include "guard.h"

namespace simclr {
namespace {

// As `CParameter` of optimizer.rs.
struct Parameter {
    const at::Tensor* weight;
    const at::Tensor* first;   // momentum buffer, or first moment
    const at::Tensor* second;  // second moment, or null
    int decayed;               // weight decay applies
    int adapted;               // layer-wise rules scale its step by the trust ratio
};

// As `CRule` of optimizer.rs.
struct Rule {
    int adam;
    int layerwise;
    int nesterov;
    int lr_in_momentum;
    int separate_norms;
    double decay, momentum, trust;
    double beta1, beta2, eps, max_norm;
};

bool same_layout(const at::Tensor& a, const at::Tensor& b) {
    if (a.sizes() != b.sizes()) return false;
    for (int64_t d = 0; d < a.dim(); d++) {
        if (a.size(d) > 1 && a.stride(d) != b.stride(d)) return false;
    }
    return true;
}

// The gradient of a weight in the weight's layout; undefined where there is none.
at::Tensor gradient_like(const at::Tensor& weight) {
    at::Tensor gradient = weight.grad();
    if (gradient.defined() && !same_layout(gradient, weight)) gradient = at::empty_like(weight).copy_(gradient);
    return gradient;
}

// The values of `tensor`, which has the layout and the device of `weight`.
float* values(const at::Tensor& tensor, const at::Tensor& weight) {
    TORCH_CHECK(tensor.scalar_type() == at::kFloat && tensor.device() == weight.device() && same_layout(tensor, weight) &&
                    tensor.is_non_overlapping_and_dense(),
                "optimizer: expected f32 on ", weight.device(), " in the weight's layout, got ", tensor.scalar_type(),
                " on ", tensor.device(), " of ", tensor.sizes(), ", strides ", tensor.strides());
    return tensor.mutable_data_ptr<float>();
}

// Null, or room for `count` trust ratios.
double* ratios(const at::Tensor* trust_ratios, size_t count) {
    if (trust_ratios == nullptr) return nullptr;
    TORCH_CHECK(trust_ratios->numel() >= static_cast<int64_t>(count) && trust_ratios->is_contiguous(),
                "optimizer: expected room for ", count, " trust ratios, got ", trust_ratios->sizes());
    return trust_ratios->mutable_data_ptr<double>();
}

// The parameters of one launch, and the gradients that must live until it is enqueued.
struct Launch {
    gpu::Update update;
    int blocks = 0;
    std::vector<at::Tensor> held;

    bool is_full() const { return update.count == gpu::MAX_TENSORS; }

    void add(const at::Tensor& weight, const at::Tensor& gradient, float* first, float* second, bool decayed, bool adapted) {
        update.tensors[update.count++] = {values(weight, weight), first, second, values(gradient, weight),
                                          weight.numel(), blocks, decayed, adapted};
        blocks += static_cast<int>((weight.numel() + gpu::PIECE - 1) / gpu::PIECE);
        held.push_back(gradient);
    }

    void run(const char* kernel) { gpu::launch(kernel, {blocks, 1}, &update, held.front()); }
};

// Where a kernel writes its partial sums: [blocks, 2].
at::Tensor allocate_partial(Launch& launch) {
    at::Tensor sums = at::empty({launch.blocks, 2}, launch.held.front().options().dtype(at::kDouble));
    launch.update.partial = sums.mutable_data_ptr<double>();
    return sums;
}

gpu::Update arguments(const Rule& rule, const at::Tensor& scalars, const at::Tensor& guard) {
    gpu::Update update{};
    update.layerwise = rule.layerwise, update.nesterov = rule.nesterov;
    update.lr_in_momentum = rule.lr_in_momentum, update.separate_norms = rule.separate_norms;
    update.scalars = scalars.const_data_ptr<double>();
    update.guard = guard.defined() ? guard.const_data_ptr<double>() : nullptr;
    update.decay = static_cast<float>(rule.decay), update.momentum = static_cast<float>(rule.momentum);
    update.beta1 = static_cast<float>(rule.beta1), update.one_less_beta1 = static_cast<float>(1 - rule.beta1);
    update.beta2 = static_cast<float>(rule.beta2), update.one_less_beta2 = static_cast<float>(1 - rule.beta2);
    update.eps = static_cast<float>(rule.eps), update.trust = rule.trust, update.max_norm = rule.max_norm;
    return update;
}

void run(const Rule& rule, Launch& launch) {
    at::Tensor sums = allocate_partial(launch);
    if (rule.adam != 0) {
        launch.run("optimizer_adam_moments");
        launch.run("optimizer_adam_weights");
        return;
    }
    if (rule.layerwise != 0) launch.run("optimizer_norms");
    launch.run("optimizer_momentum");
}

void step(const Rule& rule, const Parameter* parameters, size_t count, const at::Tensor& scalars, const at::Tensor& guard,
          double* trust_ratios) {
    at::NoGradGuard no_grad;
    Launch empty{arguments(rule, scalars, guard)}, launch = empty;
    auto flush = [&] {
        launch.update.trust_ratios = trust_ratios;
        run(rule, launch);
        if (trust_ratios != nullptr) trust_ratios += launch.update.count;
        launch = empty;
    };
    for (size_t i = 0; i < count; i++) {
        const Parameter& p = parameters[i];
        TORCH_CHECK(rule.adam == 0 || p.second != nullptr, "optimizer: no second moment");
        at::Tensor gradient = gradient_like(*p.weight);
        if (!gradient.defined() || gradient.numel() == 0) continue;
        launch.add(*p.weight, gradient, values(*p.first, *p.weight),
                   p.second == nullptr ? nullptr : values(*p.second, *p.weight), p.decayed != 0, p.adapted != 0);
        if (launch.is_full()) flush();
    }
    if (launch.update.count > 0) flush();
    for (size_t i = 0; i < count; i++) {
        const at::Tensor& weight = *parameters[i].weight;
        if (!weight.grad().defined()) continue;
        weight.unsafeGetTensorImpl()->bump_version();  // autograd must reject values saved before this step
        weight.mutable_grad().reset();
    }
}

// Norm of all gradients together: [] in f64 on the device.
at::Tensor gradient_norm(const at::Tensor* const* weights, size_t count) {
    at::NoGradGuard no_grad;
    std::vector<at::Tensor> squares;
    Launch launch{};
    auto flush = [&] {
        at::Tensor sums = allocate_partial(launch);
        launch.run("optimizer_norms");
        squares.push_back(sums.select(1, 1));
        launch = Launch{};
    };
    for (size_t i = 0; i < count; i++) {
        at::Tensor gradient = gradient_like(*weights[i]);
        if (!gradient.defined() || gradient.numel() == 0) continue;
        launch.add(*weights[i], gradient, nullptr, nullptr, false, false);
        if (launch.is_full()) flush();
    }
    if (launch.update.count > 0) flush();
    TORCH_CHECK(!squares.empty(), "optimizer: no parameter has a gradient");
    return at::cat(squares).sum().sqrt_();
}

}  // namespace
}  // namespace simclr

extern "C" {

// One step of all parameters that have a gradient, which is dropped; requires gpu::kernels_available. `scalars`: f64 [3] on
// the device, learning rate and 1 - beta^steps for both betas; `guard`: f64 on the device or null, nothing is updated unless
// it is finite; `trust_ratios`: null, or f64 on the device, one for every parameter that has a gradient, in order; those of
// adapted parameters are written.
char* simclr_gpu_optimizer_step(const simclr::Rule* rule, const simclr::Parameter* parameters, size_t count,
                                const at::Tensor* scalars, const at::Tensor* guard, const at::Tensor* trust_ratios) {
    return simclr::guarded([&] {
        simclr::step(*rule, parameters, count, *scalars, guard == nullptr ? at::Tensor() : *guard,
                     simclr::ratios(trust_ratios, count));
    });
}

// Norm of the gradients of all weights together, on the device; requires gpu::kernels_available.
char* simclr_gpu_gradient_norm(const at::Tensor* const* weights, size_t count, at::Tensor** out) {
    return simclr::guarded([&] { *out = new at::Tensor(simclr::gradient_norm(weights, count)); });
}

}  // extern "C"
