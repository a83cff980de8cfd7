// GPU kernels: NVRTC compiles them once per process and device, the CUDA driver launches them. Both libraries are dependencies
// of libcaffe2_nvrtc.so, which is installed next to libtorch_cuda.so; a CPU build of libtorch has neither.

#include "launch.h"

#include <c10/core/Stream.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <dlfcn.h>

#include <atomic>
#include <map>
#include <mutex>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "../guard.h"
#include "../record.h"
#include "device.h"

namespace simclr {
namespace gpu {
namespace {

// The functions in use, as nvrtc.h and cuda.h (CUDA 13) declare them, with void* handles and int error codes.
struct Library {
    int (*create)(void** program, const char* source, const char* name, int headers, const char* const* texts,
                  const char* const* names);
    int (*compile)(void* program, int count, const char* const* options);
    int (*log_size)(void* program, size_t* size);
    int (*log)(void* program, char* log);
    int (*binary_size)(void* program, size_t* size);
    int (*binary)(void* program, char* binary);
    int (*destroy)(void** program);
    int (*load)(void** module, const void* image);
    int (*function)(void** function, void* module, const char* name);
    int (*launch)(void* function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x, unsigned block_y,
                 unsigned block_z, unsigned shared, void* stream, void** arguments, void** extra);
    int (*error)(int number, const char** text);
    int (*attribute)(int* value, int attribute, int device);
};

template <typename F>
void find(void* handle, const char* name, F& function) {
    function = reinterpret_cast<F>(dlsym(handle, name));
    if (function == nullptr) throw std::runtime_error(std::string("no ") + name + " in CUDA's libraries");
}

Library open_library(const char* file) {
    void* handle = dlopen(file, RTLD_NOW | RTLD_GLOBAL);
    if (handle == nullptr) throw std::runtime_error(dlerror());
    Library library{};
    find(handle, "nvrtcCreateProgram", library.create);
    find(handle, "nvrtcCompileProgram", library.compile);
    find(handle, "nvrtcGetProgramLogSize", library.log_size);
    find(handle, "nvrtcGetProgramLog", library.log);
    find(handle, "nvrtcGetCUBINSize", library.binary_size);
    find(handle, "nvrtcGetCUBIN", library.binary);
    find(handle, "nvrtcDestroyProgram", library.destroy);
    find(handle, "cuModuleLoadData", library.load);
    find(handle, "cuModuleGetFunction", library.function);
    find(handle, "cuLaunchKernel", library.launch);
    find(handle, "cuGetErrorString", library.error);
    find(handle, "cuDeviceGetAttribute", library.attribute);
    return library;
}

// The first source is compiled; the others are its headers.
struct Sources {
    std::vector<std::string> names, texts;
};

// The cubin for an architecture such as sm_90; throws the compiler's log.
std::vector<char> compile(const Library& library, const Sources& sources, const std::string& architecture) {
    std::vector<const char*> names, texts;
    for (size_t i = 1; i < sources.names.size(); i++) {
        names.push_back(sources.names[i].c_str());
        texts.push_back(sources.texts[i].c_str());
    }
    void* program = nullptr;
    if (library.create(&program, sources.texts[0].c_str(), sources.names[0].c_str(), static_cast<int>(names.size()),
                       texts.data(), names.data()) != 0) {
        throw std::runtime_error("nvrtcCreateProgram failed");
    }
    std::string target = "--gpu-architecture=" + architecture;
    const char* options[] = {target.c_str(), "--std=c++17"};
    int failed = library.compile(program, 2, options);
    size_t size = 0;
    std::string log;
    std::vector<char> binary;
    if (failed != 0) {
        library.log_size(program, &size);
        log.resize(size);
        library.log(program, &log[0]);
    } else {
        library.binary_size(program, &size);
        binary.resize(size);
        library.binary(program, binary.data());
    }
    library.destroy(&program);
    if (failed != 0) throw std::runtime_error("NVRTC: " + log.substr(0, log.find('\0')));
    return binary;
}

// Modules by device, kernels by device and name.
struct Kernels {
    Library library;
    std::map<int, void*> modules;
    std::map<std::pair<int, std::string>, void*> functions;
    std::mutex mutex;
};

Kernels& loaded() {
    static Kernels all;
    return all;
}

// Bit d: the kernels of GPU d are loaded and enabled.
std::atomic<uint64_t> enabled{0};
// 0: off; 1, 2: emulation with threads in rising and in falling order.
thread_local int emulation = 0;

void check(const Library& library, int result, const char* doing) {
    if (result == 0) return;
    const char* text = nullptr;
    library.error(result, &text);
    throw std::runtime_error(std::string(doing) + ": " + (text == nullptr ? "unknown error" : text));
}

// Compute capability as cuDeviceGetAttribute numbers it: major 75, minor 76.
std::string architecture(const Library& library, int device) {
    int major = 0, minor = 0;
    check(library, library.attribute(&major, 75, device), "compute capability");
    check(library, library.attribute(&minor, 76, device), "compute capability");
    return "sm_" + std::to_string(major) + std::to_string(minor);
}

void prepare(const char* file, const Sources& sources, const at::Tensor& like) {
    c10::impl::VirtualGuardImpl guard(like.device().type());
    guard.setDevice(like.device());
    int device = like.device().index();
    Kernels& all = loaded();
    std::lock_guard<std::mutex> lock(all.mutex);
    if (all.modules.count(device) != 0) return;
    all.library = open_library(file);
    std::vector<char> binary = compile(all.library, sources, architecture(all.library, device));
    void* module = nullptr;
    check(all.library, all.library.load(&module, binary.data()), "loading kernels");
    all.modules[device] = module;
    if (device < 64) enabled |= uint64_t{1} << device;
}

void* function(const char* kernel, int device) {
    Kernels& all = loaded();
    std::lock_guard<std::mutex> lock(all.mutex);
    void*& found = all.functions[{device, kernel}];
    if (found == nullptr) check(all.library, all.library.function(&found, all.modules.at(device), kernel), kernel);
    return found;
}

}  // namespace

bool kernels_available(const at::Tensor& tensor) {
    if (tensor.is_cpu()) return emulation != 0;
    int device = tensor.device().index();
    return tensor.is_cuda() && device < 64 && (enabled.load() >> device & 1) != 0;
}

void launch(const char* kernel, Grid grid, const void* arguments, const at::Tensor& like) {
    if (grid.x <= 0 || grid.y <= 0) return;
    Recorded recorded(kernel, {});
    if (like.is_cpu()) return emulate(kernel, grid, arguments, emulation == 2);
    c10::Device device = like.device();
    c10::impl::VirtualGuardImpl guard(device.type());
    guard.setDevice(device);
    void* stream = guard.getStream(device).native_handle();
    void* list[] = {const_cast<void*>(arguments)};
    check(loaded().library,
          loaded().library.launch(function(kernel, device.index()), grid.x, grid.y, 1, THREADS, 1, 1, 0, stream, list,
                                 nullptr),
          kernel);
}

}  // namespace gpu
}  // namespace simclr

