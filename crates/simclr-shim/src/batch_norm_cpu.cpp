// Batch norm by the CPU kernels: each pass reads its tensors once. Forward: moments, then normalise + residual + ReLU;
// backward: sums, then the gradient.

#include <vector>

#include "batch_norm.h"
#include "kernels.h"
#include "parallel.h"

namespace simclr {
namespace {

using Floats = std::vector<float>;
using Doubles = std::vector<double>;

// A tensor as a matrix of rows x channels.
struct Rows {
    Tensor tensor;
    Matrix matrix;

    const void* data(int64_t row) const { return static_cast<const char*>(tensor.const_data_ptr()) + row * width(); }
    void* out(int64_t row) const { return static_cast<char*>(tensor.mutable_data_ptr()) + row * width(); }
    int64_t width() const { return matrix.channels * static_cast<int64_t>(tensor.element_size()); }
};

Rows rows(Tensor tensor, at::ScalarType type) {
    at::MemoryFormat format = layout(tensor);
    if (tensor.scalar_type() != type) tensor = tensor.to(type);
    if (!tensor.is_contiguous(format)) tensor = tensor.contiguous(format);
    int64_t channels = tensor.size(1);
    Matrix matrix{channels == 0 ? 0 : tensor.numel() / channels, channels,
                  type == at::kFloat ? Element::F32 : Element::BF16};
    return {std::move(tensor), matrix};
}

Rows empty_like(const Rows& like) {
    return {at::empty(like.tensor.sizes(), like.tensor.options().memory_format(layout(like.tensor))),
            like.matrix};
}

// Row ranges that tasks process. They depend on the matrix size only, so sums do not depend on the number of threads.
struct Parts {
    int64_t rows, count;

    explicit Parts(const Matrix& matrix) {
        int64_t min_rows = 32768 / std::max<int64_t>(matrix.channels, 1) + 1;
        rows = std::max(matrix.rows / 64 + 1, min_rows);
        count = (matrix.rows + rows - 1) / rows;
    }
};

// Calls `task(part, first row, matrix of the part)`.
template <typename F>
void each_part(const Matrix& matrix, const F& task) {
    Parts parts(matrix);
    parallel(parts.count, [&](int64_t part) {
        int64_t first = part * parts.rows;
        task(part, first, Matrix{std::min(parts.rows, matrix.rows - first), matrix.channels, matrix.element});
    });
}

// Two sums per channel, as [2][C], over all rows: `add(first row, matrix, sums, more sums)` for each part.
template <typename F>
Doubles two_sums(const Matrix& matrix, const F& add) {
    int64_t channels = matrix.channels;
    Doubles partial(Parts(matrix).count * 2 * channels);
    each_part(matrix, [&](int64_t part, int64_t first, const Matrix& m) {
        double* sums = partial.data() + part * 2 * channels;
        add(first, m, sums, sums + channels);
    });
    Doubles total(2 * channels);
    for (size_t at = 0; at < partial.size(); at += total.size()) {
        for (size_t i = 0; i < total.size(); i++) total[i] += partial[at + i];
    }
    return total;
}

// Statistics per channel.
struct Moments {
    Doubles mean, variance;  // biased
    double count;            // rows of all participants
};

// The mean of a few rows spread over the matrix: deviations from it do not cancel.
Floats rough_mean(const Rows& x) {
    int64_t channels = x.matrix.channels, sampled = std::min<int64_t>(x.matrix.rows, 32);
    Doubles sums(2 * channels);
    Floats zero(channels), mean(channels);
    for (int64_t i = 0; i < sampled; i++) {
        int64_t row = i * (x.matrix.rows / sampled);
        kernels().moments({1, channels, x.matrix.element}, x.data(row), zero.data(), sums.data(), sums.data() + channels);
    }
    for (int64_t c = 0; c < channels; c++) mean[c] = static_cast<float>(sums[c] / std::max<int64_t>(sampled, 1));
    return mean;
}

Moments own_moments(const Rows& x) {
    int64_t channels = x.matrix.channels;
    double count = static_cast<double>(x.matrix.rows);
    Floats about = rough_mean(x);
    Doubles sums = two_sums(x.matrix, [&](int64_t first, const Matrix& m, double* sum, double* squares) {
        kernels().moments(m, x.data(first), about.data(), sum, squares);
    });
    Moments found{Doubles(channels), Doubles(channels), count};
    for (int64_t c = 0; c < channels; c++) {
        double distance = sums[c] / count;
        found.mean[c] = about[c] + distance;
        found.variance[c] = std::max(sums[channels + c] / count - distance * distance, 0.0);
    }
    return found;
}

// Sums f64 vectors over the participants, in f32.
void reduce(Doubles& values, const AllReduce& all_reduce) {
    Tensor sent = at::empty({static_cast<int64_t>(values.size())}, at::kFloat);
    float* numbers = sent.mutable_data_ptr<float>();
    for (size_t i = 0; i < values.size(); i++) numbers[i] = static_cast<float>(values[i]);
    all_reduce.sum(sent);
    for (size_t i = 0; i < values.size(); i++) values[i] = numbers[i];
}

// sum (x - m)^2 = sum (x - m_r)^2 + n_r (m_r - m)^2, summed over participants r.
Moments common_moments(const Moments& own, const AllReduce& all_reduce) {
    size_t channels = own.mean.size();
    int64_t count = static_cast<int64_t>(own.count);
    Doubles sums(channels + 2), squares(channels);
    for (size_t c = 0; c < channels; c++) sums[c] = own.count == 0 ? 0 : own.count * own.mean[c];
    sums[channels] = static_cast<double>(count / COUNT_UNIT);
    sums[channels + 1] = static_cast<double>(count % COUNT_UNIT);
    reduce(sums, all_reduce);
    Moments common{Doubles(channels), Doubles(channels), sums[channels] * COUNT_UNIT + sums[channels + 1]};
    for (size_t c = 0; c < channels; c++) {
        common.mean[c] = sums[c] / common.count;
        double distance = own.mean[c] - common.mean[c];
        squares[c] = own.count == 0 ? 0 : own.count * (own.variance[c] + distance * distance);
    }
    reduce(squares, all_reduce);
    for (size_t c = 0; c < channels; c++) common.variance[c] = squares[c] / common.count;
    return common;
}

void update_running(const Moments& found, const Inputs& in, double momentum) {
    if (momentum == 0) return;
    float* mean = in.running_mean.mutable_data_ptr<float>();
    float* variance = in.running_var.mutable_data_ptr<float>();
    double unbiased = found.count / std::max(found.count - 1, 1.0);
    for (size_t c = 0; c < found.mean.size(); c++) {
        mean[c] = static_cast<float>((1 - momentum) * mean[c] + momentum * found.mean[c]);
        variance[c] = static_cast<float>((1 - momentum) * variance[c] + momentum * unbiased * found.variance[c]);
    }
    in.running_mean.unsafeGetTensorImpl()->bump_version();
    in.running_var.unsafeGetTensorImpl()->bump_version();
}

Tensor normalise(const Rows& x, const Inputs& in, const Floats& factor, const Floats& offset, bool relu) {
    Rows y = empty_like(x), residual{};
    if (in.residual.defined()) residual = rows(in.residual, x.tensor.scalar_type());
    y.tensor.mutable_data_ptr();  // unshares the storage before the threads access it
    each_part(x.matrix, [&](int64_t, int64_t first, const Matrix& m) {
        const void* added = residual.tensor.defined() ? residual.data(first) : nullptr;
        kernels().normalise(m, x.data(first), added, factor.data(), offset.data(), relu, y.out(first));
    });
    return y.tensor;
}

struct FusedBackward : KernelBackward {
    // Mean, 1 / standard deviation, and the normalisation as x * factor + offset.
    Floats mean, inverse, factor, offset;
    double count;

