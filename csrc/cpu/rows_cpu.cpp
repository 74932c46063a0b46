// The operators on rows, on the CPU: rows_from_padded and padded_from_rows, which copy rows of any dtype;
// weighted_sum, of the rows of each history; and add_rows_, the gradient of an embedding table. Memory bounds
// their speed, so they have no kernels for instruction sets.

#include <cstring>
#include <tuple>

#include "ragged.h"

namespace dien_fast {
namespace {

// Row t of history b of `padded` [B, T, ...] is row offsets[b] + t of `rows` [N, ...].
struct Rows {
    std::vector<int64_t> offsets;
    int64_t steps, row_bytes;

    Rows(const Tensor& offsets_tensor, int64_t size, int64_t steps, int64_t rows, int64_t row_bytes)
        : offsets(check_offsets(offsets_tensor, rows)), steps(steps), row_bytes(row_bytes) {
        STD_TORCH_CHECK(int64_t(offsets.size()) - 1 == size || size < 0, "offsets must have shape (",
                        size + 1, ",), got (", offsets.size(), ",)");
        for (size_t b = 0; b + 1 < offsets.size(); ++b)
            STD_TORCH_CHECK(offsets[b + 1] - offsets[b] <= steps, "lengths must be at most ", steps, ", got ",
                            offsets[b + 1] - offsets[b]);
    }

