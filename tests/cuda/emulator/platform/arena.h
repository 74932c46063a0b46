// As csrc/cuda/common/platform/arena.h, with a guard zone behind every piece: whoever writes there is found
// out.

#pragma once

#include <cstdint>

#include "../emulator.h"

namespace dien_fast::cuda {

class Arena {
  public:
    explicit Arena(void* memory) : memory_(static_cast<char*>(memory)) {}

    template <typename T>
    T* take(int64_t count) {
        constexpr int64_t kGuard = 256;
        const int64_t bytes = count * int64_t(sizeof(T)), whole = (bytes + 255) / 256 * 256 + kGuard;
        T* piece = memory_ == nullptr ? nullptr : reinterpret_cast<T*>(memory_ + used_);
        if (memory_ != nullptr) emulator::guard(memory_ + used_ + bytes, whole - bytes);
        used_ += whole;
        return piece;
    }
    int64_t used() const { return used_; }

  private:
    char* memory_;
    int64_t used_ = 0;
};

}  // namespace dien_fast::cuda