    std::string name() const override { return "SimclrBatchNormBackward"; }

    // Gradients of x, residual, scale, shift; those of scale and shift over this participant's rows only.
    variable_list apply(variable_list&& grads) override {
        std::lock_guard<std::mutex> lock(mutex_);
        reject_second_derivative();
        at::NoGradGuard no_grad;
        variable_list out(4);
        auto [dy, of_branch] = of_handles(std::move(grads));
        if (!dy.defined()) return out;
        Tensor saved = x.unpack();
        Rows input = rows(saved, saved.scalar_type());
        Rows g = rows(std::move(dy), saved.scalar_type()), branch{};
        if (of_branch.defined()) branch = rows(std::move(of_branch), saved.scalar_type());
        Doubles sums = gated_by_output() ? sums_through_output(input, branch, g) : sums_of(input, g);
        if (task_should_compute_output(2)) out[2] = to_tensor(sums.data() + mean.size());
        if (task_should_compute_output(3)) out[3] = to_tensor(sums.data());
        if (all_reduce) reduce(sums, *all_reduce);
        bool wants_residual = residual && task_should_compute_output(1);
        if (task_should_compute_output(0)) {
            bool in_place = !wants_residual && exclusive(g.tensor);
            out[0] = gradient(input, g, relu && !gated_by_output(), sums, in_place);
        }
        if (wants_residual) out[1] = std::move(g.tensor);
        return out;
    }

