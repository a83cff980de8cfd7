// Process groups without MPI: c10d's TCPStore and Gloo, both part of libtorch_cpu.

#define USE_C10D_GLOO  // as libtorch's CPU build does; enables the declarations of the next header

#include <c10/util/Flags.h>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>
#include <torch/types.h>

#include <pthread.h>
#include <sched.h>

#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <mutex>
#include <string>
#include <vector>

#include "guard.h"

using simclr::guarded;

C10_DECLARE_int(caffe2_log_level);

namespace {

// c10d logs every exception with a stack trace of C++; the exceptions are reported by their callers.
void quieten() {
    constexpr int fatal = 3;
    if (std::getenv("TORCH_CPP_LOG_LEVEL") == nullptr) FLAGS_caffe2_log_level = fatal;
}

using Store = c10::intrusive_ptr<c10d::TCPStore>;

std::chrono::milliseconds seconds(double value) {
    return std::chrono::milliseconds(static_cast<int64_t>(1000 * value));
}

// Gloo has no unlimited wait.
constexpr std::chrono::hours UNLIMITED{24 * 365};

struct Group {
    c10::intrusive_ptr<c10d::ProcessGroupGloo> gloo;
    int64_t count;
};

// A tensor over memory of the caller, who waits for the collective.
torch::Tensor over(void* start, int64_t length, c10::ScalarType kind) {
    return torch::from_blob(start, {length}, torch::TensorOptions().dtype(kind));
}

// Submits a collective and waits for it. Submissions take turns: they enter the group in c10d's flight recorder, a map shared by all
// groups of the process and changed without a lock in libtorch 2.11 (corrected in pytorch/pytorch#179449). The wait is concurrent.
template <typename Submit>
void collective(Submit submit) {
    static std::mutex recorder;
    std::unique_lock<std::mutex> turn(recorder);
    const c10::intrusive_ptr<c10d::Work> work = submit();
    turn.unlock();
    work->wait();
}

void all_gather_equal(const Group& group, torch::Tensor all, torch::Tensor own) {
    std::vector<torch::Tensor> inputs{own};
    std::vector<std::vector<torch::Tensor>> outputs{all.view({group.count, -1}).unbind()};
    collective([&] { return group.gloo->allgather(outputs, inputs); });
}

// Threads started meanwhile inherit SCHED_BATCH: a woken one does not preempt a running one. Gloo's event loop polls as long as another
// thread holds the lock of a connection; if its wake-up has preempted that thread, until the next timer tick (4 ms at 250 Hz).
class BatchThreads {
public:
    BatchThreads() {
        sched_param batch{};
        changed_ = pthread_getschedparam(pthread_self(), &policy_, &parameters_) == 0 && policy_ == SCHED_OTHER
            && pthread_setschedparam(pthread_self(), SCHED_BATCH, &batch) == 0;
    }
    ~BatchThreads() {
        if (changed_) pthread_setschedparam(pthread_self(), policy_, &parameters_);
    }
    BatchThreads(const BatchThreads&) = delete;
    BatchThreads& operator=(const BatchThreads&) = delete;

private:
    int policy_ = SCHED_OTHER;
    sched_param parameters_{};
    bool changed_ = false;
};

}  // namespace

extern "C" {

// Connects to the store at host:port within `timeout` seconds, or, with `serve`, listens there and connects to itself. Port 0 with `serve`
// takes a free port.
char* simclr_store_new(const char* host, uint16_t port, int serve, double timeout, Store** out) {
    return guarded([&] {
        quieten();
        c10d::TCPStoreOptions options;
        options.port = port;
        options.isServer = serve != 0;
        options.waitWorkers = false;
        options.timeout = seconds(timeout);
        *out = new Store(c10::make_intrusive<c10d::TCPStore>(std::string(host), options));
    });
}

void simclr_store_free(Store* store) { delete store; }

uint16_t simclr_store_port(const Store* store) { return (*store)->getPort(); }

char* simclr_store_set(Store* store, const char* key, const uint8_t* bytes, size_t length) {
    return guarded([&] { (*store)->set(key, std::vector<uint8_t>(bytes, bytes + length)); });
}

// Passes the value of `key` to `receive`, if there is one.
char* simclr_store_get(
    Store* store, const char* key, void* context, void (*receive)(void*, const uint8_t*, size_t)) {
    return guarded([&] {
        if (!(*store)->check({key})) return;
        const std::vector<uint8_t> value = (*store)->get(key);
        receive(context, value.data(), value.size());
    });
}

// Adds to a counter, which starts at 0, and returns its new value in `sum`.
char* simclr_store_add(Store* store, const char* key, int64_t by, int64_t* sum) {
    return guarded([&] { *sum = (*store)->add(key, by); });
}

// A Gloo group over the processes that use the same store and `prefix`; `address` is this process's, as the others reach it. `timeout`
// limits the connection; collectives wait as long as it takes.
char* simclr_gloo_new(
    const Store* store, const char* prefix, int rank, int count, const char* address, double timeout, Group** out) {
    return guarded([&] {
        const BatchThreads batch;
        auto options = c10d::ProcessGroupGloo::Options::create(seconds(timeout));
        options->devices.push_back(c10d::ProcessGroupGloo::createDeviceForHostname(address));
        options->threads = 1;  // one collective at a time, see the interface in Rust
        c10::intrusive_ptr<c10d::Store> own = c10::make_intrusive<c10d::PrefixStore>(prefix, *store);
        auto gloo = c10::make_intrusive<c10d::ProcessGroupGloo>(own, rank, count, options);
        gloo->setTimeout(UNLIMITED);
        *out = new Group{std::move(gloo), count};
    });
}

void simclr_gloo_free(Group* group) { delete group; }

// Sums in place; `wide` for f64, else f32.
char* simclr_gloo_all_reduce(const Group* group, void* values, int64_t length, int wide) {
    return guarded([&] {
        std::vector<torch::Tensor> tensors{over(values, length, wide ? torch::kDouble : torch::kFloat)};
        collective([&] { return group->gloo->allreduce(tensors); });
    });
}

// `all` has room for `length` bytes of every rank.
char* simclr_gloo_all_gather(const Group* group, const uint8_t* own, int64_t length, uint8_t* all) {
    return guarded([&] {
        all_gather_equal(
            *group, over(all, length * group->count, torch::kByte), over(const_cast<uint8_t*>(own), length, torch::kByte));
    });
}

char* simclr_gloo_broadcast(const Group* group, int from, uint8_t* bytes, int64_t length) {
    return guarded([&] {
        std::vector<torch::Tensor> tensors{over(bytes, length, torch::kByte)};
        c10d::BroadcastOptions options;
        options.rootRank = from;
        collective([&] { return group->gloo->broadcast(tensors, options); });
    });
}

}  // extern "C"
