// Chooses the implementation of a batch norm; the implementation by ATen operations.

#include "batch_norm.h"
#include "gpu/launch.h"
#include "record.h"

namespace simclr {
namespace {

// [B, C] unchanged, [B, C, H, W] as [B * H * W, C]: a view if channels are innermost.
Tensor rows(const Tensor& x) {
    return x.dim() == 2 ? x : x.permute({0, 2, 3, 1}).reshape({-1, x.size(1)});
}

// Inverse of `rows`.
Tensor shaped(const Tensor& rows, at::IntArrayRef shape) {
    if (shape.size() == 2) return rows;
    return rows.view({shape[0], shape[2], shape[3], shape[1]}).permute({0, 3, 1, 2});
}

Common moments(const Tensor& x, const AllReduce* all_reduce) {
    Tensor mean = x.mean(0), variance = (x - mean).square_().mean(0);
    if (all_reduce != nullptr) return common_moments(mean, variance, x.size(0), *all_reduce);
    return {mean, variance, at::scalar_tensor(x.size(0), x.options().dtype(at::kDouble))};
}

struct AtenBackward : Node {
    SavedVariable x, y, scale;
    Common found;
    double epsilon;
    bool relu;
    std::shared_ptr<AllReduce> all_reduce;

    std::string name() const override { return "SimclrAtenBatchNormBackward"; }

    void release_variables() override {
        std::lock_guard<std::mutex> lock(mutex_);
        x.reset_data();
        y.reset_data();
        scale.reset_data();
    }

