// Batch norm (+ addition of a residual) (+ ReLU) as one node of the autograd graph, whose statistics may be those of
// several members: chunks of a batch, processes, or both. Arithmetic and statistics are f32 whatever the input's type.
//
// Members combine their statistics as google-research/simclr resnet.py does: the mean of all, then the variances of all
// plus the squared distances of their means from it; weighted by row counts, as members may hold different numbers.

#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/saved_variable.h>
#include <torch/csrc/autograd/variable.h>
#include <torch/torch.h>

#include <memory>
#include <mutex>

#include "guard.h"

namespace {

using torch::Tensor;
using torch::autograd::Node;
using torch::autograd::SavedVariable;
using torch::autograd::variable_list;

// Adds a tensor up over all members, in place. It takes the tensor handle over; a message means failure.
using Sum = char* (*)(void* context, Tensor* values);
using Drop = void (*)(void* context);

// The members, or nobody. The graph shares it, so it lives until the last backward pass has run or been dropped.
struct Exchange {
    void* context;
    Sum call;
    Drop drop;

    Exchange(void* context, Sum call, Drop drop) : context(context), call(call), drop(drop) {}
    Exchange(const Exchange&) = delete;
    Exchange& operator=(const Exchange&) = delete;
    ~Exchange() { drop(context); }

    void sum(Tensor& values) const {
        if (char* failure = call(context, new Tensor(values))) {
            std::string text(failure);
            std::free(failure);
            throw std::runtime_error("exchange of batch-norm statistics: " + text);
        }
    }
};

// Counts are sent as two numbers, since f32 holds whole numbers only up to 2^24 and a batch may have more positions.
constexpr double COUNT_UNIT = 4096;

// [B, C] as it is, [B, C, H, W] as [B * H * W, C]: a view where channels are innermost.
Tensor rows(const Tensor& x) {
    return x.dim() == 2 ? x : x.permute({0, 2, 3, 1}).reshape({-1, x.size(1)});
}

// The way back.
Tensor shaped(const Tensor& rows, at::IntArrayRef shape) {
    if (shape.size() == 2) return rows;
    return rows.view({shape[0], shape[2], shape[3], shape[1]}).permute({0, 3, 1, 2});
}

// What one normalisation used.
struct Moments {
    Tensor mean;      // [C]
    Tensor variance;  // [C], biased
    Tensor count;     // rows of all members, f64, no dimension; on the device, so that nothing waits for it
};

Moments moments(const Tensor& x, const Exchange* exchange) {
    int64_t own = x.size(0), channels = x.size(1);
    Tensor count = at::scalar_tensor(static_cast<double>(own), x.options().dtype(at::kDouble));
    if (exchange == nullptr) {
        Tensor mean = x.mean(0);
        return {mean, (x - mean).square_().mean(0), count};
    }
    Tensor sums = at::empty({channels + 2}, x.options());
    sums[channels].fill_(std::floor(own / COUNT_UNIT));
    sums[channels + 1].fill_(own - std::floor(own / COUNT_UNIT) * COUNT_UNIT);
    sums.narrow(0, 0, channels).copy_(x.sum(0));
    exchange->sum(sums);
    count = sums[channels].to(at::kDouble) * COUNT_UNIT + sums[channels + 1].to(at::kDouble);
    Tensor mean = sums.narrow(0, 0, channels) / count;
    // About the common mean at once: sum (x - m)^2 = sum (x - m_r)^2 + n_r (m_r - m)^2.
    Tensor squares = (x - mean).square_().sum(0);
    exchange->sum(squares);
    return {mean, squares / count, count};
}

void update_running(const Moments& found, const Tensor& running_mean, const Tensor& running_var, double momentum) {
    if (momentum == 0) return;
    Tensor unbiased = found.variance * (found.count / (found.count - 1).clamp_min_(1));
    running_mean.mul_(1 - momentum).add_(found.mean, momentum);
    running_var.mul_(1 - momentum).add_(unbiased, momentum);
}

struct BatchNormBackward : Node {
    SavedVariable x, y, scale;
    Moments found;
    double epsilon;
    bool relu;
    std::shared_ptr<Exchange> exchange;

    std::string name() const override { return "SimclrBatchNormBackward"; }

    void release_variables() override {
        std::lock_guard<std::mutex> lock(mutex_);
        x.reset_data();
        y.reset_data();
        scale.reset_data();
    }

