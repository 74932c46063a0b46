// The optimizers of embedding tables on the CPU: adam_rows_ and adagrad_rows_ move the rows of a table that
// have a gradient, with their state, in one pass. Rows lie far apart in a large table, so memory's latency
// would bound the pass: the rows a few steps ahead are fetched early.

#include <cmath>

#include "arguments.h"
#include "runtime.h"

namespace dien_fast {
namespace {

constexpr int64_t kAhead = 12;  // rows; the fastest of 4, 8, 12, 16 and 32 on tables of 10 million rows

template <typename T>
void fetch(const T* row, int64_t depth) {
    constexpr int64_t kLine = 64 / sizeof(T);
    for (int64_t d = 0; d < depth; d += kLine) __builtin_prefetch(row + d, 1);
}

// The rows [U] of a table [V, D], which must differ, and what is known of each: its gradient `change` [U, D].
template <typename T>
struct Moves {
    int64_t size, depth, count;
    T* table;
    const T* change;
    const int64_t* rows;

    Moves(const Tensor& table_tensor, const Tensor& change_tensor, const Tensor& rows_tensor) {
        check_shape("table", table_tensor, {-1, -1});
        size = table_tensor.size(0), depth = table_tensor.size(1), count = rows_tensor.numel();
        data<T>("table", table_tensor, {size, depth});
        change = data<T>("change", change_tensor, {count, depth});
        rows = integer_data("rows", rows_tensor, count);
        for (int64_t i = 0; i < count; ++i) {
            STD_TORCH_CHECK(rows[i] >= 0 && rows[i] < size, "rows must lie in [0, ", size, "), got ",
                            rows[i]);
            // Threads share the rows out, and no two may have the same.
            STD_TORCH_CHECK(i == 0 || rows[i] > rows[i - 1], "rows must rise, got ", rows[i - 1], " before ",
                            rows[i]);
        }
        table = static_cast<T*>(table_tensor.mutable_data_ptr());
    }

    // Calls prefetch(row of the table) early and then move(row, its gradient) for every row.
    template <typename Prefetch, typename Move>
    void each(const Prefetch& prefetch, const Move& move) const {
        constexpr int64_t kNumbersWorthAThread = 1 << 16;
        const int64_t threads = std::clamp<int64_t>(torch::stable::get_num_threads(), 1,
                                                    count * depth / kNumbersWorthAThread + 1);
        for_each_thread(threads, [&](int64_t thread) {
            const int64_t begin = count * thread / threads, end = count * (thread + 1) / threads;
            for (int64_t i = begin; i < std::min(begin + kAhead, end); ++i) prefetch(rows[i]);
            for (int64_t i = begin; i < end; ++i) {
                if (i + kAhead < end) prefetch(rows[i + kAhead]);
                move(rows[i], change + i * depth);
            }
        });
    }
};

template <typename T>
struct Adam {
    T rate, decay, first_rest, second, second_rest, root, eps;

    // The rests are differences of double: 1 - 0.999f has four right digits.
    Adam(double rate, double decay, double first, double second, double root, double eps)
        : rate(T(rate)),
          decay(T(decay)),
          first_rest(T(1 - first)),
          second(T(second)),
          second_rest(T(1 - second)),
          root(T(root)),
          eps(T(eps)) {}
};

template <typename T>
void adam(const Tensor& table, const Tensor& average_tensor, const Tensor& square_tensor,
          const Tensor& change, const Tensor& rows, const Adam<T>& of) {
    const Moves<T> moves(table, change, rows);
    const int64_t depth = moves.depth;
    data<T>("average", average_tensor, {moves.size, depth});
    data<T>("square", square_tensor, {moves.size, depth});
    T* average = static_cast<T*>(average_tensor.mutable_data_ptr());
    T* square = static_cast<T*>(square_tensor.mutable_data_ptr());
    moves.each(
        [&](int64_t row) {
            fetch(moves.table + row * depth, depth);
            fetch(average + row * depth, depth);
            fetch(square + row * depth, depth);
        },
        [&](int64_t row, const T* __restrict gradient) {
            T* __restrict w = moves.table + row * depth;
            T* __restrict m = average + row * depth;
            T* __restrict v = square + row * depth;
            const Adam<T> by =
                of;  // a copy, which no write to a row can change: otherwise the loop is not vectorised
            for (int64_t d = 0; d < depth; ++d) {
                const T g = gradient[d] + by.decay * w[d];
                m[d] += by.first_rest * (g - m[d]);
                v[d] = by.second * v[d] + by.second_rest * g * g;
                w[d] -= by.rate * m[d] / (std::sqrt(v[d]) * by.root + by.eps);
            }
        });
}

template <typename T>
void adagrad(const Tensor& table, const Tensor& sum_tensor, const Tensor& change, const Tensor& rows,
             double rate, double decay, double eps) {
    const Moves<T> moves(table, change, rows);
    const int64_t depth = moves.depth;
    data<T>("sum", sum_tensor, {moves.size});
    T* sum = static_cast<T*>(sum_tensor.mutable_data_ptr());
    moves.each(
        [&](int64_t row) {
            fetch(moves.table + row * depth, depth);
            fetch(sum + row, 1);
        },
        [&](int64_t row, const T* __restrict gradient) {
            T* __restrict w = moves.table + row * depth;
            T squares = 0;
            for (int64_t d = 0; d < depth; ++d) {
                const T g = gradient[d] + T(decay) * w[d];
                squares += g * g;
            }
            sum[row] += squares / T(depth);
            const T scale = T(rate) / (std::sqrt(sum[row]) + T(eps));
            for (int64_t d = 0; d < depth; ++d) w[d] -= scale * (gradient[d] + T(decay) * w[d]);
        });
}

void adam_rows_(Tensor table, Tensor average, Tensor square, Tensor change, Tensor rows, double rate,
                double decay, double first, double second, double root, double eps) {
    if (is_single("table", table))
        adam<float>(table, average, square, change, rows, {rate, decay, first, second, root, eps});
    else
        adam<double>(table, average, square, change, rows, {rate, decay, first, second, root, eps});
}

void adagrad_rows_(Tensor table, Tensor sum, Tensor change, Tensor rows, double rate, double decay,
                   double eps) {
    if (is_single("table", table))
        adagrad<float>(table, sum, change, rows, rate, decay, eps);
    else
        adagrad<double>(table, sum, change, rows, rate, decay, eps);
}

}  // namespace
}  // namespace dien_fast

STABLE_TORCH_LIBRARY_IMPL(dien_fast, CPU, m) {
    m.impl("adam_rows_", TORCH_BOX(&dien_fast::adam_rows_));
    m.impl("adagrad_rows_", TORCH_BOX(&dien_fast::adagrad_rows_));
}
