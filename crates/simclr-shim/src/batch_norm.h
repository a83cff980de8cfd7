// Batch norm (+ addition of a residual) (+ ReLU) as one node of the autograd graph, whose statistics may be those of
// several members: chunks of a batch, processes, or both. Arithmetic and statistics are f32 whatever the input's type.
//
// Members combine their statistics as google-research/simclr resnet.py does: the mean of all, then the variances of all
// plus the squared distances of their means from it; weighted by row counts, as members may hold different numbers.
#pragma once

#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/saved_variable.h>
#include <torch/csrc/autograd/variable.h>
#include <ATen/ATen.h>

#include <cmath>
#include <memory>
#include <mutex>
#include <stdexcept>

#include "guard.h"

namespace simclr {

using at::Tensor;
using torch::autograd::Node;
using torch::autograd::SavedVariable;
using torch::autograd::variable_list;

// Adds a tensor up over all members, in place. It takes the tensor handle over; a message means failure.
using Sum = char* (*)(void* context, Tensor* values);
using Drop = void (*)(void* context);

// The members. The graph shares it, so it lives until the last backward pass has run or been dropped.
struct Exchange {
    void* context;
    Sum call;
    Drop drop;

    Exchange(void* context, Sum call, Drop drop) : context(context), call(call), drop(drop) {}
    Exchange(const Exchange&) = delete;
    Exchange& operator=(const Exchange&) = delete;
    ~Exchange() { drop(context); }

    void sum(const Tensor& values) const {
        if (char* failure = call(context, new Tensor(values))) {
            std::string text(failure);
            std::free(failure);
            throw std::runtime_error("exchange of batch-norm statistics: " + text);
        }
    }
};

// Counts are sent as two numbers, since f32 holds whole numbers only up to 2^24 and a batch may have more positions.
constexpr int64_t COUNT_UNIT = 4096;

struct Inputs {
    const Tensor& x;         // [B, C] or [B, C, H, W]
    const Tensor& residual;  // like x, or undefined
    const Tensor& scale;     // [C], as all that follow
    const Tensor& shift;
    const Tensor& running_mean;
    const Tensor& running_var;
};

// As `COptions` of batch_norm.rs.
struct Options {
    double epsilon;
    double momentum;
    int batch;     // statistics of the batch, else the running ones
    int relu;
    int composed;  // of libtorch's operations even where there are kernels
};

// The nodes' common ground. `inputs` of the graph are x, residual, scale, shift.
inline void connect(const std::shared_ptr<Node>& node, const Inputs& in, Tensor& out) {
    node->set_next_edges(torch::autograd::collect_next_edges(in.x, in.residual, in.scale, in.shift));
    torch::autograd::set_history(out, node);
}

inline bool needs_graph(const Inputs& in) {
    return torch::autograd::compute_requires_grad(in.x, in.residual, in.scale, in.shift);
}

inline void refuse_second_derivative() {
    if (at::GradMode::is_enabled()) throw std::runtime_error("batch norm has no second derivative here");
}

// Channels innermost.
inline at::MemoryFormat layout(const Tensor& tensor) {
    return tensor.dim() == 4 ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::Contiguous;
}

// Whether nobody else can see the tensor's values, so that they may be overwritten.
inline bool exclusive(const Tensor& tensor) {
    return tensor.use_count() == 1 && tensor.storage().use_count() == 1 && !tensor.requires_grad();
}

// The node of a batch norm by kernels, whatever the device. Of the activations only the input is kept, and the output where a
// residual was added, which the next convolution keeps anyway; behind a ReLU alone the sign of the output is computed anew.
struct KernelBackward : Node {
    SavedVariable x, y;
    bool relu, residual;
    std::shared_ptr<Exchange> exchange;

    bool gated_by_output() const { return relu && residual; }

    void release_variables() override {
        std::lock_guard<std::mutex> lock(mutex_);
        x.reset_data();
        y.reset_data();
    }

    // Makes `node` the one of `out`, where gradients are wanted.
    static void attach(const std::shared_ptr<KernelBackward>& node, const Inputs& in, const Options& options,
                       std::shared_ptr<Exchange> exchange, Tensor& out) {
        if (!needs_graph(in)) return;
        node->x = SavedVariable(in.x, false);
        node->relu = options.relu != 0;
        node->residual = in.residual.defined();
        node->exchange = std::move(exchange);
        connect(node, in, out);
        if (node->gated_by_output()) node->y = SavedVariable(out, true);
    }
};

// What the members' batches come to together.
struct Common {
    Tensor mean;      // [C]
    Tensor variance;  // [C], biased
    Tensor count;     // rows of all members, f64, no dimension; on the device, so that nothing waits for it
};

// From what this member's rows come to, `mean` and biased `variance` [C].
Common common_moments(const Tensor& mean, const Tensor& variance, int64_t rows, const Exchange& exchange);

void update_running(const Common& found, const Inputs& in, double momentum);

// Any device, by libtorch's operations.
Tensor composed_batch_norm(const Inputs& in, const Options& options, std::shared_ptr<Exchange> exchange);

// CPU, f32 and bf16, by kernels.h.
Tensor fused_batch_norm(const Inputs& in, const Options& options, std::shared_ptr<Exchange> exchange);

// Where gpu::serves, f32 and bf16, by gpu/batch_norm.cu.
Tensor gpu_batch_norm(const Inputs& in, const Options& options, std::shared_ptr<Exchange> exchange);

// relu(x * factor + offset + residual) by the running statistics, without a graph; CPU as above.
Tensor fused_inference(const Inputs& in, const Options& options);

}  // namespace simclr
