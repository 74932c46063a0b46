// Products of matrices that are small enough for the caches. Included by the kernels, inside their namespace.
//
// The right factor of a product stands in panels: a few vectors of its columns (see panel_vectors), row after
// row, then the next columns.

// How many vectors wide the next panel is, of `left` vectors of columns that are left. If one more than a
// full panel is left, two panels share them: the last panel would be a single vector, and its few sums would
// not hide the latency of an addition.
DIEN_FAST_INLINE int64_t panel_vectors(int64_t left) {
    return left == kGemmVectors + 1 ? kLastVectors : left < kGemmVectors ? left : kGemmVectors;
}

// to[k * stride + lane] = factor * rows[lane * from_stride + k]
template <typename T>
DIEN_FAST_INLINE void pack_transposed(const T* rows, int64_t from_stride, int64_t lanes, int64_t depth,
                                      T factor, T* to, int64_t stride) {
    int64_t lane = 0;
#if defined(__SSE2__)
    if constexpr (sizeof(T) == 4) {
        const __m128 factors = _mm_set1_ps(factor);
        for (; lane + 4 <= lanes; lane += 4) {
            const T* from = rows + lane * from_stride;
            int64_t k = 0;
            for (; k + 4 <= depth; k += 4) {
                __m128 a = _mm_loadu_ps(from + k), b = _mm_loadu_ps(from + from_stride + k);
                __m128 c = _mm_loadu_ps(from + 2 * from_stride + k),
                       d = _mm_loadu_ps(from + 3 * from_stride + k);
                _MM_TRANSPOSE4_PS(a, b, c, d);
                T* out = to + k * stride + lane;
                _mm_storeu_ps(out, _mm_mul_ps(factors, a));
                _mm_storeu_ps(out + stride, _mm_mul_ps(factors, b));
                _mm_storeu_ps(out + 2 * stride, _mm_mul_ps(factors, c));
                _mm_storeu_ps(out + 3 * stride, _mm_mul_ps(factors, d));
            }
            for (; k < depth; ++k)
                for (int64_t i = 0; i < 4; ++i)
                    to[k * stride + lane + i] = factor * from[i * from_stride + k];
        }
    }
#endif
    for (; lane < lanes; ++lane)
        for (int64_t k = 0; k < depth; ++k) to[k * stride + lane] = factor * rows[lane * from_stride + k];
}

template <typename T, int Rows, int Vectors>
DIEN_FAST_INLINE void zero(Vec<T> (&sums)[Rows][Vectors]) {
    unrolled<Rows>([&](auto i) DIEN_FAST_INLINE_LAMBDA {
        unrolled<Vectors>([&](auto v) DIEN_FAST_INLINE_LAMBDA { sums[i.value][v.value] = Vec<T>{}; });
    });
}

// totals[i][v] += the sum over k < depth of left(i, k) times the v-th vector of row k of b, rows b_stride
// apart.
template <typename T, int Rows, int Vectors, typename Left>
DIEN_FAST_INLINE void multiply(Vec<T> (&totals)[Rows][Vectors], const Left& left, const T* b,
                               int64_t b_stride, int64_t depth) {
    auto products = [&](Vec<T>(&sums)[Rows][Vectors], int64_t begin, int64_t end) DIEN_FAST_INLINE_LAMBDA {
        for (int64_t k = begin; k < end; ++k) {
            Vec<T> right[Vectors];
            unrolled<Vectors>(
                [&](auto v) DIEN_FAST_INLINE_LAMBDA { right[v.value] = load(b + v.value * kLanes<T>); });
            unrolled<Rows>([&](auto i) DIEN_FAST_INLINE_LAMBDA {
                const T value = left(i.value, k);
                unrolled<Vectors>([&](auto v) DIEN_FAST_INLINE_LAMBDA {
                    sums[i.value][v.value] += value * right[v.value];
                });
            });
            b += b_stride;
        }
    };
    const int64_t first = depth < kSumLength ? depth : kSumLength;
    products(totals, 0, first);
    for (int64_t begin = first; begin < depth; begin += kSumLength) {
        Vec<T> sums[Rows][Vectors];
        zero<T>(sums);
        products(sums, begin, begin + kSumLength < depth ? begin + kSumLength : depth);
        unrolled<Rows>([&](auto i) DIEN_FAST_INLINE_LAMBDA {
            unrolled<Vectors>(
                [&](auto v) DIEN_FAST_INLINE_LAMBDA { totals[i.value][v.value] += sums[i.value][v.value]; });
        });
    }
}