    // Calls f(byte in the padded array, byte in the ragged one, bytes) for every history.
    template <typename F>
    void each(const F& f) const {
        constexpr int64_t kOperationsOfAByte = 4;  // a quarter of a megabyte is worth a thread
        const std::vector<int64_t> begins = share_out(offsets, kOperationsOfAByte * row_bytes);
        for_each_thread(begins.size() - 1, [&](int64_t thread) {
            for (int64_t b = begins[thread]; b < begins[thread + 1]; ++b)
                f(b * steps * row_bytes, offsets[b] * row_bytes, (offsets[b + 1] - offsets[b]) * row_bytes);
        });
    }
};

// The shape (front..., the dimensions of `value` but the first `skip`).
std::vector<int64_t> shape_of(const Tensor& value, int64_t skip, Shape front) {
    std::vector<int64_t> shape(front);
    for (int64_t i = skip; i < value.dim(); ++i) shape.push_back(value.size(i));
    return shape;
}
// Of a row, which is all dimensions but the first `skip`.
int64_t bytes_of_row(const Tensor& value, int64_t skip) {
    int64_t bytes = value.element_size();
    for (int64_t i = skip; i < value.dim(); ++i) bytes *= value.size(i);
    return bytes;
}

Tensor empty_of(const Tensor& like, const std::vector<int64_t>& shape) {
    Tensor out = torch::stable::new_empty(like, {shape.data(), shape.size()});
    advise_large_pages(out.mutable_data_ptr(), out.numel() * out.element_size());
    return out;
}

Tensor rows_from_padded(Tensor padded, Tensor offsets) {
    STD_TORCH_CHECK(padded.dim() >= 2, "padded must have shape (B, T, ...), got ",
                    shape_text(padded.sizes()));
    STD_TORCH_CHECK(padded.is_contiguous(), "padded must be contiguous");
    const Rows rows(offsets, padded.size(0), padded.size(1), -1, bytes_of_row(padded, 2));
    Tensor out = empty_of(padded, shape_of(padded, 2, {rows.offsets.back()}));
    const char* from = static_cast<const char*>(padded.const_data_ptr());
    char* to = static_cast<char*>(out.mutable_data_ptr());
    rows.each([&](int64_t padded_at, int64_t at, int64_t bytes) {
        if (bytes > 0) std::memcpy(to + at, from + padded_at, bytes);
    });
    return out;
}

Tensor padded_from_rows(Tensor values, Tensor offsets, int64_t steps) {
    STD_TORCH_CHECK(values.dim() >= 1, "values must have shape (N, ...), got ()");
    STD_TORCH_CHECK(values.is_contiguous(), "values must be contiguous");
    STD_TORCH_CHECK(steps >= 0, "steps must be at least 0, got ", steps);
    const Rows rows(offsets, -1, steps, values.size(0), bytes_of_row(values, 1));
    Tensor out = empty_of(values, shape_of(values, 1, {int64_t(rows.offsets.size()) - 1, steps}));
    const char* from = static_cast<const char*>(values.const_data_ptr());
    char* to = static_cast<char*>(out.mutable_data_ptr());
    rows.each([&](int64_t padded_at, int64_t at, int64_t bytes) {
        if (bytes > 0) std::memcpy(to + padded_at, from + at, bytes);
        const int64_t rest = steps * rows.row_bytes - bytes;
        if (rest > 0) std::memset(to + padded_at + bytes, 0, rest);  // an empty output has no address
    });
    return out;
}

template <typename T>
Tensor sum_rows(const Tensor& values, const Tensor& weights, const Tensor& offsets_tensor) {
    const std::vector<int64_t> offsets = check_offsets(offsets_tensor, values.size(0));
    const int64_t size = offsets.size() - 1, rows = offsets.back(), depth = values.size(1);
    const T* from = data<T>("values", values, {rows, depth});
    const T* weight = data<T>("weights", weights, {rows});
    Tensor out = torch::stable::new_empty(values, {size, depth});
    T* to = static_cast<T*>(out.mutable_data_ptr());
    const std::vector<int64_t> begins = share_out(offsets, 2 * depth);
    for_each_thread(begins.size() - 1, [&](int64_t thread) {
        for (int64_t b = begins[thread]; b < begins[thread + 1]; ++b) {
            T* sum = to + b * depth;
            std::fill(sum, sum + depth, T(0));
            for (int64_t row = offsets[b]; row < offsets[b + 1]; ++row)
                for (int64_t d = 0; d < depth; ++d) sum[d] += weight[row] * from[row * depth + d];
        }
    });
    return out;
}

template <typename T>
std::tuple<Tensor, Tensor> sum_rows_backward(const Tensor& dsum, const Tensor& values, const Tensor& weights,
                                             const Tensor& offsets_tensor) {
    const std::vector<int64_t> offsets = check_offsets(offsets_tensor, values.size(0));
    const int64_t size = offsets.size() - 1, rows = offsets.back(), depth = values.size(1);
    const T* d = data<T>("dsum", dsum, {size, depth});
    const T* from = data<T>("values", values, {rows, depth});
    const T* weight = data<T>("weights", weights, {rows});
    Tensor dvalues = empty_rows(values, {rows, depth});
    Tensor dweights = torch::stable::new_empty(values, {rows});
    T* to = static_cast<T*>(dvalues.mutable_data_ptr());
    T* dweight = static_cast<T*>(dweights.mutable_data_ptr());
    const std::vector<int64_t> begins = share_out(offsets, 4 * depth);
    for_each_thread(begins.size() - 1, [&](int64_t thread) {
        for (int64_t b = begins[thread]; b < begins[thread + 1]; ++b)
            for (int64_t row = offsets[b]; row < offsets[b + 1]; ++row) {
                T total = 0;
                for (int64_t i = 0; i < depth; ++i) {
                    to[row * depth + i] = weight[row] * d[b * depth + i];
                    total += from[row * depth + i] * d[b * depth + i];
                }
                dweight[row] = total;
            }
    });
    return {dvalues, dweights};
}

Tensor weighted_sum(Tensor values, Tensor weights, Tensor offsets) {
    check_shape("values", values, {-1, -1});
    return is_single("values", values) ? sum_rows<float>(values, weights, offsets)
                                       : sum_rows<double>(values, weights, offsets);
}
std::tuple<Tensor, Tensor> weighted_sum_backward(Tensor dsum, Tensor values, Tensor weights, Tensor offsets) {
    check_shape("values", values, {-1, -1});
    return is_single("values", values) ? sum_rows_backward<float>(dsum, values, weights, offsets)
                                       : sum_rows_backward<double>(dsum, values, weights, offsets);
}

// out[ids[i]] += rows[i], where ids[i] is not `padding`. In the order of i, whatever the number of threads.
template <typename T>
void add_rows(const Tensor& out, const Tensor& rows, const Tensor& ids_tensor, int64_t padding) {
    check_shape("out", out, {-1, -1});
    const int64_t size = out.size(0), depth = out.size(1), count = ids_tensor.numel();
    data<T>("out", out, {size, depth});
    const T* from = data<T>("rows", rows, {count, depth});
    const int64_t* ids = integer_data("ids", ids_tensor, count);
    for (int64_t i = 0; i < count; ++i)
        STD_TORCH_CHECK(ids[i] >= 0 && ids[i] < size, "ids must lie in [0, ", size, "), got ", ids[i]);
    T* to = static_cast<T*>(out.mutable_data_ptr());
    // A thread owns every `threads`-th block of eight rows of `out`. Ids are often sorted by how frequent
    // they are, so larger blocks would load the threads unevenly.
    constexpr int64_t kBlock = 8, kNumbersWorthAThread = 1 << 20;
    const int64_t threads =
        std::clamp<int64_t>(torch::stable::get_num_threads(), 1, count * depth / kNumbersWorthAThread + 1);
    for_each_thread(threads, [&](int64_t thread) {
        for (int64_t i = 0; i < count; ++i) {
            if (ids[i] == padding || ids[i] / kBlock % threads != thread) continue;
            T* sum = to + ids[i] * depth;
            const T* row = from + i * depth;
            for (int64_t d = 0; d < depth; ++d) sum[d] += row[d];
        }
    });
}

void add_rows_(Tensor out, Tensor rows, Tensor ids, int64_t padding) {
    if (is_single("out", out))
        add_rows<float>(out, rows, ids, padding);
    else
        add_rows<double>(out, rows, ids, padding);
}

}  // namespace
}  // namespace dien_fast

STABLE_TORCH_LIBRARY_IMPL(dien_fast, CPU, m) {
    m.impl("rows_from_padded", TORCH_BOX(&dien_fast::rows_from_padded));
    m.impl("padded_from_rows", TORCH_BOX(&dien_fast::padded_from_rows));
    m.impl("weighted_sum", TORCH_BOX(&dien_fast::weighted_sum));
    m.impl("weighted_sum_backward", TORCH_BOX(&dien_fast::weighted_sum_backward));
    m.impl("add_rows_", TORCH_BOX(&dien_fast::add_rows_));
}
