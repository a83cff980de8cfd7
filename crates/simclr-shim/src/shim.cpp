// Calls of libtorch that tch lacks, behind a C interface. Functions that can fail return an error message (guard.h); functions
// that return a text return one to be freed with simclr_free, or nullptr.

#include <ATen/Version.h>
#include <ATen/autocast_mode.h>
#include <dlfcn.h>
#include <torch/script.h>
#include <torch/version.h>

#include <cstdlib>
#include <string>

#include "guard.h"

using simclr::guarded;
using simclr::message;
using simclr::text_or_null;

namespace {

// Turns autocast on for one scope, and clears its weight cache at the end, as torch.autocast does.
struct Autocast {
    c10::DeviceType device;
    bool was_enabled;
    at::ScalarType was_type;
    Autocast(c10::DeviceType device, at::ScalarType type)
        : device(device),
          was_enabled(at::autocast::is_autocast_enabled(device)),
          was_type(at::autocast::get_autocast_dtype(device)) {
        at::autocast::set_autocast_enabled(device, true);
        at::autocast::set_autocast_dtype(device, type);
        at::autocast::increment_nesting();
    }
    ~Autocast() {
        if (at::autocast::decrement_nesting() == 0) at::autocast::clear_cache();
        at::autocast::set_autocast_enabled(device, was_enabled);
        at::autocast::set_autocast_dtype(device, was_type);
    }
};

}  // namespace

extern "C" {

void simclr_free(char* text) { std::free(text); }

// A copy of `text` to be freed with simclr_free: the format of error messages that Rust callbacks return.
char* simclr_message(const char* text) { return message(text); }

// The directory of the loaded libtorch_cpu.
char* simclr_libtorch_folder() {
    return text_or_null([] {
        Dl_info info;
        bool (*symbol)(c10::DeviceType) = &at::autocast::is_autocast_enabled;
        if (dladdr(reinterpret_cast<void*>(symbol), &info) == 0 || info.dli_fname == nullptr) return std::string();
        std::string path(info.dli_fname);
        size_t slash = path.rfind('/');
        return slash == std::string::npos ? std::string(".") : path.substr(0, slash);
    });
}

// The version of the headers that this file was compiled with.
char* simclr_libtorch_version() { return text_or_null([] { return std::string(TORCH_VERSION); }); }

// The instruction set of libtorch's own CPU kernels: DEFAULT, AVX2, AVX512, ...
char* simclr_cpu_capability() { return text_or_null([] { return at::get_cpu_capability(); }); }

char* simclr_module_load(const char* path, torch::jit::Module** out) {
    return guarded([&] { *out = new torch::jit::Module(torch::jit::load(path, c10::Device(c10::kCPU))); });
}

void simclr_module_free(torch::jit::Module* module) { delete module; }

char* simclr_module_to(torch::jit::Module* module, const torch::Tensor* like) {
    return guarded([&] { module->to(like->device()); });
}

char* simclr_module_forward(torch::jit::Module* module, const torch::Tensor* images, int train, int bf16,
                            torch::Tensor** out) {
    return guarded([&] {
        module->train(train != 0);
        c10::IValue result;
        if (bf16 != 0) {
            Autocast scope(images->device().type(), at::kBFloat16);
            result = module->forward({*images});
        } else {
            result = module->forward({*images});
        }
        if (!result.isTensor()) throw std::runtime_error("the module does not return one tensor");
        *out = new torch::Tensor(result.toTensor());
    });
}

// Calls `visit` for every parameter (buffers = 0) or buffer (buffers = 1); `visit` takes ownership of the tensor.
char* simclr_module_tensors(torch::jit::Module* module, int buffers, void* context,
                            void (*visit)(void*, const char*, torch::Tensor*)) {
    return guarded([&] {
        auto each = [&](const auto& list) {
            for (const auto& item : list) visit(context, item.name.c_str(), new torch::Tensor(item.value));
        };
        if (buffers != 0) each(module->named_buffers());
        else each(module->named_parameters());
    });
}

}  // extern "C"
