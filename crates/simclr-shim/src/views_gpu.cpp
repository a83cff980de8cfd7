// Views by the kernels of gpu/view_*.cu: resize, AutoAugment, means, colour, two passes of the blur, filters, and noise. There is no device-to-host
// synchronisation, and the launches depend on sizes and configuration only, so a CUDA graph can capture them.

#include <ATen/ATen.h>

#include <limits>
#include <stdexcept>
#include <string>

#include "gpu/launch.h"
#include "gpu/views.h"
#include "guard.h"

namespace simclr {
namespace {

using at::Tensor;

// As `COptions` of views.rs.
struct ViewOptions {
    int64_t channels, side;
    int cubic, antialias, gray_mean, policies, blurs, filters, noise;
};

int64_t parts(int64_t work, int64_t each) { return std::max<int64_t>((work + each - 1) / each, 1); }

// The same number of blocks for every view, all in x.
gpu::Grid grid(int64_t views, int64_t blocks, int64_t down = 1) {
    if (views * blocks > std::numeric_limits<int32_t>::max()) throw std::runtime_error("too many views for a launch");
    return {static_cast<int32_t>(views * blocks), static_cast<int32_t>(down)};
}

std::string of_channels(const char* kernel, int64_t channels) {
    return std::string(kernel) + (channels == 1 ? "_1" : channels == 3 ? "_3" : "_any");
}

struct ViewKernels {
    const gpu::View* views;
    int64_t count;
    ViewOptions options;
    Tensor out;  // [B, S, S, C]

    float* values() const { return out.mutable_data_ptr<float>(); }
    int side() const { return static_cast<int>(options.side); }
    int channels() const { return static_cast<int>(options.channels); }

    void resize(const Tensor& pixels) const {
        int64_t across = parts(side(), gpu::TILE_COLUMNS), tiles = across * parts(side(), gpu::TILE_ROWS);
        gpu::Resize resize{pixels.const_data_ptr<uint8_t>(), views, channels(), side(), options.cubic,
                           options.antialias, static_cast<int>(tiles), values()};
        gpu::Grid blocks = grid(count, tiles, parts(channels(), gpu::GROUP));
        gpu::launch(of_channels("view_resize", channels()).c_str(), blocks, &resize, out);
    }

    // Views without operations return at once, as in the blur.
    void policy() const {
        Tensor between = at::empty_like(out);
        Tensor tables = at::empty({count, channels(), gpu::THREADS}, out.options().dtype(at::kByte));
        float* ends[] = {values(), between.mutable_data_ptr<float>()};
        int blocks = static_cast<int>(parts(options.side * options.side, gpu::THREADS * 4));
        for (int number = 0; number < gpu::MOST_STEPS; number++) {
            gpu::Policy policy{views, channels(), side(), blocks, number, ends[number % 2],
                               tables.mutable_data_ptr<uint8_t>(), ends[(number + 1) % 2]};
            gpu::launch("view_policy_table", grid(count, channels()), &policy, out);
            gpu::launch("view_policy_step", grid(count, blocks), &policy, out);
        }
    }

    // Means take more pixels per thread, so that there are few partial sums to add up.
    void recolour() const {
        int64_t area = options.side * options.side;
        int sums = static_cast<int>(parts(area, gpu::THREADS * 12));
        int blocks = static_cast<int>(parts(area, gpu::THREADS * 4));
        Tensor partial = at::empty({count, sums, channels()}, out.options());
        int clips = options.antialias ? 0 : 1;
        gpu::Means means{views, channels(), side(), sums, clips, values(), partial.mutable_data_ptr<float>()};
        gpu::launch(of_channels("view_means", channels()).c_str(), grid(count, sums), &means, out);
        gpu::Recolour recolour{views, channels(), side(), sums, blocks, options.gray_mean, clips,
                               partial.const_data_ptr<float>(), values()};
        gpu::launch(of_channels("view_recolour", channels()).c_str(), grid(count, blocks), &recolour, out);
    }

    void blur() const {
        Tensor between = at::empty_like(out);
        float* middle = between.mutable_data_ptr<float>();
        int64_t row = options.side * options.channels;
        int64_t along = parts(options.side * row, gpu::THREADS * 16);
        int64_t down = parts(parts(side(), gpu::RUN) * row, gpu::THREADS * 2);
        gpu::Blur rows{views, channels(), side(), static_cast<int>(along), values(), middle};
        gpu::launch("view_blur_rows", grid(count, along), &rows, out);
        gpu::Blur columns{views, channels(), side(), static_cast<int>(down), middle, values()};
        gpu::launch("view_blur_columns", grid(count, down), &columns, out);
    }

    // Views without these operators return at once, as in the blur.
    void filter() const {
        Tensor between = at::empty_like(out);
        float* other = between.mutable_data_ptr<float>();
        int64_t area = options.side * options.side;
        auto run = [&](const char* kernel, int64_t blocks, const float* in, float* to) {
            gpu::Filter filter{views, channels(), side(), static_cast<int>(blocks), in, to};
            gpu::launch(kernel, grid(count, blocks), &filter, out);
        };
        run("view_motion", parts(area * channels(), gpu::THREADS * 4), values(), other);
        run("view_equalize", channels(), other, values());
        run("view_edges", parts(area, gpu::THREADS * 4), values(), other);
        run("view_finish", parts(area * channels(), gpu::THREADS * 16), other, values());
    }

    // A thread draws 16 values.
    void noise() const {
        int blocks = static_cast<int>(parts(options.side * options.side * channels(), gpu::THREADS * 16));
        gpu::Noise noise{views, channels(), side(), blocks, values()};
        gpu::launch("view_noise", grid(count, blocks), &noise, out);
    }
};

Tensor views(const Tensor& pixels, const Tensor& table, const ViewOptions& options) {
    if (!gpu::kernels_available(pixels)) throw std::runtime_error("no kernels for the device of these pixels");
    int64_t count = table.numel() / static_cast<int64_t>(sizeof(gpu::View));
    Tensor out = at::empty({count, options.side, options.side, options.channels}, pixels.options().dtype(at::kFloat));
    ViewKernels kernels{reinterpret_cast<const gpu::View*>(table.const_data_ptr<uint8_t>()), count, options, out};
    kernels.resize(pixels);
    if (options.policies) kernels.policy();
    kernels.recolour();
    if (options.blurs) kernels.blur();
    if (options.filters) kernels.filter();
    if (options.noise) kernels.noise();
    return out.permute({0, 3, 1, 2});
}

}  // namespace
}  // namespace simclr

using namespace simclr;

extern "C" {

// Views [B, C, S, S], channels last, of `pixels` (bytes) by `table` (bytes of B structs View), both on one device. The caller
// has checked that every view lies within the pixels, and the limits on channels and side.
char* simclr_gpu_views(const at::Tensor* pixels, const at::Tensor* table, const ViewOptions* options,
                       at::Tensor** out) {
    return guarded([&] { *out = new at::Tensor(views(*pixels, *table, *options)); });
}

// Size of the struct, checked against views.rs by a test.
size_t simclr_gpu_view_size() { return sizeof(gpu::View); }

}  // extern "C"