    // Gradients of x, residual, scale, shift; those of scale and shift over this participant's rows only.
    variable_list apply(variable_list&& grads) override {
        std::lock_guard<std::mutex> lock(mutex_);
        reject_second_derivative();
        variable_list out(4);
        if (!grads[0].defined()) return out;
        Tensor input = x.unpack(), dy = rows(grads[0]);
        if (relu) dy = dy * (rows(y.unpack(shared_from_this())) > 0);
        Tensor inverse = (found.variance + epsilon).rsqrt_(), g = dy.to(at::kFloat);
        Tensor normalised = (rows(input).to(at::kFloat) - found.mean) * inverse;
        Tensor sums = at::stack({g.sum(0), (g * normalised).sum(0)});
        if (task_should_compute_output(2)) out[2] = sums[1].clone();
        if (task_should_compute_output(3)) out[3] = sums[0].clone();
        if (all_reduce) all_reduce->sum(sums.view(-1));
        sums = sums / found.count;
        if (task_should_compute_output(0)) {
            Tensor dx = (g - sums[0] - normalised * sums[1]) * (inverse * scale.unpack());
            out[0] = shaped(dx.to(input.scalar_type()), input.sizes());
        }
        if (task_should_compute_output(1)) out[1] = shaped(dy, input.sizes());
        return out;
    }
};

// libtorch's batch norm with its own autograd node.
Tensor libtorch_batch_norm(const Inputs& in, const Options& options) {
    Tensor y = at::batch_norm(in.x, in.scale, in.shift, in.running_mean, in.running_var, options.batch != 0,
                              options.momentum, options.epsilon, true);
    if (in.residual.defined()) y.add_(in.residual);  // in place: batch norm saves its input, not its output
    if (options.relu != 0) y.relu_();
    return y;
}

void check_shapes(const Inputs& in) {
    const Tensor& x = in.x;
    TORCH_CHECK(x.dim() == 2 || x.dim() == 4, "batch norm: expected [B, C] or [B, C, H, W], got ", x.sizes());
    for (const Tensor& vector : {in.scale, in.shift, in.running_mean, in.running_var}) {
        TORCH_CHECK(vector.dim() == 1 && vector.size(0) == x.size(1) && vector.scalar_type() == at::kFloat &&
                        vector.is_contiguous(),
                    "batch norm: expected f32 vectors of ", x.size(1), " channels, got ", vector.sizes());
    }
    TORCH_CHECK(!in.residual.defined() || in.residual.sizes() == x.sizes(), "batch norm: expected a residual of ",
                x.sizes(), ", got ", in.residual.sizes());
}

Tensor batch_norm(const Inputs& in, const Options& options, std::shared_ptr<AllReduce> all_reduce) {
    check_shapes(in);
    Recorded recorded("batch_norm", {in.x, in.residual});
    bool has_kernels = options.via_aten == 0 &&
                       (in.x.scalar_type() == at::kFloat || in.x.scalar_type() == at::kBFloat16);
    if (has_kernels && options.batch != 0 && gpu::kernels_available(in.x)) {
        return gpu_batch_norm(in, options, std::move(all_reduce));
    }
    bool cpu_kernels = has_kernels && in.x.is_cpu();
    if (options.batch == 0) {
        return cpu_kernels && !needs_graph(in) ? fused_inference(in, options) : libtorch_batch_norm(in, options);
    }
    if (cpu_kernels) return fused_batch_norm(in, options, std::move(all_reduce));
    // Without an all-reduce, cuDNN is faster than ATen operations.
    if (all_reduce == nullptr && options.via_aten == 0) return libtorch_batch_norm(in, options);
    return aten_batch_norm(in, options, std::move(all_reduce));
}

// A second handle to `y` as a further result of its node, which sums the gradients of both in its kernel; else `y`.
Tensor branch(const Tensor& y) {
    const std::shared_ptr<Node> node = y.grad_fn();
    auto norm = dynamic_cast<KernelBackward*>(node.get());
    constexpr size_t HANDLES = 2;
    if (norm == nullptr || !norm->gated_by_output() || norm->num_inputs() == HANDLES) return y;
    Tensor second = y.detach();
    torch::autograd::set_history(second, node);
    return second;
}

}  // namespace

Common common_moments(const Tensor& mean, const Tensor& variance, int64_t rows, const AllReduce& all_reduce) {
    int64_t channels = mean.size(0);
    Tensor sums = at::zeros({channels + 2}, mean.options().dtype(at::kFloat)), squares = sums.narrow(0, 0, channels);
    if (rows > 0) squares.copy_(mean * rows);  // without rows the mean is NaN
    sums[channels].fill_(rows / COUNT_UNIT);
    sums[channels + 1].fill_(rows % COUNT_UNIT);
    all_reduce.sum(sums);
    Tensor count = sums[channels].to(at::kDouble) * COUNT_UNIT + sums[channels + 1];
    Tensor common = sums.narrow(0, 0, channels) / count;
    // sum (x - m)^2 = sum (x - m_r)^2 + n_r (m_r - m)^2, summed over participants r.
    squares = at::zeros_like(common);
    if (rows > 0) squares.copy_((variance + (mean - common).square_()) * rows);
    all_reduce.sum(squares);
    return {common, squares / count, count};
}

void update_running(const Common& found, const Inputs& in, double momentum) {
    if (momentum == 0) return;
    Tensor unbiased = found.variance * (found.count / (found.count - 1).clamp_min_(1));
    in.running_mean.mul_(1 - momentum).add_(found.mean, momentum);
    in.running_var.mul_(1 - momentum).add_(unbiased, momentum);
}

Tensor aten_batch_norm(const Inputs& in, const Options& options, std::shared_ptr<AllReduce> all_reduce) {
    Common found;
    Tensor out;
    {
        at::NoGradGuard no_grad;
        Tensor values = rows(in.x).to(at::kFloat);
        found = moments(values, all_reduce.get());
        update_running(found, in, options.momentum);
        Tensor factor = (found.variance + options.epsilon).rsqrt_() * in.scale;
        Tensor y = (values - found.mean) * factor + in.shift;
        if (in.residual.defined()) y += rows(in.residual);
        if (options.relu != 0) y.relu_();
        out = shaped(y.to(in.x.scalar_type()), in.x.sizes());
    }
    if (!needs_graph(in)) return out;
    auto node = std::make_shared<AtenBackward>();
    node->x = SavedVariable(in.x, false);
    node->scale = SavedVariable(in.scale, false);
    node->found = found;
    node->epsilon = options.epsilon;
    node->relu = options.relu != 0;
    node->all_reduce = std::move(all_reduce);
    connect(node, in, out);
    if (node->relu) node->y = SavedVariable(out, true);
    return out;
}

}  // namespace simclr

extern "C" {

// See `BatchNorm` in batch_norm.rs. `residual` and `call` may be null. With `call`, `context` is dropped when the graph no
// longer needs it, on failure too.
char* simclr_batch_norm(const at::Tensor* x, const at::Tensor* residual, const at::Tensor* scale,
                        const at::Tensor* shift, const at::Tensor* running_mean, const at::Tensor* running_var,
                        const simclr::Options* options, void* context, simclr::Sum call, simclr::Drop drop,
                        at::Tensor** out) {
    return simclr::guarded([&] {
        std::shared_ptr<simclr::AllReduce> all_reduce;
        if (call != nullptr) all_reduce = std::make_shared<simclr::AllReduce>(context, call, drop);
        at::Tensor none;
        simclr::Inputs in{*x, residual == nullptr ? none : *residual, *scale, *shift, *running_mean, *running_var};
        *out = new at::Tensor(simclr::batch_norm(in, *options, std::move(all_reduce)));
    });
}

// See `branch` in batch_norm.rs.
char* simclr_branch(const at::Tensor* y, at::Tensor** out) {
    return simclr::guarded([&] { *out = new at::Tensor(simclr::branch(*y)); });
}

}  // extern "C"