    // Gradients of x, residual, scale, shift. Those of scale and shift are this member's share.
    variable_list apply(variable_list&& grads) override {
        std::lock_guard<std::mutex> lock(mutex_);
        if (at::GradMode::is_enabled()) throw std::runtime_error("batch norm has no second derivative here");
        variable_list out(4);
        if (!grads[0].defined()) return out;
        Tensor input = x.unpack();
        Tensor values = rows(input), dy = rows(grads[0]);
        if (relu) dy = dy * (rows(y.unpack(shared_from_this())) > 0);
        Tensor inverse = (found.variance + epsilon).rsqrt_(), g = dy.to(at::kFloat);
        Tensor normalised = (values.to(at::kFloat) - found.mean) * inverse;
        Tensor sums = at::stack({g.sum(0), (g * normalised).sum(0)});
        if (task_should_compute_output(2)) out[2] = sums[1].clone();
        if (task_should_compute_output(3)) out[3] = sums[0].clone();
        if (exchange) {
            Tensor flat = sums.view(-1);
            exchange->sum(flat);
        }
        sums = sums / found.count;
        if (task_should_compute_output(0)) {
            Tensor dx = (g - sums[0] - normalised * sums[1]) * (inverse * scale.unpack());
            out[0] = shaped(dx.to(input.scalar_type()), input.sizes());
        }
        if (task_should_compute_output(1)) out[1] = shaped(dy, input.sizes());
        return out;
    }
};

void check_shapes(const Tensor& x, const Tensor& residual, at::TensorList vectors) {
    TORCH_CHECK(x.dim() == 2 || x.dim() == 4, "batch norm: expected [B, C] or [B, C, H, W], got ", x.sizes());
    for (const Tensor& vector : vectors) {
        TORCH_CHECK(vector.dim() == 1 && vector.size(0) == x.size(1) && vector.scalar_type() == at::kFloat,
                    "batch norm: expected f32 vectors of ", x.size(1), " channels, got ", vector.sizes());
    }
    TORCH_CHECK(!residual.defined() || residual.sizes() == x.sizes(), "batch norm: expected a residual of ", x.sizes(),
                ", got ", residual.sizes());
}

struct Options {
    double epsilon;
    double momentum;
    int relu;
};

Tensor forward(const Tensor& x, const Tensor& residual, const Tensor& scale, const Tensor& shift,
               const Tensor& running_mean, const Tensor& running_var, const Options& options,
               std::shared_ptr<Exchange> exchange) {
    check_shapes(x, residual, {scale, shift, running_mean, running_var});
    Moments found;
    Tensor out;
    {
        at::NoGradGuard no_grad;
        Tensor values = rows(x).to(at::kFloat);
        found = moments(values, exchange.get());
        update_running(found, running_mean, running_var, options.momentum);
        Tensor factor = (found.variance + options.epsilon).rsqrt_() * scale;
        Tensor y = (values - found.mean) * factor + shift;
        if (residual.defined()) y += rows(residual);
        if (options.relu != 0) y.relu_();
        out = shaped(y.to(x.scalar_type()), x.sizes());
    }
    if (!torch::autograd::compute_requires_grad(x, residual, scale, shift)) return out;
    auto node = std::make_shared<BatchNormBackward>();
    node->set_next_edges(torch::autograd::collect_next_edges(x, residual, scale, shift));
    node->x = SavedVariable(x, false);
    node->scale = SavedVariable(scale, false);
    node->found = found;
    node->epsilon = options.epsilon;
    node->relu = options.relu != 0;
    node->exchange = std::move(exchange);
    torch::autograd::set_history(out, node);
    if (node->relu) node->y = SavedVariable(out, true);
    return out;
}

}  // namespace

extern "C" {

// Batch norm of `x` on the statistics of the batch; see `BatchNorm::forward` in batch_norm.rs. `residual` may be null.
// `call` may be null, else `context` is dropped when the graph no longer needs it, on failure too.
char* simclr_batch_norm(const Tensor* x, const Tensor* residual, const Tensor* scale, const Tensor* shift,
                        const Tensor* running_mean, const Tensor* running_var, const Options* options, void* context, Sum call,
                        Drop drop, Tensor** out) {
    return simclr::guarded([&] {
        std::shared_ptr<Exchange> exchange;
        if (call != nullptr) exchange = std::make_shared<Exchange>(context, call, drop);
        *out = new Tensor(forward(*x, residual == nullptr ? Tensor() : *residual, *scale, *shift, *running_mean,
                                  *running_var, *options, std::move(exchange)));
    });
}

}  // extern "C"
