// 2x2 max-pooling with stride 2 on the CPU. libtorch's saves 8 bytes a value of the result for the backward pass and spends 15 % of a step
// of conv-c4 on it; this saves one, and gives the same bits.

#include <ATen/ATen.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/variable.h>

#include <memory>
#include <mutex>
#include <stdexcept>

#include "guard.h"
#include "kernels.h"
#include "parallel.h"
#include "record.h"

namespace simclr {
namespace {

using at::Tensor;
using torch::autograd::Node;
using torch::autograd::variable_list;

constexpr auto LAST = at::MemoryFormat::ChannelsLast;

// Images [B, C, H, W] with channels innermost, and what pooling makes of them.
struct Pooling {
    int64_t images, channels, height, width, out_height, out_width;
    Element element;

    explicit Pooling(const Tensor& x)
        : images(x.size(0)), channels(x.size(1)), height(x.size(2)), width(x.size(3)), out_height(height / 2), out_width(width / 2),
          element(x.scalar_type() == at::kFloat ? Element::F32 : Element::BF16) {}

    int64_t value_bytes() const { return element == Element::F32 ? 4 : 2; }
    Matrix row() const { return {out_width, channels, element}; }

    // Calls `task(first value of the row of the result, first value of the upper row of the input)` for every row of the result.
    template <typename F>
    void each_row(const F& task) const {
        parallel(images, [&](int64_t image) {
            for (int64_t y = 0; y < out_height; y++) {
                task((image * out_height + y) * out_width * channels, (image * height + 2 * y) * width * channels);
            }
        });
    }
};

struct MaxPoolBackward : Node {
    Tensor which;
    at::TensorOptions options;
    std::vector<int64_t> shape;

    std::string name() const override { return "SimclrMaxPoolBackward"; }

    void release_variables() override {
        std::lock_guard<std::mutex> lock(mutex_);
        which.reset();
    }

    variable_list apply(variable_list&& grads) override {
        std::lock_guard<std::mutex> lock(mutex_);
        if (at::GradMode::is_enabled()) throw std::runtime_error("this max-pooling has no second derivative");
        if (!grads[0].defined()) return {Tensor()};
        if (!which.defined()) throw std::runtime_error("the graph of a max-pooling was freed");
        at::NoGradGuard no_grad;
        Tensor dy = grads[0].to(options.dtype().toScalarType()).contiguous(LAST);
        // The last row and column of an odd size are in no window.
        bool odd = shape[2] % 2 != 0 || shape[3] % 2 != 0;
        Tensor dx = at::empty(shape, options, LAST);
        if (odd) dx.zero_();
        Pooling pooling(dx);
        int64_t bytes = pooling.value_bytes(), below = pooling.width * pooling.channels * bytes;
        auto from = static_cast<const char*>(dy.const_data_ptr());
        auto to = static_cast<char*>(dx.mutable_data_ptr());
        const uint8_t* numbers = which.const_data_ptr<uint8_t>();
        pooling.each_row([&](int64_t out, int64_t in) {
            char* top = to + in * bytes;
            kernels().max_pool_gradient(pooling.row(), from + out * bytes, numbers + out, top, top + below);
        });
        return {dx};
    }
};

Tensor max_pool_on_cpu(const Tensor& input) {
    Recorded recorded("max_pool", {input});
    Tensor x = input.detach().contiguous(LAST);
    Pooling pooling(x);
    std::vector<int64_t> shape{pooling.images, pooling.channels, pooling.out_height, pooling.out_width};
    bool differentiable = torch::autograd::compute_requires_grad(input);
    Tensor y = at::empty(shape, x.options(), LAST), which;
    if (differentiable) which = at::empty({y.numel()}, x.options().dtype(at::kByte));
    uint8_t* numbers = differentiable ? which.mutable_data_ptr<uint8_t>() : nullptr;
    int64_t bytes = pooling.value_bytes(), below = pooling.width * pooling.channels * bytes;
    auto from = static_cast<const char*>(x.const_data_ptr());
    auto to = static_cast<char*>(y.mutable_data_ptr());
    pooling.each_row([&](int64_t out, int64_t in) {
        const char* top = from + in * bytes;
        kernels().max_pool(pooling.row(), top, top + below, to + out * bytes, numbers == nullptr ? nullptr : numbers + out);
    });
    if (differentiable) {
        auto node = std::make_shared<MaxPoolBackward>();
        node->which = which;
        node->options = x.options();
        node->shape = x.sizes().vec();
        node->set_next_edges(torch::autograd::collect_next_edges(input));
        torch::autograd::set_history(y, node);
    }
    return y;
}

bool has_kernels(const Tensor& x) {
    bool type = x.scalar_type() == at::kFloat || x.scalar_type() == at::kBFloat16;
    return x.is_cpu() && type && x.dim() == 4 && x.numel() > 0 && x.size(2) >= 2 && x.size(3) >= 2;
}

}  // namespace
}  // namespace simclr

extern "C" {

// See `max_pool` in max_pool.rs.
char* simclr_max_pool(const at::Tensor* x, at::Tensor** out) {
    return simclr::guarded([&] {
        *out = new at::Tensor(simclr::has_kernels(*x) ? simclr::max_pool_on_cpu(*x) : at::max_pool2d(*x, {2, 2}));
    });
}

}  // extern "C"
