// A matrix in memory that somebody else owns.

#pragma once

#include <cstdint>

namespace dien_fast {

// Rows of `columns` numbers, each `stride` numbers behind the one before.
template <typename T>
struct View {
    T* data;
    int64_t stride;
    int64_t columns;
};

}  // namespace dien_fast
