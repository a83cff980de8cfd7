// Chooses the build of kernels.cpp for this machine.

#include <atomic>
#include <cstring>
#include <stdexcept>
#include <string>

#include "guard.h"
#include "kernels.h"

namespace simclr {

extern const Kernels kernels_baseline;
#ifdef __x86_64__
extern const Kernels kernels_avx2, kernels_avx512;
#endif

namespace {

// Best first; nullptr if the machine lacks the instructions.
const Kernels* offered(int rank) {
#ifdef __x86_64__
    __builtin_cpu_init();
    if (rank == 0) {
        bool has = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                   __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
        return has ? &kernels_avx512 : nullptr;
    }
    if (rank == 1) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? &kernels_avx2 : nullptr;
#endif
    return rank == 2 ? &kernels_baseline : nullptr;
}

const Kernels* best() {
    for (int rank = 0;; rank++) {
        if (const Kernels* found = offered(rank)) return found;
    }
}

std::atomic<const Kernels*>& chosen() {
    static std::atomic<const Kernels*> kernels{best()};
    return kernels;
}

}  // namespace

const Kernels& kernels() { return *chosen().load(std::memory_order_relaxed); }

}  // namespace simclr

extern "C" {

// Instruction set of the kernels in use.
char* simclr_instructions() {
    return simclr::text_or_null([] { return std::string(simclr::kernels().name); });
}

// Switches to the kernels of another instruction set; fails if there are none or the machine lacks the instructions.
char* simclr_use_instructions(const char* name) {
    return simclr::guarded([&] {
        for (int rank = 0; rank < 3; rank++) {
            const simclr::Kernels* found = simclr::offered(rank);
            if (found != nullptr && std::strcmp(found->name, name) == 0) {
                simclr::chosen().store(found);
                return;
            }
        }
        throw std::runtime_error(std::string("no kernels for ") + name + " on this machine");
    });
}

}  // extern "C"
