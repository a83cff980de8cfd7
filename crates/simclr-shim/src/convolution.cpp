// Convolutions on the CPU with the gradient of the kernel as one matrix product where that is faster. oneDNN reaches 0.4 to 0.6 TFLOP/s
// there in bf16 without AMX where its product of matrices has 0.9 (bench/results/step-account.txt, kernel-gradient.txt).

#include <ATen/ATen.h>
#include <ATen/cpu/Utils.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/variable.h>

#include <cstring>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <tuple>

#include "guard.h"
#include "parallel.h"
#include "record.h"

namespace simclr {
namespace {

using at::Tensor;
using torch::autograd::Node;
using torch::autograd::variable_list;

constexpr auto LAST = at::MemoryFormat::ChannelsLast;

// A square kernel [O, C, k, k] over images [B, C, H, W].
struct Shape {
    int64_t kernel, stride, padding;

    int64_t out(int64_t side) const { return (side + 2 * padding - kernel) / stride + 1; }
};

// The values of x [B, C, H, W] (channels last) under the kernel, [B out(H) out(W), k k C].
Tensor columns(const Tensor& x, const Shape& shape) {
    const int64_t images = x.size(0), channels = x.size(1), height = x.size(2), width = x.size(3), kernel = shape.kernel;
    const int64_t out_height = shape.out(height), out_width = shape.out(width);
    Tensor all = at::empty({images * out_height * out_width, kernel * kernel * channels}, x.options().memory_format(c10::nullopt));
    const size_t bytes = channels * x.element_size();
    auto from = static_cast<const char*>(x.const_data_ptr());
    auto to = static_cast<char*>(all.mutable_data_ptr());
    parallel(images * out_height, [&](int64_t row) {
        const int64_t image = row / out_height, first_y = row % out_height * shape.stride - shape.padding;
        char* next = to + row * out_width * kernel * kernel * bytes;
        for (int64_t out_x = 0; out_x < out_width; out_x++) {
            const int64_t first_x = out_x * shape.stride - shape.padding;
            for (int64_t y = first_y; y < first_y + kernel; y++) {
                for (int64_t at = first_x; at < first_x + kernel; at++, next += bytes) {
                    const bool inside = y >= 0 && y < height && at >= 0 && at < width;
                    if (inside) std::memcpy(next, from + ((image * height + y) * width + at) * bytes, bytes);
                    else std::memset(next, 0, bytes);
                }
            }
        }
    });
    return all;
}

Tensor kernel_gradient(const Tensor& x, const Tensor& dy, const Shape& shape) {
    Recorded recorded("convolution_kernel_gradient", {x, dy});
    const int64_t in = x.size(1), out = dy.size(1), kernel = shape.kernel;
    const Tensor rows = dy.permute({0, 2, 3, 1}).reshape({-1, out});
    const bool is_copy = kernel == 1 && shape.stride == 1 && shape.padding == 0;
    const Tensor taps = is_copy ? x.permute({0, 2, 3, 1}).reshape({-1, in}) : columns(x, shape);
    return rows.t().mm(taps).view({out, kernel, kernel, in}).permute({0, 3, 1, 2});
}

struct ConvolutionBackward : Node {
    Tensor x, weight;
    Shape shape;

    std::string name() const override { return "SimclrConvolutionBackward"; }

    void release_variables() override {
        std::lock_guard<std::mutex> lock(mutex_);
        x.reset();
        weight.reset();
    }

    variable_list apply(variable_list&& grads) override {
        std::lock_guard<std::mutex> lock(mutex_);
        if (at::GradMode::is_enabled()) throw std::runtime_error("this convolution has no second derivative");
        if (!grads[0].defined()) return {Tensor(), Tensor()};
        if (!x.defined()) throw std::runtime_error("the graph of a convolution was freed");
        at::NoGradGuard no_grad;
        const Tensor dy = grads[0].to(x.scalar_type()).contiguous(LAST);
        Tensor dx, dweight;
        if (task_should_compute_output(0)) {
            const std::vector<int64_t> stride(2, shape.stride), padding(2, shape.padding);
            dx = std::get<0>(at::convolution_backward(
                dy, x, weight, c10::nullopt, stride, padding, {1, 1}, false, {0, 0}, 1, {true, false, false}));
        }
        if (task_should_compute_output(1)) dweight = kernel_gradient(x, dy, shape);
        return {dx, dweight};
    }
};

bool has(const char* instructions) {
    const auto all = at::cpu::get_cpu_capabilities();
    const auto found = all.find(instructions);
    return found != all.end() && found->second.isBool() && found->second.toBool();
}

// Measured on a processor with AVX512-BF16 and without AMX: oneDNN's gradient is slow at few positions, and with many channels of the
// result the copy of the images to columns is small against the product.
bool product_is_faster(const Tensor& x, const Tensor& weight, const Shape& shape) {
    constexpr int64_t FEW_POSITIONS = 49, MANY_CHANNELS = 128;
    static const bool measured = has("avx512_bf16") && !has("amx_bf16");
    if (!measured || x.scalar_type() != at::kBFloat16) return false;
    const int64_t positions = shape.out(x.size(2)) * shape.out(x.size(3));
    return positions <= FEW_POSITIONS && weight.size(0) >= MANY_CHANNELS;
}

Tensor convolution(const Tensor& input, const Tensor& kernel, const Shape& shape, bool by_product) {
    const bool usable = input.is_cpu() && input.dim() == 4 && kernel.dim() == 4 && torch::autograd::compute_requires_grad(kernel);
    if (!usable || !(by_product || product_is_faster(input, kernel, shape))) {
        return at::conv2d(input, kernel, {}, shape.stride, shape.padding);
    }
    const Tensor x = input.detach().contiguous(LAST), weight = kernel.detach();
    const Tensor y = at::conv2d(x, weight, {}, shape.stride, shape.padding);
    auto node = std::make_shared<ConvolutionBackward>();
    node->x = x;
    node->weight = weight;
    node->shape = shape;
    node->set_next_edges(torch::autograd::collect_next_edges(input, kernel));
    torch::autograd::set_history(y, node);
    return y;
}

}  // namespace
}  // namespace simclr

extern "C" {

// See `conv2d` in convolution.rs. `by_product`: the gradient of the kernel is a matrix product in any case.
char* simclr_convolution(
    const at::Tensor* x, const at::Tensor* weight, int64_t stride, int64_t padding, int by_product, at::Tensor** out) {
    return simclr::guarded([&] {
        const simclr::Shape shape{weight->size(-1), stride, padding};
        *out = new at::Tensor(simclr::convolution(*x, *weight, shape, by_product != 0));
    });
}

}  // extern "C"
