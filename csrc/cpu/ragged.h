// What operators over ragged histories share: checked offsets, the histories of each thread, memory, sums of
// threads.

#pragma once

#include <algorithm>
#include <cstring>
#include <vector>

#include "arguments.h"
#include "runtime.h"

namespace dien_fast {

// offsets [B + 1], which must rise from 0 to `rows`, or to any number if that is -1.
inline std::vector<int64_t> check_offsets(const Tensor& offsets, int64_t rows) {
    const int64_t* from = integer_data("offsets", offsets, -1);
    const int64_t size = offsets.numel();
    STD_TORCH_CHECK(size > 0, "offsets must have shape (B + 1,), got (0,)");
    std::vector<int64_t> out(from, from + size);
    STD_TORCH_CHECK(out[0] == 0 && std::is_sorted(out.begin(), out.end()) && (rows < 0 || out.back() == rows),
                    "offsets must rise from 0 to ", rows < 0 ? "N" : std::to_string(rows));
    return out;
}

// Shares histories out among as many threads as the operations are worth. Thread i handles histories
// [begins[i], begins[i + 1]).
inline std::vector<int64_t> share_out(const std::vector<int64_t>& offsets, int64_t operations_per_row) {
    constexpr int64_t kOperationsWorthAThread = 1 << 20;
    constexpr int64_t kRowsOfAHistory = 4;  // a history costs as much as these, beside its rows
    const int64_t size = offsets.size() - 1, total = offsets.back() + kRowsOfAHistory * size;
    const int64_t worth = total * operations_per_row / kOperationsWorthAThread + 1;
    const int64_t threads =
        std::clamp<int64_t>(torch::stable::get_num_threads(), 1, std::min(worth, std::max<int64_t>(size, 1)));
    std::vector<int64_t> begins{0};
    for (int64_t b = 0; b < size; ++b)
        while (int64_t(begins.size()) < threads &&
               (offsets[b] + kRowsOfAHistory * b) * threads >= total * int64_t(begins.size()))
            begins.push_back(b);
    while (int64_t(begins.size()) <= threads) begins.push_back(size);
    return begins;
}

// Lays out the arrays of one block of memory.
template <typename T>
class Pieces {
  public:
    // Returns where an array of `size` numbers begins. Arrays are whole lines of the cache, and so whole
    // vectors.
    int64_t add(int64_t size) {
        const int64_t at = size_;
        constexpr int64_t kLine = 64 / sizeof(T);
        size_ += (size + kLine - 1) / kLine * kLine;
        return at;
    }
    int64_t size() const { return size_; }

  private:
    int64_t size_ = 0;
};

// out [rows, columns], contiguous, = the transpose of from [columns, rows], whose rows are `stride` apart.
template <typename T>
void copy_transposed(const T* from, int64_t stride, int64_t rows, int64_t columns, T* out) {
    for (int64_t i = 0; i < rows; ++i)
        for (int64_t j = 0; j < columns; ++j) out[i * columns + j] = from[j * stride + i];
}

// sums [threads, size]: adds the other threads' to the first's. In their order, so that as many threads give
// the same bits again.
template <typename T>
void add_threads(T* sums, int64_t size, int64_t threads) {
    for (int64_t thread = 1; thread < threads; ++thread) {
        const T* more = sums + thread * size;
        for (int64_t i = 0; i < size; ++i) sums[i] += more[i];
    }
}

}  // namespace dien_fast
