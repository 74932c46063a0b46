// Which rows run when and on which thread: a batch of any layout, checked, sorted by length and cut into
// tiles.

#pragma once

#include <vector>

#include "../attention_gru.h"
#include "arguments.h"

namespace dien_fast {

// Where the steps are, as the caller tells it. Exactly one of the first three is given: lengths with padded x
// [B, T, I], offsets with ragged x [N, I], batch_sizes with packed x [N, I].
struct Layout {
    std::optional<Tensor> lengths;      // [B]
    std::optional<Tensor> offsets;      // [B + 1]
    std::optional<Tensor> batch_sizes;  // [T]
    std::optional<Tensor> x_start;      // [B] first row of x of each history, with offsets alone
};

struct Schedule {
    Batch batch;
    int64_t rows = 0;   // of att, states and gates, padding included
    int64_t steps = 0;  // the sum of the lengths
    std::vector<int64_t> order, lengths, row_start, x_start, step_start;  // `batch` points to these
    std::vector<std::vector<Tile>> threads;                               // each thread's tiles

    bool has_padding() const { return rows != steps; }
};

// h0_rows is the number of initial states, or -1 where none are given. operations_per_step, of the
// arithmetic, decides how many threads are worth starting.
Schedule make_schedule(const Layout& layout, const Tensor& x, int64_t h0_rows, int64_t operations_per_step);

}  // namespace dien_fast