   private:
    // sum g and sum g * normalised x. `dy` becomes g, the gradient at the input of the ReLU; `branch` may be undefined.
    Doubles sums_through_output(const Rows& input, const Rows& branch, Rows& dy) {
        Tensor output = y.unpack(shared_from_this());
        Rows above = rows(output, output.scalar_type()), g = exclusive(dy.tensor) ? std::move(dy) : empty_like(dy);
        const Rows& from = dy.tensor.defined() ? dy : g;
        g.tensor.mutable_data_ptr();
        Doubles sums = two_sums(input.matrix, [&](int64_t first, const Matrix& m, double* sum, double* products) {
            const void* added = branch.tensor.defined() ? branch.data(first) : nullptr;
            kernels().gradient_sums(m, input.data(first), from.data(first), added, above.data(first), mean.data(),
                                    nullptr, nullptr, g.out(first), sum, products);
        });
        dy = std::move(g);
        return normalised(std::move(sums));
    }

    // The same if the sign of the output follows from the input; `dy` is not modified.
    Doubles sums_of(const Rows& input, const Rows& dy) const {
        return normalised(two_sums(input.matrix, [&](int64_t first, const Matrix& m, double* sum, double* products) {
            kernels().gradient_sums(m, input.data(first), dy.data(first), nullptr, nullptr, mean.data(),
                                    relu ? factor.data() : nullptr, offset.data(), nullptr, sum, products);
        }));
    }

    Doubles normalised(Doubles sums) const {
        for (size_t c = 0; c < mean.size(); c++) sums[mean.size() + c] *= inverse[c];
        return sums;
    }

    Tensor to_tensor(const double* values) const {
        Tensor tensor = at::empty({static_cast<int64_t>(mean.size())}, at::kFloat);
        float* numbers = tensor.mutable_data_ptr<float>();
        for (size_t c = 0; c < mean.size(); c++) numbers[c] = static_cast<float>(values[c]);
        return tensor;
    }

    // factor * (g - mean g - normalised x * mean (g * normalised x)).
    Tensor gradient(const Rows& input, const Rows& g, bool gated, const Doubles& sums, bool in_place) const {
        size_t channels = mean.size();
        Floats q(channels), r(channels);
        for (size_t c = 0; c < channels; c++) {
            q[c] = static_cast<float>(-factor[c] * inverse[c] * sums[channels + c] / count);
            r[c] = static_cast<float>(-factor[c] * sums[c] / count);
        }
        Rows dx = in_place ? g : empty_like(g);
        dx.tensor.mutable_data_ptr();
        each_part(input.matrix, [&](int64_t, int64_t first, const Matrix& m) {
            kernels().gradient(m, input.data(first), g.data(first), mean.data(), gated ? factor.data() : nullptr,
                               offset.data(), factor.data(), q.data(), r.data(), dx.out(first));
        });
        return dx.tensor;
    }
};

// The normalisation as x * factor + offset.
void affine(const Inputs& in, const Floats& mean, const Floats& inverse, Floats& factor, Floats& offset) {
    const float *scale = in.scale.const_data_ptr<float>(), *shift = in.shift.const_data_ptr<float>();
    for (size_t c = 0; c < mean.size(); c++) {
        factor[c] = scale[c] * inverse[c];
        offset[c] = static_cast<float>(shift[c] - static_cast<double>(mean[c]) * factor[c]);
    }
}

}  // namespace

Tensor fused_batch_norm(const Inputs& in, const Options& options, std::shared_ptr<AllReduce> all_reduce) {
    auto node = std::make_shared<FusedBackward>();
    Tensor out;
    {
        at::NoGradGuard no_grad;
        Rows x = rows(in.x, in.x.scalar_type());
        Moments found = own_moments(x);
        if (all_reduce) found = common_moments(found, *all_reduce);
        update_running(found, in, options.momentum);
        size_t channels = found.mean.size();
        for (Floats* vector : {&node->mean, &node->inverse, &node->factor, &node->offset}) vector->resize(channels);
        for (size_t c = 0; c < channels; c++) {
            node->mean[c] = static_cast<float>(found.mean[c]);
            node->inverse[c] = static_cast<float>(1 / std::sqrt(found.variance[c] + options.epsilon));
        }
        affine(in, node->mean, node->inverse, node->factor, node->offset);
        node->count = found.count;
        out = normalise(x, in, node->factor, node->offset, options.relu != 0);
    }
    KernelBackward::attach(node, in, options, std::move(all_reduce), out);
    return out;
}

Tensor fused_inference(const Inputs& in, const Options& options) {
    at::NoGradGuard no_grad;
    size_t channels = static_cast<size_t>(in.x.size(1));
    const float* running = in.running_mean.const_data_ptr<float>();
    Floats mean(running, running + channels), inverse(channels), factor(channels), offset(channels);
    for (size_t c = 0; c < channels; c++) {
        inverse[c] = static_cast<float>(1 / std::sqrt(in.running_var.const_data_ptr<float>()[c] + options.epsilon));
    }
    affine(in, mean, inverse, factor, offset);
    return normalise(rows(in.x, in.x.scalar_type()), in, factor, offset, options.relu != 0);
}

}  // namespace simclr
