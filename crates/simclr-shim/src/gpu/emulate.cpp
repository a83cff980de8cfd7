// See emulate.h. The threads of a block are contexts of one OS thread; a barrier switches to the next.

#include "device.h"

#include <ucontext.h>

#include <map>
#include <mutex>
#include <stdexcept>
#include <string>
#include <vector>

namespace simclr {
namespace gpu {

Place place;

namespace {

constexpr size_t STACK = 64 * 1024;

std::map<std::string, Body>& bodies() {
    static std::map<std::string, Body> all;
    return all;
}

// The running block.
struct Block {
    ucontext_t home;
    std::vector<ucontext_t> threads{THREADS};
    std::vector<char> stacks = std::vector<char>(THREADS * STACK);
    std::vector<bool> ended{std::vector<bool>(THREADS)};
    Body body;
    const void* arguments;
};
Block* running;

void run_thread() {
    running->body(running->arguments);
    running->ended[place.thread] = true;
    swapcontext(&running->threads[place.thread], &running->home);
}

// Runs from barrier to barrier until all threads have returned.
void run_block(Block& block, bool backwards) {
    for (int i = 0; i < THREADS; i++) {
        getcontext(&block.threads[i]);
        block.threads[i].uc_stack.ss_sp = &block.stacks[i * STACK];
        block.threads[i].uc_stack.ss_size = STACK;
        block.threads[i].uc_link = nullptr;
        makecontext(&block.threads[i], run_thread, 0);
        block.ended[i] = false;
    }
    for (int left = THREADS; left > 0;) {
        int before = left;
        for (int i = 0; i < THREADS; i++) {
            place.thread = backwards ? THREADS - 1 - i : i;
            if (block.ended[place.thread]) continue;
            swapcontext(&block.home, &block.threads[place.thread]);
            if (block.ended[place.thread]) left--;
        }
        // On a GPU, a barrier that some threads skip is undefined behaviour.
        if (left > 0 && left < before) throw std::runtime_error("a barrier that some threads of a block never reach");
    }
}

}  // namespace

Emulated::Emulated(const char* name, Body body) { bodies()[name] = body; }

void barrier() { swapcontext(&running->threads[place.thread], &running->home); }

void emulate(const char* kernel, Grid grid, const void* arguments, bool backwards) {
    static std::mutex one_at_a_time;
    std::lock_guard<std::mutex> lock(one_at_a_time);
    auto found = bodies().find(kernel);
    if (found == bodies().end()) throw std::runtime_error(std::string("no kernel ") + kernel);
    static Block block;
    block.body = found->second, block.arguments = arguments;
    running = &block;
    int64_t blocks = static_cast<int64_t>(grid.x) * grid.y;
    for (int64_t i = 0; i < blocks; i++) {
        int64_t number = backwards ? blocks - 1 - i : i;
        place.block_x = static_cast<int>(number % grid.x), place.block_y = static_cast<int>(number / grid.x);
        place.blocks_x = grid.x, place.blocks_y = grid.y;
        run_block(block, backwards);
    }
}

}  // namespace gpu
}  // namespace simclr

#include "batch_norm.cu"
#include "optimizer.cu"
#include "view_blur.cu"
#include "view_color.cu"
#include "view_filter.cu"
#include "view_noise.cu"
#include "view_policy.cu"
#include "view_resize.cu"
