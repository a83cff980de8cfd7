// Batch norm by the kernels of gpu/batch_norm.cu: three launches forward, three backward, no device-to-host synchronisation.

#include <string>

#include "batch_norm.h"
#include "gpu/batch_norm.h"
#include "gpu/launch.h"

namespace simclr {
namespace {

// A matrix of activations, and how blocks cover it.
struct Rows {
    Tensor tensor;
    gpu::Cover cover;
    int packed;  // V
    const char* ending;

    void* data() const { return tensor.data_ptr(); }
    std::string kernel(const char* name) const { return std::string(name) + ending; }

    // `rows_each`: rows per thread, if there are enough for many blocks.
    gpu::Grid grid(int64_t rows_each) const {
        int64_t groups = (cover.channels + packed - 1) / packed, across = (groups + cover.lanes - 1) / cover.lanes;
        int64_t together = gpu::THREADS / cover.lanes * rows_each;
        int64_t down = std::min<int64_t>((cover.rows + together - 1) / together, MOST_BLOCKS / across + 1);
        return {static_cast<int32_t>(across), static_cast<int32_t>(std::max<int64_t>(down, 1))};
    }

    // 8 per multiprocessor of an H100 (132): full occupancy with few partial sums.
    static constexpr int64_t MOST_BLOCKS = 1056;
};

// Minimum rows per thread: fewer would add more partial sums than they save time.
constexpr int64_t ROWS_EACH = 8;

bool aligned(const Tensor& tensor) { return reinterpret_cast<uintptr_t>(tensor.const_data_ptr()) % 16 == 0; }

// A tensor of another type or layout is copied.
Rows rows(Tensor tensor, at::ScalarType type) {
    tensor = tensor.to(type).contiguous(layout(tensor));
    if (!aligned(tensor)) tensor = tensor.clone();
    int64_t channels = tensor.size(1);
    int wide = type == at::kFloat ? 4 : 8;
    bool packs = channels % wide == 0;
    int packed = packs ? wide : 1, lanes = 1;
    while (lanes * 2 <= gpu::THREADS && lanes < (channels + packed - 1) / packed) lanes *= 2;
    const char* ending = type == at::kFloat ? (packs ? "_f32" : "_f32_single") : (packs ? "_bf16" : "_bf16_single");
    gpu::Cover cover{channels == 0 ? 0 : tensor.numel() / channels, static_cast<int>(channels), lanes};
    return {std::move(tensor), cover, packed, ending};
}

Rows empty_like(const Rows& like) {
    Rows out = like;
    out.tensor = at::empty(like.tensor.sizes(), like.tensor.options().memory_format(layout(like.tensor)));
    return out;
}

const float* vector(const Tensor& tensor, int64_t row, int64_t channels) {
    return tensor.const_data_ptr<float>() + row * channels;
}

// Blocks that add up partial sums.
gpu::Grid by_channels(int channels) { return {(channels + gpu::CHANNELS_PER_BLOCK - 1) / gpu::CHANNELS_PER_BLOCK, 1}; }

// Fills `used` [4][C]: mean, 1 / standard deviation, factor, offset. Returns the rows of all participants, an f64 scalar;
// undefined without an all-reduce.
Tensor moments(const Rows& x, const Inputs& in, const Options& options, const AllReduce* all_reduce, const Tensor& used) {
    auto f32 = x.tensor.options().dtype(at::kFloat).memory_format(at::MemoryFormat::Contiguous);
    int channels = x.cover.channels;
    gpu::Grid grid = x.grid(ROWS_EACH);
    Tensor about = at::empty({channels}, f32), partial = at::empty({grid.y, 2, channels}, f32), own;
    if (all_reduce != nullptr) own = at::empty({2, channels}, f32.dtype(at::kDouble));
    gpu::Sums sums{x.cover, x.data(), about.mutable_data_ptr<float>(), partial.mutable_data_ptr<float>()};
    gpu::launch(x.kernel("norm_sums").c_str(), grid, &sums, x.tensor);
    gpu::Moments all{sums.about, sums.partial, grid.y, x.cover.rows, channels, in.scale.const_data_ptr<float>(),
                     in.shift.const_data_ptr<float>(), in.running_mean.mutable_data_ptr<float>(),
                     in.running_var.mutable_data_ptr<float>(), options.epsilon, options.momentum,
                     used.mutable_data_ptr<float>(), own.defined() ? own.mutable_data_ptr<double>() : nullptr};
    gpu::launch("norm_moments", by_channels(channels), &all, x.tensor);
    if (all_reduce == nullptr) return {};
    Common found = common_moments(own[0], own[1], x.cover.rows, *all_reduce);
    update_running(found, in, options.momentum);
    used[0].copy_(found.mean);
    used[1].copy_((found.variance + options.epsilon).rsqrt_());
    used[2].copy_(in.scale * used[1]);
    used[3].copy_(in.shift - used[0].to(at::kDouble) * used[2]);
    return found.count;
}

Tensor normalise(const Rows& x, const Inputs& in, const Tensor& used, bool relu) {
    Rows y = empty_like(x), residual{};
    if (in.residual.defined()) residual = rows(in.residual, x.tensor.scalar_type());
    int64_t channels = x.cover.channels;
    gpu::Normalise apply{x.cover, x.data(), in.residual.defined() ? residual.data() : nullptr, vector(used, 2, channels),
                         vector(used, 3, channels), relu, y.data()};
    gpu::launch(x.kernel("norm_apply").c_str(), x.grid(ROWS_EACH), &apply, x.tensor);
    return y.tensor;
}

struct GpuBackward : KernelBackward {
    Tensor used;   // [4][C]
    Tensor count;  // rows of all participants, or undefined

