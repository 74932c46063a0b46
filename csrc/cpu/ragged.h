// What the operators over ragged histories share: checked offsets, histories shared out among threads, sums
// of threads.

#pragma once

#include <vector>

#include "../checks.h"
#include "../interest.h"
#include "runtime.h"

namespace dien_fast {

// [B + 1] numbers that rise from 0; to `rows` unless that is negative.
inline std::vector<int64_t> check_offsets(const Tensor& offsets, int64_t rows) {
    const int64_t size = offsets.numel();
    check_shape("offsets", offsets, {-1});
    STD_TORCH_CHECK(offsets.scalar_type() == ScalarType::Long && offsets.is_contiguous(),
                    "offsets must be contiguous int64");
    STD_TORCH_CHECK(size > 0, "offsets must have shape (B + 1,), got (0,)");
    const int64_t* from = static_cast<const int64_t*>(offsets.const_data_ptr());
    std::vector<int64_t> out(from, from + size);
    STD_TORCH_CHECK(out[0] == 0 && std::is_sorted(out.begin(), out.end()) && (rows < 0 || out.back() == rows),
                    "offsets must rise from 0 to ", rows < 0 ? "N" : std::to_string(rows));
    return out;
}

// First histories of the threads and B behind them: as many threads as the operations are worth.
inline std::vector<int64_t> share_out(const std::vector<int64_t>& offsets, int64_t operations_per_row) {
    constexpr int64_t kOperationsWorthAThread = 1 << 20,
                      kRowsOfAHistory = 4;  // what a history costs beside its rows
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

// Pieces of one block of memory.
template <typename T>
class Pieces {
  public:
    // Of an array that is padded to whole vectors, and to whole lines of the cache.
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

// out [rows, columns] = from [rows, stride], or the transpose of from [columns, stride].
template <typename T>
void copy_matrix(const T* from, int64_t stride, bool transposed, int64_t rows, int64_t columns, T* out) {
    for (int64_t i = 0; i < rows; ++i)
        for (int64_t j = 0; j < columns; ++j)
            out[i * columns + j] = transposed ? from[j * stride + i] : from[i * stride + j];
}

// sums[0] += sums of the other threads, `size` numbers each, in their order.
template <typename T>
void add_threads(T* sums, int64_t size, int64_t stride, int64_t threads) {
    for (int64_t thread = 1; thread < threads; ++thread) {
        const T* more = sums + thread * stride;
        for (int64_t i = 0; i < size; ++i) sums[i] += more[i];
    }
}

}  // namespace dien_fast
