// Products, sums and copies of tiles of rows. Included by the kernels of the interest layer, inside their
// namespace.

// The next piece of scratch, of `size` numbers.
template <typename T>
DIEN_FAST_INLINE T* take(T*& scratch, int64_t size) {
    T* at = scratch;
    scratch += padded<T>(size);
    return at;
}

// The panels of a weight [outputs, inputs]: see Direction in interest.h.
template <typename T>
int64_t panels_size(int64_t outputs, int64_t inputs, Direction direction) {
    return direction == Direction::kForward ? inputs * padded<T>(outputs) : outputs * padded<T>(inputs);
}

template <typename T>
void pack_panels(int64_t outputs, View<const T> weight, Direction direction, T* panels) {
    const bool forward = direction == Direction::kForward;
    const int64_t depth = forward ? weight.columns : outputs, columns = forward ? outputs : weight.columns;
    for (int64_t column = 0, width; column < columns; column += width) {
        width = panel_vectors((columns - column + kLanes<T> - 1) / kLanes<T>) * kLanes<T>;
        const int64_t lanes = columns - column < width ? columns - column : width;
        if (!forward) {
            for (int64_t k = 0; k < depth; ++k, panels += width) {
                copy_padded(panels, weight.data + k * weight.stride + column, lanes);
                for (int64_t lane = padded<T>(lanes); lane < width; ++lane) panels[lane] = 0;
            }
            continue;
        }
        if (lanes < width) std::memset(panels, 0, depth * width * sizeof(T));
        pack_transposed<T>(weight.data + column * weight.stride, weight.stride, lanes, depth, T(1), panels,
                           width);
        panels += depth * width;
    }
}

// What a product writes: whole vectors, beyond the last column too, or exactly the columns.
enum class Write { kVectors, kExactly };

// out [rows, out.columns] = initial + left [rows, left.columns] times panels. No initial.data stands for 0,
// and initial.stride 0 for one row that all share; initial may be out.
template <typename T>
__attribute__((noinline)) void product(int64_t rows, View<const T> left, const T* panels,
                                       View<const T> initial, View<T> out, Write write = Write::kVectors) {
    times_panels(rows, left, panels, out.columns,
                 [&](int64_t i, int64_t column, Vec<T> value) DIEN_FAST_INLINE_LAMBDA {
                     if (initial.data != nullptr) value += load(initial.data + i * initial.stride + column);
                     T* to = out.data + i * out.stride + column;
                     if (write == Write::kVectors || out.columns - column >= kLanes<T>)
                         store(to, value);
                     else
                         for (int64_t lane = 0; lane < out.columns - column; ++lane) to[lane] = value[lane];
                 });
}

// add_outer, in one place for all callers.
template <typename T>
__attribute__((noinline)) void outer(int64_t count, View<const T> left, View<const T> right, T* out) {
    add_outer(count, left, right, out);
}

template <typename S, typename T>
DIEN_FAST_INLINE void add_lanes(S* to, Vec<T> value) {
    T lanes[kLanes<T>];
    store(lanes, value);
    for (int lane = 0; lane < kLanes<T>; ++lane) to[lane] += S(lanes[lane]);
}

// to [width] += the sum of rows [count, width]; the width is whole vectors.
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

// to [width] += the sum of factors[i] times row i of rows [count, width].
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
