// See `in_parallel` in parallel.rs.

#include "parallel.h"

#include <algorithm>
#include <atomic>

#include "guard.h"
#include "record.h"

extern "C" {

// Calls `task(context, i)` for i in 0 .. tasks; a thread that is free takes the next one. `task` does not throw.
char* simclr_in_parallel(int64_t tasks, void (*task)(void* context, int64_t i), void* context) {
    return simclr::guarded([&] {
        simclr::Recorded recorded("in_parallel", {});
        std::atomic<int64_t> next{0};
        simclr::parallel(std::min<int64_t>(at::get_num_threads(), tasks), [&](int64_t) {
            for (int64_t i = next++; i < tasks; i = next++) task(context, i);
        });
    });
}

}  // extern "C"
