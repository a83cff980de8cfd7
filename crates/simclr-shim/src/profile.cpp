// Records the ATen operations, autograd nodes and kernels of ours that a thread and its backward passes run: names, nesting, tensors and
// durations.

#include <ATen/ATen.h>
#include <ATen/record_function.h>
#include <c10/core/Event.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <chrono>
#include <memory>
#include <mutex>
#include <sstream>
#include <string>
#include <vector>

#include "guard.h"

namespace simclr {
namespace {

using Clock = std::chrono::steady_clock;

// Begin or end of a record: host time, and on a GPU an event of the current stream, which no kernel waits for.
struct Moment {
    Clock::time_point host = Clock::now();
    std::unique_ptr<c10::Event> event;

    explicit Moment(c10::Device device) {
        if (device.is_cpu()) return;
        event = std::make_unique<c10::Event>(device.type(), c10::EventFlag::BACKEND_DEFAULT);  // with time stamps
        event->record(c10::impl::VirtualGuardImpl(device.type()).getStream(device));
    }

    int64_t nanoseconds_since(const Moment& begin) const {
        if (event) return static_cast<int64_t>(begin.event->elapsedTime(*event) * 1e6);
        return std::chrono::duration_cast<std::chrono::nanoseconds>(host - begin.host).count();
    }
};

struct Record {
    std::string name;
    int64_t parent;
    std::string inputs, outputs;
    std::unique_ptr<Moment> begin, end;
};

struct Recording {
    std::mutex mutex;
    c10::Device device{c10::kCPU};
    std::vector<Record> records;
};

Recording& recording() {
    static Recording shared;
    return shared;
}

// Indices of the records that this thread has begun and not ended. A backward pass on a GPU has a thread of its own.
thread_local std::vector<int64_t> open_records;

void describe(std::ostringstream& out, const at::Tensor& tensor) {
    if (!tensor.defined()) {
        out << "none ";
        return;
    }
    out << tensor.element_size() << ':';
    for (int64_t side : tensor.sizes()) out << side << ',';
    out << ' ';
}

// Such as `2:256,64,32,32, 4:64, `: bytes of an element and shape of every tensor.
template <typename Values>
std::string tensors(const Values& values) {
    std::ostringstream out;
    for (const c10::IValue& value : values) {
        if (value.isTensor()) describe(out, value.toTensor());
        if (value.isTensorList()) {
            for (const at::Tensor& tensor : value.toTensorVector()) describe(out, tensor);
        }
    }
    return out.str();
}

struct Context : at::ObserverContext {
    int64_t index = 0;
};

std::unique_ptr<at::ObserverContext> begin(const at::RecordFunction& function) {
    auto context = std::make_unique<Context>();
    std::string inputs = tensors(function.inputs());
    Recording& shared = recording();
    std::lock_guard<std::mutex> lock(shared.mutex);
    context->index = static_cast<int64_t>(shared.records.size());
    int64_t parent = open_records.empty() ? -1 : open_records.back();
    open_records.push_back(context->index);
    shared.records.push_back({function.name(), parent, std::move(inputs), "", nullptr, nullptr});
    shared.records.back().begin = std::make_unique<Moment>(shared.device);
    return context;
}

void end(const at::RecordFunction& function, at::ObserverContext* context) {
    Recording& shared = recording();
    std::lock_guard<std::mutex> lock(shared.mutex);
    Record& record = shared.records[static_cast<Context*>(context)->index];
    record.end = std::make_unique<Moment>(shared.device);
    record.outputs = tensors(function.outputs());
    open_records.pop_back();
}

void wait_for(c10::Device device) {
    if (!device.is_cpu()) c10::impl::VirtualGuardImpl(device.type()).synchronizeDevice(device.index());
}

}  // namespace
}  // namespace simclr

extern "C" {

// Begins a recording on the device of `like`; `handle` is the argument of simclr_profile_end. One recording at a time.
char* simclr_profile_begin(const at::Tensor* like, uint64_t* handle) {
    return simclr::guarded([&] {
        simclr::Recording& shared = simclr::recording();
        simclr::wait_for(like->device());
        shared.records.clear();
        shared.device = like->device();
        at::RecordFunctionCallback callback(&simclr::begin, &simclr::end);
        callback.needsInputs(true).needsOutputs(true);
        callback.scopes({at::RecordScope::FUNCTION, at::RecordScope::BACKWARD_FUNCTION, at::RecordScope::USER_SCOPE});
        *handle = at::addThreadLocalCallback(callback);
    });
}

// Ends the recording; returns a line for each record in the order of their begins: parent (-1: none), nanoseconds, name, inputs,
// outputs, with tabs between.
char* simclr_profile_end(uint64_t handle) {
    at::removeCallback(handle);
    return simclr::text_or_null([] {
        simclr::Recording& shared = simclr::recording();
        simclr::wait_for(shared.device);
        std::ostringstream out;
        for (const simclr::Record& record : shared.records) {
            int64_t nanoseconds = record.end ? record.end->nanoseconds_since(*record.begin) : 0;
            out << record.parent << '\t' << nanoseconds << '\t' << record.name << '\t' << record.inputs << '\t' << record.outputs
                << '\n';
        }
        return out.str();
    });
}

}  // extern "C"
