// Training of embedding tables on the CPU by the rows that a batch looked up. sum_by_id makes the gradient,
// with each row once; adam_rows_ and adagrad_rows_ move these rows of the table, with their state, in one
// pass. Rows lie far apart in a large table, so memory's latency would bound the pass: the rows a few steps
// ahead are fetched early.

#include <cmath>
#include <numeric>
#include <tuple>
#include <vector>

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

// As many threads as there is work for, in rows of `depth` numbers.
int64_t threads_for(int64_t rows, int64_t depth) {
    constexpr int64_t kNumbersWorthAThread = 1 << 16;
    return std::clamp<int64_t>(torch::stable::get_num_threads(), 1, rows * depth / kNumbersWorthAThread + 1);
}

// Where the ids [N] other than `padding` stand, by rising id; equal ids in the order in which they come.
std::vector<int64_t> places_by_id(const int64_t* ids, int64_t count, int64_t padding) {
    int64_t largest = 0;
    std::vector<int64_t> places, next;
    places.reserve(count);
    for (int64_t i = 0; i < count; ++i) {
        STD_TORCH_CHECK(ids[i] >= 0, "ids must be at least 0, got ", ids[i]);
        largest = std::max(largest, ids[i]);
        if (ids[i] != padding) places.push_back(i);
    }
    next.resize(places.size());
    constexpr int kBits = 11;  // a radix sort whose counters fit into the first cache
    std::vector<int64_t> begins(1 << kBits);
    for (int shift = 0; shift < 63 && (largest >> shift) > 0; shift += kBits) {
        const auto digit = [&](int64_t place) { return (ids[place] >> shift) & ((1 << kBits) - 1); };
        std::fill(begins.begin(), begins.end(), 0);
        for (int64_t place : places) ++begins[digit(place)];
        std::exclusive_scan(begins.begin(), begins.end(), begins.begin(), int64_t(0));
        for (int64_t place : places) next[begins[digit(place)]++] = place;
        places.swap(next);
    }
    return places;
}

template <typename T>
std::tuple<Tensor, Tensor> sum_of_each(const Tensor& rows, const Tensor& ids_tensor, int64_t padding) {
    const int64_t count = ids_tensor.numel(), depth = rows.size(1);
    const T* from = data<T>("rows", rows, {count, depth});
    const int64_t* ids = integer_data("ids", ids_tensor, count);
    const std::vector<int64_t> places = places_by_id(ids, count, padding);
    const int64_t kept = places.size();
    std::vector<int64_t> begins;  // where the places of each id begin
    for (int64_t i = 0; i < kept; ++i)
        if (i == 0 || ids[places[i]] != ids[places[i - 1]]) begins.push_back(i);
    const int64_t different = begins.size();
    begins.push_back(kept);

    Tensor distinct = torch::stable::new_empty(ids_tensor, {different});
    Tensor total = torch::stable::new_empty(rows, {different, depth});
    int64_t* id = output_data<int64_t>(distinct);
    T* sums = output_data<T>(total);
    const int64_t threads = threads_for(kept, depth);
    for_each_thread(threads, [&](int64_t thread) {
        for (int64_t u = different * thread / threads; u < different * (thread + 1) / threads; ++u) {
            id[u] = ids[places[begins[u]]];
            T* __restrict sum = sums + u * depth;
            std::copy_n(from + places[begins[u]] * depth, depth, sum);
            for (int64_t i = begins[u] + 1; i < begins[u + 1]; ++i) {
                const T* row = from + places[i] * depth;
                for (int64_t d = 0; d < depth; ++d) sum[d] += row[d];
            }
        }
    });
    return {distinct, total};
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
        const int64_t threads = threads_for(count, depth);
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

std::tuple<Tensor, Tensor> sum_by_id(Tensor rows, Tensor ids, int64_t padding) {
    check_shape("rows", rows, {-1, -1});
    return is_single("rows", rows) ? sum_of_each<float>(rows, ids, padding)
                                   : sum_of_each<double>(rows, ids, padding);
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
    m.impl("sum_by_id", TORCH_BOX(&dien_fast::sum_by_id));
    m.impl("adam_rows_", TORCH_BOX(&dien_fast::adam_rows_));
    m.impl("adagrad_rows_", TORCH_BOX(&dien_fast::adagrad_rows_));
}