constexpr int kMostVectors = kLastVectors > kGemmVectors ? kLastVectors : kGemmVectors;

// The rows whose sums with a panel of `Vectors` vectors fit the registers.
template <int Vectors>
constexpr int kPanelRows = Vectors > kGemmVectors ? kGemmRows * kGemmVectors / Vectors : kGemmRows;

// Cuts rows [0, rows) into groups as equal as possible, each of at most kPanelRows, and calls f(first row,
// number of rows, vectors), the two numbers as Constants.
template <int Vectors, int Rows, typename F>
DIEN_FAST_INLINE void with_rows(int64_t rows, const F& f) {
    if constexpr (Rows > 1) {
        if (rows < Rows) return with_rows<Vectors, Rows - 1>(rows, f);
    }
    f(Constant<Rows>{}, Constant<Vectors>{});
}
template <int Vectors = kMostVectors, typename F>
DIEN_FAST_INLINE void for_rows(int64_t rows, int64_t vectors, const F& f) {
    if constexpr (Vectors > 1) {
        if (vectors < Vectors) return for_rows<Vectors - 1>(rows, vectors, f);
    }
    constexpr int kMost = kPanelRows<Vectors>;
    const int64_t groups = (rows + kMost - 1) / kMost, least = rows / groups, larger = rows % groups;
    for (int64_t group = 0, row = 0; group < groups; ++group) {
        const int64_t count = least + (group < larger);
        with_rows<Vectors, kMost>(count, [&](auto r, auto v) DIEN_FAST_INLINE_LAMBDA { f(row, r, v); });
        row += count;
    }
}

// Multiplies left [rows, depth] by panels [depth, columns] and calls out(row, column, vector of the product).
template <typename T, typename Out>
DIEN_FAST_INLINE void times_panels(int64_t rows, View<const T> left, const T* panels, int64_t columns,
                                   const Out& out) {
    for (int64_t column = 0, vectors; column < columns; column += vectors * kLanes<T>) {
        vectors = panel_vectors((columns - column + kLanes<T> - 1) / kLanes<T>);
        for_rows(rows, vectors, [&](int64_t i, auto r, auto v) DIEN_FAST_INLINE_LAMBDA {
            constexpr int kCount = decltype(r)::value, kVectors = decltype(v)::value;
            Vec<T> sums[kCount][kVectors];
            zero<T>(sums);
            const T* from[kCount];
            unrolled<kCount>([&](auto row) DIEN_FAST_INLINE_LAMBDA {
                from[row.value] = left.data + (i + row.value) * left.stride;
            });
            multiply<T>(
                sums, [&](int row, int64_t k) DIEN_FAST_INLINE_LAMBDA { return from[row][k]; }, panels,
                kVectors * kLanes<T>, left.columns);
            unrolled<kCount>([&](auto row) DIEN_FAST_INLINE_LAMBDA {
                unrolled<kVectors>([&](auto vector) DIEN_FAST_INLINE_LAMBDA {
                    out(i + row.value, column + vector.value * kLanes<T>, sums[row.value][vector.value]);
                });
            });
        });
        panels += left.columns * vectors * kLanes<T>;
    }
}

// out [left.columns, padded right.columns] += the transpose of left [count, ...] times right [count, ...].
template <typename T>
void add_outer(int64_t count, View<const T> left, View<const T> right, T* out) {
    const int64_t out_stride = padded<T>(right.columns);
    for (int64_t column = 0, vectors; column < out_stride; column += vectors * kLanes<T>) {
        vectors = panel_vectors((out_stride - column) / kLanes<T>);
        for_rows(left.columns, vectors, [&](int64_t i, auto r, auto v) DIEN_FAST_INLINE_LAMBDA {
            constexpr int kCount = decltype(r)::value, kVectors = decltype(v)::value;
            Vec<T> sums[kCount][kVectors];
            zero<T>(sums);
            const T* from = left.data + i;
            multiply<T>(
                sums, [&](int row, int64_t k) DIEN_FAST_INLINE_LAMBDA { return from[k * left.stride + row]; },
                right.data + column, right.stride, count);
            T* to = out + i * out_stride + column;
            unrolled<kCount>([&](auto row) DIEN_FAST_INLINE_LAMBDA {
                unrolled<kVectors>([&](auto vector) DIEN_FAST_INLINE_LAMBDA {
                    T* at = to + row.value * out_stride + vector.value * kLanes<T>;
                    store(at, load(at) + sums[row.value][vector.value]);
                });
            });
        });
    }
}
