// One optimizer step over all parameters of the CPU: each number is read and written once (twice where a layer's norm
// is wanted first), however many tensors there are. Formulas: kernels.h; who decays and adapts is the caller's choice.

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <cmath>
#include <stdexcept>
#include <vector>

#include "guard.h"
#include "kernels.h"
#include "optimizer.h"
#include "parallel.h"

namespace simclr {
namespace {

// A parameter's numbers, all in one order.
struct Flat {
    float *weight, *first, *second;
    const float* gradient;
    int64_t count;
    bool decayed, adapted;
    size_t index;     // in the caller's list
    at::Tensor held;  // the gradient
};

// A run of numbers of one parameter.
struct Piece {
    size_t parameter;
    int64_t from, count;
};

constexpr int64_t PIECE = 65536;

// Parameters that have a gradient.
std::vector<Flat> flatten(const Parameter* parameters, size_t count) {
    std::vector<Flat> flat;
    for (size_t i = 0; i < count; i++) {
        const at::Tensor& weight = *parameters[i].weight;
        at::Tensor gradient = gradient_like(weight);
        if (!gradient.defined()) continue;
        TORCH_CHECK(weight.is_cpu(), "optimizer: expected f32 on the CPU, got ", weight.device());
        const at::Tensor* second = parameters[i].second;
        flat.push_back({numbers(weight, weight), numbers(*parameters[i].first, weight),
                        second == nullptr ? nullptr : numbers(*second, weight), numbers(gradient, weight),
                        weight.numel(), parameters[i].decayed != 0, parameters[i].adapted != 0, i, gradient});
    }
    return flat;
}

std::vector<Piece> pieces(const std::vector<Flat>& flat) {
    std::vector<Piece> all;
    for (size_t parameter = 0; parameter < flat.size(); parameter++) {
        for (int64_t from = 0; from < flat[parameter].count; from += PIECE) {
            all.push_back({parameter, from, std::min(PIECE, flat[parameter].count - from)});
        }
    }
    return all;
}

// Two norms per parameter: `add(parameter, piece, two sums of squares)`. The pieces are added up in their order.
template <typename F>
std::vector<std::pair<double, double>> two_norms(const std::vector<Flat>& flat, const F& add) {
    std::vector<Piece> all = pieces(flat);
    std::vector<double> sums(2 * all.size());
    parallel(static_cast<int64_t>(all.size()), [&](int64_t i) { add(flat[all[i].parameter], all[i], &sums[2 * i]); });
    std::vector<std::pair<double, double>> norms(flat.size());
    for (size_t i = 0; i < all.size(); i++) {
        norms[all[i].parameter].first += sums[2 * i];
        norms[all[i].parameter].second += sums[2 * i + 1];
    }
    for (auto& [first, second] : norms) first = std::sqrt(first), second = std::sqrt(second);
    return norms;
}

template <typename F>
void each_piece(const std::vector<Flat>& flat, const F& task) {
    std::vector<Piece> all = pieces(flat);
    parallel(static_cast<int64_t>(all.size()), [&](int64_t i) { task(flat[all[i].parameter], all[i]); });
}

// 1 where either is not above 0: a zero-initialised layer must be able to leave zero.
double ratio_or_one(double numerator, double denominator) {
    return numerator > 0 && denominator > 0 ? numerator / denominator : 1;
}

void momentum_step(const Rule& rule, const std::vector<Flat>& flat, double* trust_ratios) {
    std::vector<double> ratios(flat.size(), 1);
    if (rule.layerwise != 0) {
        float added = rule.separate_norms != 0 ? 0 : static_cast<float>(rule.decay);
        auto norms = two_norms(flat, [&](const Flat& p, const Piece& at, double* sums) {
            if (!p.adapted) return;
            kernels().norms(p.weight + at.from, p.gradient + at.from, p.decayed ? added : 0, at.count, sums);
        });
        for (size_t i = 0; i < flat.size(); i++) {
            if (!flat[i].adapted) continue;
            auto [weight, gradient] = norms[i];
            if (rule.separate_norms != 0 && flat[i].decayed) gradient += rule.decay * weight;
            ratios[i] = ratio_or_one(rule.trust * weight, gradient);
            if (trust_ratios != nullptr) trust_ratios[flat[i].index] = ratios[i];
        }
    }
    each_piece(flat, [&](const Flat& p, const Piece& at) {
        double ratio = ratios[at.parameter];
        MomentumRule momentum{p.decayed ? static_cast<float>(rule.decay) : 0, static_cast<float>(rule.momentum),
                              static_cast<float>(rule.lr_in_momentum != 0 ? rule.lr * ratio : ratio),
                              static_cast<float>(rule.lr_in_momentum != 0 ? 1 : rule.lr), rule.nesterov != 0};
        kernels().momentum(momentum, p.weight + at.from, p.gradient + at.from, p.first + at.from, at.count);
    });
}

void adam_step(const Rule& rule, const std::vector<Flat>& flat, double* trust_ratios) {
    auto rule_of = [&](const Flat& p, double ratio) {
        double decay = p.decayed ? rule.decay : 0, steps = static_cast<double>(rule.steps);
        AdamRule adam{};
        adam.beta1 = static_cast<float>(rule.beta1), adam.one_less_beta1 = static_cast<float>(1 - rule.beta1);
        adam.beta2 = static_cast<float>(rule.beta2), adam.one_less_beta2 = static_cast<float>(1 - rule.beta2);
        adam.unbias1 = rule.bias_correction != 0 ? static_cast<float>(1 - std::pow(rule.beta1, steps)) : 1;
        adam.unbias2 = rule.bias_correction != 0 ? static_cast<float>(1 - std::pow(rule.beta2, steps)) : 1;
        adam.eps = static_cast<float>(rule.eps);
        adam.added_decay = rule.layerwise != 0 ? static_cast<float>(decay) : 0;
        adam.kept = rule.layerwise != 0 ? 1 : static_cast<float>(1 - rule.lr * decay);
        adam.rate = static_cast<float>(rule.lr * ratio);
        return adam;
    };
    auto norms = two_norms(flat, [&](const Flat& p, const Piece& at, double* sums) {
        kernels().adam_moments(rule_of(p, 1), p.weight + at.from, p.gradient + at.from, p.first + at.from,
                               p.second + at.from, at.count, sums);
    });
    each_piece(flat, [&](const Flat& p, const Piece& at) {
        auto [weight, update] = norms[at.parameter];
        bool adapts = rule.layerwise != 0 && p.adapted;
        double ratio = adapts ? ratio_or_one(std::min(weight, rule.max_norm), update) : 1;
        if (adapts && trust_ratios != nullptr && at.from == 0) trust_ratios[p.index] = ratio;
        kernels().adam_weights(rule_of(p, ratio), p.weight + at.from, p.first + at.from, p.second + at.from, at.count);
    });
}

void step(const Rule& rule, const Parameter* parameters, size_t count, double* trust_ratios) {
    at::NoGradGuard no_grad;
    std::vector<Flat> flat = flatten(parameters, count);
    for (const Flat& p : flat) TORCH_CHECK(rule.adam == 0 || p.second != nullptr, "optimizer: no second moment");
    if (rule.adam != 0) adam_step(rule, flat, trust_ratios);
    else momentum_step(rule, flat, trust_ratios);
    for (size_t i = 0; i < count; i++) {
        if (parameters[i].weight->grad().defined()) changed(*parameters[i].weight);
    }
}

double gradient_norm(const at::Tensor* const* weights, size_t count) {
    at::NoGradGuard no_grad;
    std::vector<Flat> flat;
    double squares = 0;
    for (size_t i = 0; i < count; i++) {
        at::Tensor gradient = weights[i]->grad();
        if (!gradient.defined()) continue;
        TORCH_CHECK(gradient.is_cpu(), "optimizer: expected f32 on the CPU, got ", gradient.device());
        if (!gradient.is_non_overlapping_and_dense()) gradient = gradient.contiguous();
        float* values = numbers(gradient, gradient);
        flat.push_back({values, nullptr, nullptr, values, gradient.numel(), false, true, i, gradient});
    }
    auto norms = two_norms(flat, [&](const Flat& p, const Piece& at, double* sums) {
        kernels().norms(p.weight + at.from, p.gradient + at.from, 0, at.count, sums);
    });
    for (auto [norm, same] : norms) squares += norm * norm;
    return std::sqrt(squares);
}

}  // namespace
}  // namespace simclr

extern "C" {

// One step of all parameters that have a gradient, which is dropped. `trust_ratios`: null, or f64 on the CPU, one for every
// parameter; those of adapted parameters are written.
char* simclr_optimizer_step(const simclr::Rule* rule, const simclr::Parameter* parameters, size_t count,
                            const at::Tensor* trust_ratios) {
    return simclr::guarded([&] {
        simclr::step(*rule, parameters, count, simclr::ratios(trust_ratios, count));
    });
}

// Norm of the gradients of all weights together.
char* simclr_gradient_norm(const at::Tensor* const* weights, size_t count, double* out) {
    return simclr::guarded([&] { *out = simclr::gradient_norm(weights, count); });
}

// Forgets a gradient.
char* simclr_drop_gradient(const at::Tensor* weight) {
    return simclr::guarded([&] { weight->mutable_grad().reset(); });
}

}  // extern "C"