    std::string name() const override { return "SimclrGpuBatchNormBackward"; }

    // Gradients of x, residual, scale, shift; those of scale and shift over this participant's rows only.
    variable_list apply(variable_list&& grads) override {
        std::lock_guard<std::mutex> lock(mutex_);
        reject_second_derivative();
        at::NoGradGuard no_grad;
        variable_list out(4);
        auto [dy, of_branch] = of_handles(std::move(grads));
        if (!dy.defined()) return out;
        Tensor saved = x.unpack();
        Rows input = rows(saved, saved.scalar_type()), g = rows(std::move(dy), saved.scalar_type()), branch{};
        if (of_branch.defined()) branch = rows(std::move(of_branch), saved.scalar_type());
        Tensor parameters = at::empty_like(used.narrow(0, 0, 2)), coefficients = at::empty_like(parameters);
        sum(input, branch, g, parameters, coefficients);
        if (task_should_compute_output(2)) out[2] = parameters[0];
        if (task_should_compute_output(3)) out[3] = parameters[1];
        if (all_reduce) coefficients = common_coefficients(parameters);
        bool wants_residual = residual && task_should_compute_output(1);
        if (task_should_compute_output(0)) {
            Rows dx = !wants_residual && exclusive(g.tensor) ? g : empty_like(g);
            int64_t channels = input.cover.channels;
            gpu::Gradient gradient{input.cover, input.data(), g.data(), vector(used, 0, channels),
                                   vector(used, 2, channels), vector(used, 3, channels),
                                   vector(coefficients, 0, channels), vector(coefficients, 1, channels),
                                   relu && !gated_by_output(), dx.data()};
            gpu::launch(input.kernel("norm_gradient").c_str(), input.grid(ROWS_EACH), &gradient, input.tensor);
            out[0] = dx.tensor;
        }
        if (wants_residual) out[1] = std::move(g.tensor);
        return out;
    }

   private:
    // Gradients of scale and shift, and q and r of this participant's rows. If gated by the output, `g` becomes the gradient
    // at the input of the ReLU, with that of `branch` unless undefined.
    void sum(const Rows& input, const Rows& branch, Rows& g, const Tensor& parameters, const Tensor& coefficients) {
        int64_t channels = input.cover.channels;
        gpu::Grid grid = input.grid(ROWS_EACH);
        Tensor partial = at::empty({grid.y, 2, channels}, parameters.options()), output;
        Rows above{}, passed{};
        if (gated_by_output()) {
            output = y.unpack(shared_from_this());
            above = rows(output, output.scalar_type());
            passed = exclusive(g.tensor) ? g : empty_like(g);
        }
        gpu::GradientSums sums{input.cover, input.data(), g.data(), branch.tensor.defined() ? branch.data() : nullptr,
                               gated_by_output() ? above.data() : nullptr,
                               vector(used, 0, channels), vector(used, 2, channels), vector(used, 3, channels), relu,
                               gated_by_output() ? passed.data() : nullptr, partial.mutable_data_ptr<float>()};
        gpu::launch(input.kernel("norm_gradient_sums").c_str(), grid, &sums, input.tensor);
        gpu::GradientTotals all{sums.partial, grid.y, input.cover.rows, input.cover.channels, vector(used, 1, channels),
                                vector(used, 2, channels), parameters.mutable_data_ptr<float>(),
                                all_reduce ? nullptr : coefficients.mutable_data_ptr<float>()};
        gpu::launch("norm_gradient_totals", by_channels(input.cover.channels), &all, input.tensor);
        if (gated_by_output()) g = std::move(passed);
    }

    Tensor common_coefficients(const Tensor& parameters) const {
        Tensor sums = parameters.flip(0).contiguous().view(-1);  // sum g first, as every participant sends it
        all_reduce->sum(sums);
        Tensor all = sums.view({2, -1}).to(at::kDouble) / count;
        return at::stack({-used[2] * used[1] * all[1], -used[2] * all[0]}).to(at::kFloat);
    }
};

}  // namespace

Tensor gpu_batch_norm(const Inputs& in, const Options& options, std::shared_ptr<AllReduce> all_reduce) {
    auto node = std::make_shared<GpuBackward>();
    Tensor out;
    {
        at::NoGradGuard no_grad;
        Rows x = rows(in.x, in.x.scalar_type());
        node->used = at::empty({4, x.cover.channels}, in.scale.options());
        node->count = moments(x, in, options, all_reduce.get(), node->used);
        in.running_mean.unsafeGetTensorImpl()->bump_version();
        in.running_var.unsafeGetTensorImpl()->bump_version();
        out = normalise(x, in, node->used, options.relu != 0);
    }
    KernelBackward::attach(node, in, options, std::move(all_reduce), out);
    return out;
}

}  // namespace simclr
