// A caching allocator of huge pages for large CPU tensors. A training step frees and allocates the same hundreds of megabytes
// again; malloc returns such blocks to the kernel, which clears every page again. Measured against glibc and its tunables in
// bench/results/house.txt.

#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>
#include <malloc.h>
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <map>
#include <mutex>
#include <set>
#include <unordered_map>
#include <utility>

#include "guard.h"

namespace simclr {
namespace {

constexpr size_t LARGE = size_t{1} << 20;         // smaller blocks are left to malloc
constexpr size_t GRAIN = size_t{1} << 16;         // sizes are rounded up to it
constexpr size_t HUGE_PAGE = size_t{1} << 21;     // alignment of regions
constexpr size_t REGION = size_t{1} << 30;        // address space reserved at a time; memory is committed on first access

size_t round_up(size_t size, size_t unit) { return (size + unit - 1) / unit * unit; }

// First-fit allocation from reserved regions, so that committed memory is reused; adjacent free blocks are merged.
class Regions {
   public:
    // nullptr if no address space can be reserved.
    void* take(size_t bytes) {
        size_t size = round_up(bytes, GRAIN);
        std::lock_guard<std::mutex> lock(mutex_);
        auto found = fitting(size);
        if (found == free_.end()) {
            if (!add_region(size)) return nullptr;
            found = fitting(size);
        }
        auto [start, length] = *found;
        free_.erase(found);
        if (length > size) free_.emplace(start + size, length - size);
        taken_.emplace(start, size);
        return start;
    }

    // Frees `pointer` if it was allocated here; else returns false.
    bool release(void* pointer) {
        char* block = static_cast<char*>(pointer);
        // Avoids the lock for small tensors.
        if (block < lowest_.load(std::memory_order_relaxed) || block >= highest_.load(std::memory_order_relaxed)) return false;
        std::lock_guard<std::mutex> lock(mutex_);
        auto found = taken_.find(block);
        if (found == taken_.end()) return false;
        auto [start, size] = *found;
        taken_.erase(found);
        auto after = free_.lower_bound(start);
        if (after != free_.end() && start + size == after->first && region_starts_.count(after->first) == 0) {
            size += after->second;
            after = free_.erase(after);
        }
        if (after != free_.begin() && region_starts_.count(start) == 0) {
            auto before = std::prev(after);
            if (before->first + before->second == start) {
                before->second += size;
                return true;
            }
        }
        free_.emplace(start, size);
        return true;
    }

    // Returns the memory of free blocks to the kernel; the address space stays reserved.
    void trim() {
        std::lock_guard<std::mutex> lock(mutex_);
        for (auto [start, size] : free_) madvise(start, size, MADV_DONTNEED);
    }

   private:
    using Free = std::map<char*, size_t>;

    Free::iterator fitting(size_t size) {
        auto at = free_.begin();
        while (at != free_.end() && at->second < size) ++at;
        return at;
    }

    bool add_region(size_t size) {
        size_t length = round_up(std::max(size, REGION), HUGE_PAGE);
        void* memory = mmap(nullptr, length + HUGE_PAGE, PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (memory == MAP_FAILED) return false;
        char* start = reinterpret_cast<char*>(round_up(reinterpret_cast<size_t>(memory), HUGE_PAGE));
        madvise(start, length, MADV_HUGEPAGE);  // advisory
        region_starts_.insert(start);
        free_.emplace(start, length);
        if (start < lowest_) lowest_ = start;
        if (start + length > highest_) highest_ = start + length;
        return true;
    }

    std::mutex mutex_;
    std::atomic<char*> lowest_{reinterpret_cast<char*>(UINTPTR_MAX)}, highest_{nullptr};
    Free free_;  // start to size
    std::unordered_map<char*, size_t> taken_;
    std::set<char*> region_starts_;  // adjacent regions are not merged
};

// Never destroyed: tensors may outlive static objects.
Regions& regions() {
    static Regions* all = new Regions;
    return *all;
}

void release(void* pointer) {
    // Blocks allocated before this allocator was installed belong to malloc.
    if (pointer != nullptr && !regions().release(pointer)) c10::GetDefaultCPUAllocator()->raw_deallocate(pointer);
}

struct CachingAllocator final : c10::Allocator {
    c10::DataPtr allocate(size_t bytes) override {
        void* block = bytes >= LARGE ? regions().take(bytes) : nullptr;
        if (block == nullptr) block = c10::GetDefaultCPUAllocator()->raw_allocate(bytes);
        return {block, block, &release, c10::Device(c10::DeviceType::CPU)};
    }
    c10::DeleterFnPtr raw_deleter() const override { return &release; }
    void copy_data(void* to, const void* from, size_t count) const override { default_copy_data(to, from, count); }
};

// Smaller tensors and the scratch buffers of oneDNN come from malloc, which by default returns them to the kernel in every step
// (bench/results/malloc.txt). Both thresholds have to be set: one of them alone turns off glibc's own adjustment of the other.
void keep_freed_memory() {
#ifdef __GLIBC__
    constexpr int MMAP_THRESHOLD = 32 << 20;  // glibc's largest
    constexpr int TRIM_THRESHOLD = 1 << 30;
    mallopt(M_MMAP_THRESHOLD, MMAP_THRESHOLD);
    mallopt(M_TRIM_THRESHOLD, TRIM_THRESHOLD);
#endif
}

}  // namespace
}  // namespace simclr

extern "C" {

// Installs the allocator, and has malloc keep what is freed.
char* simclr_cache_memory() {
    return simclr::guarded([] {
        simclr::keep_freed_memory();
        static simclr::CachingAllocator* allocator = new simclr::CachingAllocator;
        c10::SetCPUAllocator(allocator, 1);
    });
}

// Returns unused memory to the kernel, including malloc's.
void simclr_trim_memory() {
    simclr::regions().trim();
#ifdef __GLIBC__
    malloc_trim(0);
#endif
}

}  // extern "C"
