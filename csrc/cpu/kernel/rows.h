// Products, sums and copies of tiles of rows. Included by the kernels of the interest layer, inside their
// namespace.

template <typename T>
DIEN_FAST_INLINE T* take(T*& scratch, int64_t size) {
    T* at = scratch;
    scratch += padded<T>(size);
    return at;
}

template <typename T>
int64_t panels_size(int64_t depth, int64_t columns) {
    return depth * padded<T>(columns);
}

// Panels of matrix [depth, columns], or of the transpose of matrix [columns, depth]; its rows are `stride`
// apart.
template <typename T>
void pack_panels(const T* matrix, int64_t depth, int64_t columns, int64_t stride, bool transposed,
                 T* panels) {
    for (int64_t column = 0, width; column < columns; column += width) {
        width = panel_vectors((columns - column + kLanes<T> - 1) / kLanes<T>) * kLanes<T>;
        const int64_t lanes = columns - column < width ? columns - column : width;
        if (!transposed) {
            for (int64_t k = 0; k < depth; ++k, panels += width) {
                copy_padded(panels, matrix + k * stride + column, lanes);
                for (int64_t lane = padded<T>(lanes); lane < width; ++lane) panels[lane] = 0;
            }
            continue;
        }
        if (lanes < width) std::memset(panels, 0, depth * width * sizeof(T));
        pack_transposed<T>(matrix + column * stride, stride, lanes, depth, T(1), panels, width);
        panels += depth * width;
    }
}

// out [rows, columns] = initial + left [rows, depth] times panels. initial may be out, one row for all
// (initial_stride 0) or null. Whole vectors are read and written, unless `exact`: then of out alone, and only
// columns.
template <typename T>
struct Product {
    int64_t rows;
    const T* left;
    int64_t left_stride, depth;
    const T* panels;
    int64_t columns;
    const T* initial;
    int64_t initial_stride;
    T* out;
    int64_t out_stride;
    bool exact;
};
template <typename T>
__attribute__((noinline)) void product(const Product<T>& p) {
    times_weights(p.rows, p.left, p.left_stride, p.depth, p.panels, p.columns,
                  [&](int64_t i, int64_t column, Vec<T> value) DIEN_FAST_INLINE_LAMBDA {
                      if (p.initial != nullptr) value += load(p.initial + i * p.initial_stride + column);
                      T* to = p.out + i * p.out_stride + column;
                      if (!p.exact || p.columns - column >= kLanes<T>)
                          store(to, value);
                      else
                          for (int64_t lane = 0; lane < p.columns - column; ++lane) to[lane] = value[lane];
                  });
}

// out [depth, padded columns] += left [count, depth]^T rows [count, padded columns].
template <typename T>
__attribute__((noinline)) void outer(int64_t count, const T* left, int64_t stride, int64_t depth,
                                     const T* rows, int64_t columns, T* out) {
    add_outer(count, left, stride, depth, rows, columns, out);
}

template <typename S, typename T>
DIEN_FAST_INLINE void add_lanes(S* to, Vec<T> value) {
    T lanes[kLanes<T>];
    store(lanes, value);
    for (int lane = 0; lane < kLanes<T>; ++lane) to[lane] += S(lanes[lane]);
}

// to [width] += the sum of rows [count, width], width whole vectors.
template <typename T, typename S>
void add_rows(int64_t count, const T* rows, int64_t width, S* to) {
    for (int64_t column = 0; column < width; column += kLanes<T>) {
        Vec<T> even = {}, odd = {};
        int64_t i = 0;
        for (; i + 1 < count; i += 2) {
            even += load(rows + i * width + column);
            odd += load(rows + (i + 1) * width + column);
        }
        if (i < count) even += load(rows + i * width + column);
        add_lanes<S, T>(to + column, even + odd);
    }
}

// to [columns] += the sum of factor[i] rows[i], and the factors' sum behind it if asked for.
template <typename T, typename S>
void add_weighted_rows(int64_t count, const T* factors, const T* rows, int64_t width, S* to) {
    for (int64_t column = 0; column < width; column += kLanes<T>) {
        Vec<T> total = {};
        for (int64_t i = 0; i < count; ++i) total += factors[i] * load(rows + i * width + column);
        add_lanes<S, T>(to + column, total);
    }
}

template <typename T>
T dot(const T* a, const T* b, int64_t width) {
    Vec<T> total = {};
    for (int64_t column = 0; column < width; column += kLanes<T>)
        total += load(a + column) * load(b + column);
    return sum<T>(total);
}

// e^v for v <= 0; NaN stays NaN.
DIEN_FAST_INLINE Vec<float> exponential(Vec<float> v) {
    const PowerOfTwo p = power_of_two(clamp(v * 1.44269504f, 126.0f));
    return p.scale + p.scale * p.rest;
}
DIEN_FAST_INLINE Vec<double> exponential(Vec<double> v) {
    for (int lane = 0; lane < kLanes<double>; ++lane) v[lane] = exp(v[lane]);
    return v;
}
