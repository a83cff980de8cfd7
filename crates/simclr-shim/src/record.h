// A kernel of ours as an entry of libtorch's profilers, next to the ATen operations.
#pragma once

#include <ATen/ATen.h>
#include <ATen/record_function.h>

#include <functional>
#include <initializer_list>
#include <string>
#include <vector>

namespace simclr {

// Costs a thread-local read while nothing records.
class Recorded {
   public:
    // The name is preceded by `simclr::`.
    Recorded(const char* name, std::initializer_list<std::reference_wrapper<const at::Tensor>> inputs) {
        if (!guard_.isActive()) return;
        // The copies end here: a second owner of a tensor would forbid kernels to overwrite it.
        std::vector<c10::IValue> values;
        for (const at::Tensor& tensor : inputs) values.emplace_back(tensor);
        guard_.before("simclr::" + std::string(name), c10::ArrayRef<const c10::IValue>(values.data(), values.size()));
    }

   private:
    at::RecordFunction guard_{at::RecordScope::USER_SCOPE};
};

}  // namespace simclr
