#include "schedule.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>

namespace dien_fast {
namespace {

template <typename T>
std::vector<int64_t> widened(const Tensor& value) {
    const T* from = static_cast<const T*>(value.const_data_ptr());
    const int64_t stride = value.stride(0);
    std::vector<int64_t> out(value.size(0));
    for (size_t i = 0; i < out.size(); ++i) out[i] = from[i * stride];
    return out;
}

std::vector<int64_t> integers(const char* name, const Tensor& value, int64_t size) {
    check_shape(name, value, {size});
    switch (value.scalar_type()) {
        case ScalarType::Long:
            return widened<int64_t>(value);
        case ScalarType::Int:
            return widened<int32_t>(value);
        case ScalarType::Short:
            return widened<int16_t>(value);
        case ScalarType::Char:
            return widened<int8_t>(value);
        case ScalarType::Byte:
            return widened<uint8_t>(value);
        default:
            STD_TORCH_CHECK(false, name, " must have an integer dtype");
            return {};  // for the compiler, which does not know that the check throws
    }
}

void read_lengths(Schedule& s, const Tensor& lengths, const Tensor& x) {
    check_shape("x", x, {-1, -1, -1});
    const int64_t size = x.size(0), longest = x.size(1);
    s.lengths = integers("lengths", lengths, size);
    s.rows = size * longest;
    const auto [low, high] = std::minmax_element(s.lengths.begin(), s.lengths.end());
    STD_TORCH_CHECK(size == 0 || (*low >= 0 && *high <= longest), "lengths must lie in [0, ", longest,
                    "], got [", *low, ", ", *high, "]");
    s.row_start.resize(size);
    for (int64_t b = 0; b < size; ++b) s.row_start[b] = b * longest;
}

void read_offsets(Schedule& s, const Tensor& offsets, const Tensor& x, bool shared) {
    check_shape("x", x, {-1, -1});
    std::vector<int64_t> bounds = integers("offsets", offsets, -1);
    STD_TORCH_CHECK(!bounds.empty() && bounds[0] == 0 && std::is_sorted(bounds.begin(), bounds.end()) &&
                        (shared || bounds.back() == x.size(0)),
                    "offsets must rise from 0 to ", shared ? "N" : std::to_string(x.size(0)));
    s.rows = bounds.back();
    const size_t size = bounds.size() - 1;
    s.lengths.resize(size);
    for (size_t b = 0; b < size; ++b) s.lengths[b] = bounds[b + 1] - bounds[b];
    bounds.pop_back();
    s.row_start = std::move(bounds);
}

void read_batch_sizes(Schedule& s, const Tensor& batch_sizes, const Tensor& x, int64_t h0_rows) {
    check_shape("x", x, {-1, -1});
    const std::vector<int64_t> sizes = integers("batch_sizes", batch_sizes, -1);
    const int64_t steps = sizes.size(), first = steps > 0 ? sizes[0] : 0;
    s.rows = x.size(0);
    bool correct = std::is_sorted(sizes.rbegin(), sizes.rend()) && (steps == 0 || sizes.back() >= 1);
    int64_t total = 0;
    s.step_start.resize(steps);
    for (int64_t t = 0; correct && t < steps; ++t) {
        s.step_start[t] = total;
        correct = sizes[t] <= s.rows - total;  // compared before it is added, as made-up sizes could overflow
        if (correct) total += sizes[t];
    }
    STD_TORCH_CHECK(correct && total == s.rows, "batch_sizes must fall, be positive and sum to ", s.rows);
    STD_TORCH_CHECK(h0_rows < 0 || h0_rows >= first, "h0 must have at least ", first, " rows, got ", h0_rows);
    const int64_t size = h0_rows < 0 ? first : h0_rows;
    s.lengths.resize(size);
    s.row_start.resize(size);
    for (int64_t b = 0, length = steps; b < size; ++b) {
        while (length > 0 && sizes[length - 1] <= b) --length;
        s.lengths[b] = length;
        s.row_start[b] = b;
    }
}

// Histories may share rows of x, but each must lie inside x.
void read_x_start(Schedule& s, const Tensor& x_start, int64_t x_rows) {
    s.x_start = integers("x_start", x_start, s.lengths.size());
    for (size_t b = 0; b < s.lengths.size(); ++b)
        STD_TORCH_CHECK(s.lengths[b] == 0 || (s.x_start[b] >= 0 && s.lengths[b] <= x_rows &&
                                              s.x_start[b] <= x_rows - s.lengths[b]),
                        "x_start must leave history ", b, " inside the ", x_rows, " rows of x, got ",
                        s.x_start[b], " for ", s.lengths[b], " steps");
}

// Longest first, by counting sort, which keeps the caller's order among equals.
void sort(Schedule& s, int64_t longest) {
    const int64_t size = s.lengths.size();
    s.order.resize(size);
    if (longest > 8 * size + 1024) {  // counters for every length would cost more than comparing
        for (int64_t b = 0; b < size; ++b) s.order[b] = b;
        std::stable_sort(s.order.begin(), s.order.end(),
                         [&](int64_t a, int64_t b) { return s.lengths[a] > s.lengths[b]; });
        return;
    }
    std::vector<int64_t> position(longest + 2, 0);
    for (int64_t length : s.lengths) ++position[longest - length + 1];
    for (int64_t length = 0; length <= longest; ++length) position[length + 1] += position[length];
    for (int64_t b = 0; b < size; ++b) s.order[position[longest - s.lengths[b]]++] = b;
}

void cut(Schedule& s, int64_t operations_per_step) {
    constexpr int64_t kOperationsWorthAThread = 1 << 20;
    const int64_t size = s.lengths.size();
    const int64_t worth = s.steps * operations_per_step / kOperationsWorthAThread + 1;
    const int64_t threads =
        std::clamp<int64_t>(torch::stable::get_num_threads(), 1, std::min(worth, std::max<int64_t>(size, 1)));
    const int64_t tile_rows = std::clamp<int64_t>((size + 2 * threads - 1) / (2 * threads), 1, kMaxTileRows);
    s.threads.resize(threads);
    std::vector<int64_t> load(threads, 0);
    for (int64_t begin = 0; begin < size; begin += tile_rows) {
        const Tile tile{begin, std::min(tile_rows, size - begin)};
        // Longest tiles come first, so giving each to the least loaded thread balances them.
        int64_t cost = s.lengths[s.order[begin]];
        for (int64_t i = 0; i < tile.rows; ++i) cost += s.lengths[s.order[begin + i]];
        const auto least = std::min_element(load.begin(), load.end());
        s.threads[least - load.begin()].push_back(tile);
        *least += cost;
    }
}

}  // namespace

Schedule make_schedule(const Layout& layout, const Tensor& x, int64_t h0_rows, int64_t operations_per_step) {
    Schedule s;
    check_one_layout(layout.lengths, layout.offsets, layout.batch_sizes, layout.x_start);
    if (layout.lengths) read_lengths(s, *layout.lengths, x);
    if (layout.offsets) read_offsets(s, *layout.offsets, x, layout.x_start.has_value());
    if (layout.batch_sizes) read_batch_sizes(s, *layout.batch_sizes, x, h0_rows);
    if (layout.x_start) read_x_start(s, *layout.x_start, x.size(0));

    int64_t longest = 0;
    for (int64_t length : s.lengths) {
        longest = std::max(longest, length);
        s.steps += length;
    }
    sort(s, longest);
    cut(s, operations_per_step);
    s.batch.size = s.lengths.size();
    s.batch.order = s.order.data();
    s.batch.lengths = s.lengths.data();
    s.batch.row_start = s.row_start.data();
    s.batch.x_start = layout.x_start ? s.x_start.data() : s.row_start.data();
    s.batch.step_start = layout.batch_sizes ? s.step_start.data() : nullptr;
    return s;
}

}  // namespace dien_fast
