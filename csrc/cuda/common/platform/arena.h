// Cuts one block of device memory into pieces. A run makes the same calls twice: first without a block, to
// learn its size, then with it.

#pragma once

#include <cstdint>

namespace dien_fast::cuda {

class Arena {
  public:
    explicit Arena(void* memory) : memory_(static_cast<char*>(memory)) {}

    template <typename T>
    T* take(int64_t count) {
        T* piece = memory_ == nullptr ? nullptr : reinterpret_cast<T*>(memory_ + used_);
        used_ += (count * int64_t(sizeof(T)) + 255) / 256 * 256;
        return piece;
    }
    int64_t used() const { return used_; }

  private:
    char* memory_;
    int64_t used_ = 0;
};

}  // namespace dien_fast::cuda
