// Parallel loops on libtorch's thread pool.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/TensorIterator.h>
#include <ATen/ops/empty.h>

namespace simclr {

// Calls `task(i)` for i in 0 .. tasks on libtorch's threads. `task` must not throw. Operations on tensors within it run on its thread alone,
// in the grad mode of that thread.
//
// at::parallel_for is a template that would link this crate with a second OpenMP runtime and thread pool. A TensorIterator
// runs the instance inside libtorch; its tensor is only an index range.
template <typename F>
void parallel(int64_t tasks, const F& task) {
    if (tasks == 1 || at::get_num_threads() == 1) {
        for (int64_t i = 0; i < tasks; i++) task(i);
        return;
    }
    at::Tensor index = at::empty({tasks}, at::kByte);
    const char* first = static_cast<const char*>(index.const_data_ptr());
    auto loop = [&](char** data, const int64_t* strides, int64_t count) {
        for (int64_t i = 0; i < count; i++) task(data[0] + i * strides[0] - first);
    };
    at::TensorIterator::borrowing_nullary_op(index).for_each(loop, 1);
}

}  // namespace simclr
