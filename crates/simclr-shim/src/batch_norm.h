// Batch norm (+ addition of a residual) (+ ReLU) as one node of the autograd graph, with statistics that may be all-reduced
// over several participants: chunks of a batch, processes, or both. Arithmetic and statistics are f32 for every input type.
//
// Participants combine their statistics as google-research/simclr resnet.py does: the common mean, then all variances plus
// the squared distances of the means from it; weighted by row counts, which may differ.
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
#include <utility>

#include "guard.h"

namespace simclr {

using at::Tensor;
using torch::autograd::Node;
using torch::autograd::SavedVariable;
using torch::autograd::variable_list;

// Sums a tensor over all participants, in place. It takes ownership of the handle; a non-null result is an error message.
using Sum = char* (*)(void* context, Tensor* values);
using Drop = void (*)(void* context);

// The all-reduce of the statistics. The graph shares it, so it lives until the last backward pass has run or been dropped.
struct AllReduce {
    void* context;
    Sum call;
    Drop drop;

    AllReduce(void* context, Sum call, Drop drop) : context(context), call(call), drop(drop) {}
    AllReduce(const AllReduce&) = delete;
    AllReduce& operator=(const AllReduce&) = delete;
    ~AllReduce() { drop(context); }

    void sum(const Tensor& values) const {
        if (char* failure = call(context, new Tensor(values))) {
            std::string text(failure);
            std::free(failure);
            throw std::runtime_error("all-reduce of batch-norm statistics: " + text);
        }
    }
};

// Counts are sent as two values: f32 represents integers exactly only up to 2^24, and a batch may have more positions.
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
    int via_aten;  // by ATen operations even if there are kernels
};

// The node's inputs are x, residual, scale, shift.
inline void connect(const std::shared_ptr<Node>& node, const Inputs& in, Tensor& out) {
    node->set_next_edges(torch::autograd::collect_next_edges(in.x, in.residual, in.scale, in.shift));
    torch::autograd::set_history(out, node);
}

inline bool needs_graph(const Inputs& in) {
    return torch::autograd::compute_requires_grad(in.x, in.residual, in.scale, in.shift);
}

inline void reject_second_derivative() {
    if (at::GradMode::is_enabled()) throw std::runtime_error("batch norm has no second derivative here");
}

// The memory format with channels innermost.
inline at::MemoryFormat layout(const Tensor& tensor) {
    return tensor.dim() == 4 ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::Contiguous;
}

// Whether the values are not shared, so that they may be overwritten.
inline bool exclusive(const Tensor& tensor) {
    return tensor.use_count() == 1 && tensor.storage().use_count() == 1 && !tensor.requires_grad();
}

// The autograd node of a batch norm by kernels, on any device. It saves the input, and the output only if a residual was added
// (the next convolution saves it anyway); after a ReLU alone the sign of the output is recomputed. Its results are the output and, after
// `branch`, a second handle to it.
struct KernelBackward : Node {
    SavedVariable x, y;
    bool relu, residual;
    std::shared_ptr<AllReduce> all_reduce;

    bool gated_by_output() const { return relu && residual; }

    void release_variables() override {
        std::lock_guard<std::mutex> lock(mutex_);
        x.reset_data();
        y.reset_data();
    }

    // The gradients of both handles. The second is undefined if only one of them was used, both if none was.
    static std::pair<Tensor, Tensor> of_handles(variable_list&& grads) {
        Tensor first = std::move(grads[0]), second = grads.size() > 1 ? std::move(grads[1]) : Tensor();
        if (!first.defined()) std::swap(first, second);
        return {std::move(first), std::move(second)};
    }

    // Makes `node` the gradient function of `out`, if gradients are needed.
    static void attach(const std::shared_ptr<KernelBackward>& node, const Inputs& in, const Options& options,
                       std::shared_ptr<AllReduce> all_reduce, Tensor& out) {
        if (!needs_graph(in)) return;
        node->x = SavedVariable(in.x, false);
        node->relu = options.relu != 0;
        node->residual = in.residual.defined();
        node->all_reduce = std::move(all_reduce);
        connect(node, in, out);
        if (node->gated_by_output()) node->y = SavedVariable(out, true);
    }
};

// Statistics over all participants.
struct Common {
    Tensor mean;      // [C]
    Tensor variance;  // [C], biased
    Tensor count;     // rows of all participants, f64 scalar; on the device, to avoid synchronisation
};

// From this participant's `mean` and biased `variance` [C].
Common common_moments(const Tensor& mean, const Tensor& variance, int64_t rows, const AllReduce& all_reduce);

void update_running(const Common& found, const Inputs& in, double momentum);

// Any device, by ATen operations.
Tensor aten_batch_norm(const Inputs& in, const Options& options, std::shared_ptr<AllReduce> all_reduce);

// CPU, f32 and bf16, by kernels.h.
Tensor fused_batch_norm(const Inputs& in, const Options& options, std::shared_ptr<AllReduce> all_reduce);

// If gpu::kernels_available, f32 and bf16, by gpu/batch_norm.cu.
Tensor gpu_batch_norm(const Inputs& in, const Options& options, std::shared_ptr<AllReduce> all_reduce);

// relu(x * factor + offset + residual) with the running statistics, without a graph; CPU as above.
Tensor fused_inference(const Inputs& in, const Options& options);

}  // namespace simclr
