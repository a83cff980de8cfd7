// Arguments of an optimizer step, shared by the CPU and the GPU implementation.
#pragma once

#include <ATen/ATen.h>

namespace simclr {

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
    int bias_correction;
    double lr, decay, momentum, trust;
    double beta1, beta2, eps, max_norm;
    int64_t steps;
};

// Whether the numbers lie in the same order in memory.
inline bool same_layout(const at::Tensor& a, const at::Tensor& b) {
    if (a.sizes() != b.sizes()) return false;
    for (int64_t d = 0; d < a.dim(); d++) {
        if (a.size(d) > 1 && a.stride(d) != b.stride(d)) return false;
    }
    return true;
}

// The gradient of a weight in the weight's layout; none where there is none.
inline at::Tensor gradient_like(const at::Tensor& weight) {
    at::Tensor gradient = weight.grad();
    if (gradient.defined() && !same_layout(gradient, weight)) gradient = at::empty_like(weight).copy_(gradient);
    return gradient;
}

// The numbers of `tensor`, which is laid out like `weight` and lies beside it.
inline float* numbers(const at::Tensor& tensor, const at::Tensor& weight) {
    TORCH_CHECK(tensor.scalar_type() == at::kFloat && tensor.device() == weight.device() && same_layout(tensor, weight) &&
                    tensor.is_non_overlapping_and_dense(),
                "optimizer: expected f32 on ", weight.device(), " in the weight's layout, got ", tensor.scalar_type(),
                " on ", tensor.device(), " of ", tensor.sizes(), ", strides ", tensor.strides());
    return tensor.mutable_data_ptr<float>();
}

// Where trust ratios go: null, or room for `count` of them.
inline double* ratios(const at::Tensor* trust_ratios, size_t count) {
    if (trust_ratios == nullptr) return nullptr;
    TORCH_CHECK(trust_ratios->numel() >= static_cast<int64_t>(count) && trust_ratios->is_contiguous(),
                "optimizer: expected room for ", count, " trust ratios, got ", trust_ratios->sizes());
    return trust_ratios->mutable_data_ptr<double>();
}

// Autograd sees that the saved value of a weight is gone; its gradient is dropped.
inline void changed(const at::Tensor& weight) {
    weight.unsafeGetTensorImpl()->bump_version();
    weight.mutable_grad().reset();
}

}  // namespace simclr
