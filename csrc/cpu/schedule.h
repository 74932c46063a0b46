// Which rows run when and on which thread: a batch in any layout, checked, sorted by length and cut into
// tiles.

#pragma once

#include <vector>

#include "../checks.h"

namespace dien_fast {

// Exactly one of the first three: lengths for x [B, T, I], offsets for x [N, I], batch_sizes for packed x [N,
// I].
struct Layout {
    std::optional<Tensor> lengths;      // [B]
    std::optional<Tensor> offsets;      // [B + 1]
    std::optional<Tensor> batch_sizes;  // [T]
    std::optional<Tensor> x_start;      // [B], with offsets: first row of x of each history
};

struct Schedule {
    Batch batch;
    int64_t rows = 0;   // of att, states and gates, those of padding included
    int64_t steps = 0;  // N
    std::vector<int64_t> order, lengths, row_start, x_start, step_start;
    std::vector<std::vector<Tile>> threads;
};

// h0_rows: B where an initial state is given, else -1. operations_per_step decides how many threads pay.
Schedule make_schedule(const Layout& layout, const Tensor& x, int64_t h0_rows, int64_t operations_per_step);

}  // namespace dien_fast