using namespace simclr;

namespace {

gpu::Sources sources(const char* const* names, const char* const* texts, size_t count) {
    return {{names, names + count}, {texts, texts + count}};
}

}  // namespace

extern "C" {

// Compiles and loads the kernels for the GPU of `like`; `library` is libcaffe2_nvrtc.so.
char* simclr_gpu_prepare(const char* library, const char* const* names, const char* const* texts, size_t count,
                         const at::Tensor* like) {
    return guarded([&] { gpu::prepare(library, sources(names, texts, count), *like); });
}

// Disables the kernels for the GPU of `like`.
void simclr_gpu_disable(const at::Tensor* like) {
    int device = like->device().index();
    if (device >= 0 && device < 64) gpu::enabled &= ~(uint64_t{1} << device);
}

// Compiles for `architecture` and discards the result, to check the sources without a GPU.
char* simclr_gpu_compile(const char* library, const char* const* names, const char* const* texts, size_t count,
                         const char* architecture, size_t* size) {
    return guarded([&] {
        *size = gpu::compile(gpu::open_library(library), sources(names, texts, count), architecture).size();
    });
}

// 0: off; 1 and 2: this thread's CPU tensors use emulated kernels, with threads in rising and in falling order. Returns the
// previous setting.
int simclr_gpu_emulate(int order) { return std::exchange(gpu::emulation, order); }

int simclr_gpu_kernels_available(const at::Tensor* like) { return gpu::kernels_available(*like) ? 1 : 0; }

}  // extern "C"
