// The CPU kernels, compiled once per instruction set; the compiler's target chooses the namespace and tile
// shape.
//
// A thread runs one tile of histories through all their steps, so nothing waits for anything. In a step the
// tile goes through the columns of H in blocks of one vector; for a block, kRows histories at a time keep the
// sums of u, r and n (or c) in registers through the products with x and h and the activations. The packed
// weights of a block stay in the first-level cache for all histories of the tile. kRows sums of three gates
// are as many as the registers hold; kMaxTileRows / kRows of them read a block's weights from the second
// level once.
//
// Backward runs the steps in reverse. Only dh_{t-1} = ... + U^T [du' dr' dc] is sequential; the gradients of
// the gates are collected for kChunkRows rows, from which dx and the sums over rows are matrix products.
//
// Everything here is internal to the translation unit: a function shared with other instruction sets could be
// linked from the wrong one.

#include <math.h>
#if defined(__SSE2__)
#include <immintrin.h>
#endif

#include <cstring>

#include "../attention_gru.h"

#if defined(__AVX512F__)
#define DIEN_FAST_ISA avx512
#elif defined(__AVX2__)
#define DIEN_FAST_ISA avx2
#else
#define DIEN_FAST_ISA baseline
#endif

namespace dien_fast {
namespace DIEN_FAST_ISA {
namespace {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64, kRows = 6, kGemmRows = 8, kGemmVectors = 3;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32, kRows = 4, kGemmRows = 6, kGemmVectors = 2;
#else
constexpr int kVectorBytes = 16, kRows = 4, kGemmRows = 6, kGemmVectors = 2;
#endif

constexpr int kChunkRows = 96;
constexpr int kSumLength = 64;  // products added up in one go: rounding grows with the length of a sum
constexpr int kParts = 4;       // of a row of gates: u, r, c, n

#define DIEN_FAST_INLINE inline __attribute__((always_inline))

template <typename T>
struct Vector;
template <>
struct Vector<float> {
    typedef float type __attribute__((vector_size(kVectorBytes)));
    typedef float unaligned __attribute__((vector_size(kVectorBytes), aligned(4)));
    typedef int32_t bits __attribute__((vector_size(kVectorBytes)));
};
template <>
struct Vector<double> {
    typedef double type __attribute__((vector_size(kVectorBytes)));
    typedef double unaligned __attribute__((vector_size(kVectorBytes), aligned(8)));
};
template <typename T>
using Vec = typename Vector<T>::type;

template <typename T>
constexpr int kLanes = kVectorBytes / sizeof(T);

template <typename T>
DIEN_FAST_INLINE Vec<T> load(const T* p) {
    return *reinterpret_cast<const typename Vector<T>::unaligned*>(p);
}
template <typename T>
DIEN_FAST_INLINE void store(T* p, Vec<T> v) {
    *reinterpret_cast<typename Vector<T>::unaligned*>(p) = v;
}
template <typename T>
DIEN_FAST_INLINE T sum(Vec<T> v) {
    T total = 0;
    for (int lane = 0; lane < kLanes<T>; ++lane) total += v[lane];
    return total;
}

// Packed weights carry a factor, so that sums come out as arguments of 2^t instead of e^v: -log2(e) for the
// sigmoids of u and r, 2 log2(e) for the tanh of n. Doubles, which only check the floats, call the C library.
template <typename T>
struct Factor;
template <>
struct Factor<float> {
    static constexpr float gate = -1.44269504f, candidate = 2.88539008f, from_candidate = 0.34657359f;
};
template <>
struct Factor<double> {
    static constexpr double gate = 1, candidate = 1, from_candidate = 1;
};

// v between -limit and limit. NaN stays NaN: the instructions return their second operand for it, and
// comparisons are false.
DIEN_FAST_INLINE Vec<float> clamp(Vec<float> v, float limit) {
    const Vec<float> high = limit - Vec<float>{};
#if defined(__AVX2__) && !defined(__AVX512F__)
    return (Vec<float>)_mm256_max_ps((__m256)-high, _mm256_min_ps((__m256)high, (__m256)v));
#elif defined(__SSE2__) && !defined(__AVX2__)
    return (Vec<float>)_mm_max_ps((__m128)-high, _mm_min_ps((__m128)high, (__m128)v));
#else
    v = v > high ? high : v;
    return v < -high ? -high : v;
#endif
}
// 2^t for |t| < 127. The power of two of t's whole part is multiplied in, not added to bits, so NaN stays
// NaN.
DIEN_FAST_INLINE Vec<float> power_of_two(Vec<float> t) {
    const float magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer in the low bits
    const Vec<float> shifted = t + magic;
    const Vec<float> scale = (Vec<float>)(((typename Vector<float>::bits)shifted + 127) << 23);
    const Vec<float> f = t - (shifted - magic);
    Vec<float> p = f * 1.535336196e-4f + 1.339887502e-3f;  // minimax on [-1/2, 1/2], relative error 1.6e-8
    p = p * f + 9.618436918e-3f;
    p = p * f + 5.550332367e-2f;
    p = p * f + 2.402264774e-1f;
    p = p * f + 6.931471825e-1f;
    return scale + scale * (f * p);
}
// The sigmoids of two vectors with one division; the clamp keeps the product of the denominators finite.
DIEN_FAST_INLINE void sigmoids(Vec<float>& v, Vec<float>& w) {
    const Vec<float> one_v = 1.0f + power_of_two(clamp(v, 62.0f));
    const Vec<float> one_w = 1.0f + power_of_two(clamp(w, 62.0f));
    const Vec<float> inverse = 1.0f / (one_v * one_w);
    v = inverse * one_w;
    w = inverse * one_v;
}
// Near 0 a polynomial in t (Cephes' tanhf in the scaled argument), else 1 - 2 / (1 + 2^|t|), of t's sign.
DIEN_FAST_INLINE Vec<float> hyperbolic_tangent(Vec<float> t) {
    const auto bits = (typename Vector<float>::bits)t;
    const auto sign = bits & INT32_MIN;
    const Vec<float> size = (Vec<float>)(bits ^ sign);
    const Vec<float> square = t * t;
    Vec<float> p = square * -4.943162753e-8f + 1.488845758e-6f;
    p = p * square + -3.227480456e-5f;
    p = p * square + 6.665833492e-4f;
    p = p * square + -1.387600577e-2f;
    const Vec<float> near = t * (square * p + 0.34657359f);
    const Vec<float> far = 1.0f - 2.0f / (1.0f + power_of_two(clamp(size, 30.0f)));  // rounds to 1 beyond
    return size < 1.80336880f ? near : (Vec<float>)((typename Vector<float>::bits)far | sign);
}
DIEN_FAST_INLINE void sigmoids(Vec<double>& v, Vec<double>& w) {
    for (int lane = 0; lane < kLanes<double>; ++lane) {
        v[lane] = 1.0 / (1.0 + exp(-v[lane]));
        w[lane] = 1.0 / (1.0 + exp(-w[lane]));
    }
}
DIEN_FAST_INLINE Vec<double> hyperbolic_tangent(Vec<double> v) {
    for (int lane = 0; lane < kLanes<double>; ++lane) v[lane] = tanh(v[lane]);
    return v;
}

int gate_count(Cell cell) { return cell == Cell::kAgru ? 2 : 3; }

// Row block of u (gate 0), r (1) or n (2) in the caller's weights; -1 where the cell has no such gate.
int gate_block(Cell cell, int gate) {
    if (cell == Cell::kAgru) return gate - 1;
    if (cell == Cell::kGru) return gate == 2 ? 2 : 1 - gate;
    return gate;
}

template <typename T>
struct Rule {
    T alpha, beta;      // z = alpha + beta u
    T alpha_a, beta_a;  // their derivatives in a
};
template <typename T>
Rule<T> rule(Cell cell, T a) {
    switch (cell) {
        case Cell::kAugru:
            return {0, a, 0, 1};
        case Cell::kAugruOfficial:
            return {1, a - 1, 0, 1};
        case Cell::kAugruInverted:
            return {1, -a, 0, -1};
        case Cell::kAgru:
            return {a, 0, 1, 0};
        default:
            return {1, -1, 0, 0};
    }
}

template <typename T>
int64_t padded(int64_t size) {
    return (size + kLanes<T> - 1) / kLanes<T> * kLanes<T>;
}

// ---- Forward ----
// Packed weights of a column block: I rows, then H rows, of kLanes numbers per gate (u, r, n); then four
// biases: b_u, b_r, b_in, b_hn.

template <typename T>
int64_t packed_block(int64_t input, int64_t hidden) {
    return (3 * (input + hidden) + kParts) * kLanes<T>;
}
template <typename T>
int64_t packed_forward_size(int64_t input, int64_t hidden) {
    return packed_block<T>(input, hidden) * (padded<T>(hidden) / kLanes<T>);
}

template <typename T>
void pack_forward(const Weights<T>& weights, T* packed) {
    const int64_t hidden = weights.hidden, input = weights.input;
    const int first = 3 - gate_count(weights.cell), gates = gate_count(weights.cell);
    for (int64_t column = 0; column < padded<T>(hidden); column += kLanes<T>) {
        T* out = packed;
        const int64_t lanes = hidden - column < kLanes<T> ? hidden - column : kLanes<T>;
        std::memset(out, 0, packed_block<T>(input, hidden) * sizeof(T));
        for (int side = 0; side < 2; ++side) {
            const T* matrix = side == 0 ? weights.w : weights.u;
            const int64_t depth = side == 0 ? input : hidden;
            for (int gate = first; gate < 3; ++gate) {
                const T* rows = matrix + (gate_block(weights.cell, gate) * hidden + column) * depth;
                const T factor = gate == 2 ? Factor<T>::candidate : Factor<T>::gate;
                for (int64_t lane = 0; lane < lanes; ++lane) {
                    T* to = out + (gate - first) * kLanes<T> + lane;
                    for (int64_t k = 0; k < depth; ++k)
                        to[k * gates * kLanes<T>] = factor * rows[lane * depth + k];
                }
            }
            out += depth * gates * kLanes<T>;
        }
        for (int64_t lane = 0; lane < lanes; ++lane) {
            auto bias = [&](const T* from, int gate) -> T {
                const int block = gate_block(weights.cell, gate);
                return from == nullptr || block < 0 ? T(0) : from[block * hidden + column + lane];
            };
            out[lane] = Factor<T>::gate * (bias(weights.bias_ih, 0) + bias(weights.bias_hh, 0));
            out[kLanes<T> + lane] = Factor<T>::gate * (bias(weights.bias_ih, 1) + bias(weights.bias_hh, 1));
            out[2 * kLanes<T> + lane] = Factor<T>::candidate * bias(weights.bias_ih, 2);
            out[3 * kLanes<T> + lane] = Factor<T>::candidate * bias(weights.bias_hh, 2);
        }
        packed += packed_block<T>(input, hidden);
    }
}

// The gates of `Rows` histories in one column block.
template <typename T, int Rows, int Gates>
struct GateSums {
    Vec<T> u[Rows], r[Rows], c[Rows], n[Rows];

    // x: a pointer a history; h: histories hidden_stride apart.
    DIEN_FAST_INLINE void run(const T* const* x, const T* h, int64_t hidden_stride, int64_t input,
                              int64_t hidden, const T* packed) {
        constexpr int kStride = Gates * kLanes<T>;
        const T* biases = packed + (input + hidden) * kStride;
        Vec<T> sums[3][Rows];
        for (int i = 0; i < Rows; ++i) {
            sums[0][i] = load(biases);
            sums[1][i] = load(biases + kLanes<T>);
            sums[2][i] = load(biases + 2 * kLanes<T>);
        }
        const T* from[Rows];
        for (int i = 0; i < Rows; ++i) from[i] = x[i];
        accumulate(sums, from, input, packed);
        for (int i = 0; i < Rows; ++i) {
            n[i] = sums[2][i];
            sums[2][i] = load(biases + 3 * kLanes<T>);
            from[i] = h + i * hidden_stride;
        }
        accumulate(sums, from, hidden, packed + input * kStride);
        // One loop an activation, not one a history: the processor overlaps chains that stand side by side.
        for (int i = 0; i < Rows; ++i) {
            u[i] = sums[0][i];
            r[i] = sums[1][i];
            c[i] = sums[2][i];
        }
        if constexpr (Gates == 3) {
            for (int i = 0; i < Rows; ++i) sigmoids(u[i], r[i]);
        } else {
            for (int i = 0; i < Rows; ++i) sigmoids(u[i] = Vec<T>{}, r[i]);
        }
        for (int i = 0; i < Rows; ++i) n[i] = hyperbolic_tangent(n[i] + r[i] * c[i]);
    }

    DIEN_FAST_INLINE static void accumulate(Vec<T> (&totals)[3][Rows], const T* const (&from)[Rows],
                                            int64_t depth, const T* packed) {
        // The first products join the sums in their registers, so that short depths touch no memory.
        const int64_t first = depth < kSumLength ? depth : kSumLength;
        products(totals, from, 0, first, packed);
        for (int64_t begin = first; begin < depth; begin += kSumLength) {
            Vec<T> sums[3][Rows] = {};
            products(sums, from, begin, begin + kSumLength < depth ? begin + kSumLength : depth, packed);
            for (int gate = 3 - Gates; gate < 3; ++gate)
                for (int i = 0; i < Rows; ++i) totals[gate][i] += sums[gate][i];
        }
    }

    DIEN_FAST_INLINE static void products(Vec<T> (&sums)[3][Rows], const T* const (&from)[Rows],
                                          int64_t begin, int64_t end, const T* packed) {
        constexpr int kFirst = 3 - Gates;
        packed += begin * Gates * kLanes<T>;
        for (int64_t k = begin; k < end; ++k) {
#pragma GCC unroll 8
            for (int i = 0; i < Rows; ++i) {
                const T value = from[i][k];
#pragma GCC unroll 3
                for (int gate = kFirst; gate < 3; ++gate)
                    sums[gate][i] += value * load(packed + (gate - kFirst) * kLanes<T>);
            }
            packed += Gates * kLanes<T>;
        }
    }
};

// One step of `Rows` histories in one column block.
template <typename T, int Rows, int Gates>
void step_block(const Weights<T>& weights, const T* packed, int64_t column, const T* const* x,
                const Rule<T>* rules, const T* h, T* h_next, T* const* gates) {
    const int64_t stride = padded<T>(weights.hidden);
    GateSums<T, Rows, Gates> sums;
    sums.run(x, h, stride, weights.input, weights.hidden, packed);
    for (int i = 0; i < Rows; ++i) {
        const Vec<T> before = load(h + i * stride + column);
        const Vec<T> z = Gates == 3 ? rules[i].alpha + rules[i].beta * sums.u[i] : rules[i].alpha - Vec<T>{};
        store(h_next + i * stride + column, before + z * (sums.n[i] - before));
        if (gates != nullptr) {
            T* out = gates[i] + column * kParts;
            store(out, sums.u[i]);
            store(out + kLanes<T>, sums.r[i]);
            store(out + 2 * kLanes<T>, Factor<T>::from_candidate * sums.c[i]);
            store(out + 3 * kLanes<T>, sums.n[i]);
        }
    }
}

template <typename T, int Gates, int Rows = kRows>
void step_rows(int64_t rows, const Weights<T>& weights, const T* packed, int64_t column, const T* const* x,
               const Rule<T>* rules, const T* h, T* h_next, T* const* gates) {
    if constexpr (Rows > 1) {
        if (rows < Rows)
            return step_rows<T, Gates, Rows - 1>(rows, weights, packed, column, x, rules, h, h_next, gates);
    }
    step_block<T, Rows, Gates>(weights, packed, column, x, rules, h, h_next, gates);
}

// One step of up to kMaxTileRows histories: h [rows, padded_hidden] to h_next; gates optional.
template <typename T>
void step(int64_t rows, const Weights<T>& weights, const T* packed, const T* const* x, const Rule<T>* rules,
          const T* h, T* h_next, T* const* gates) {
    const int64_t stride = padded<T>(weights.hidden);
    const int64_t block = packed_block<T>(weights.input, weights.hidden);
    for (int64_t column = 0; column < stride; column += kLanes<T>) {
        for (int64_t i = 0; i < rows; i += kRows) {
            const int64_t count = rows - i < kRows ? rows - i : kRows;
            auto run = weights.cell == Cell::kAgru ? step_rows<T, 2, kRows> : step_rows<T, 3, kRows>;
            run(count, weights, packed, column, x + i, rules + i, h + i * stride, h_next + i * stride,
                gates == nullptr ? nullptr : gates + i);
        }
        packed += block;
    }
}

// Copies `size` numbers and zeroes the rest of the last vector.
template <typename T>
void copy_padded(T* to, const T* from, int64_t size) {
    if (from == nullptr) {
        std::memset(to, 0, padded<T>(size) * sizeof(T));
    } else {
        std::memcpy(to, from, size * sizeof(T));
        std::memset(to + size, 0, (padded<T>(size) - size) * sizeof(T));
    }
}

template <typename T>
int64_t forward_scratch(int64_t, int64_t hidden) {
    return 2 * kMaxTileRows * padded<T>(hidden);
}

template <typename T>
void forward(const Forward<T>& f, Tile tile, T* scratch) {
    const Batch& batch = f.batch;
    const int64_t hidden = f.weights.hidden, stride = padded<T>(hidden);
    const int64_t* order = batch.order + tile.begin;
    T* h = scratch;
    T* h_next = scratch + kMaxTileRows * stride;
    for (int64_t i = 0; i < tile.rows; ++i)
        copy_padded(h + i * stride, f.h0 == nullptr ? nullptr : f.h0 + order[i] * hidden, hidden);

    const T* x[kMaxTileRows];
    T* gates[kMaxTileRows];
    Rule<T> rules[kMaxTileRows];
    int64_t active = tile.rows;
    for (int64_t t = 0;; ++t) {
        // Histories end at their last step, the shortest at the end of the tile first.
        for (; active > 0 && batch.lengths[order[active - 1]] == t; --active)
            std::memcpy(f.last + order[active - 1] * hidden, h + (active - 1) * stride, hidden * sizeof(T));
        if (active == 0) break;
        const int64_t step_start = batch.step(t);
        for (int64_t i = 0; i < active; ++i) {
            const int64_t row = batch.row_start[order[i]] + step_start;
            x[i] = f.x + (batch.x_start[order[i]] + step_start) * f.x_stride;
            rules[i] = rule<T>(f.weights.cell, f.att == nullptr ? T(0) : f.att[row]);
            if (f.gates != nullptr) gates[i] = f.gates + row * kParts * stride;
        }
        step(active, f.weights, f.packed, x, rules, h, h_next, f.gates == nullptr ? nullptr : gates);
        T* swap = h;
        h = h_next;
        h_next = swap;
        if (f.states != nullptr)
            for (int64_t i = 0; i < active; ++i) {
                const int64_t row = batch.row_start[order[i]] + step_start;
                std::memcpy(f.states + row * hidden, h + i * stride, hidden * sizeof(T));
            }
    }
}

// ---- Backward ----
// Packed weights: U then W, each as panels of kGemmVectors vectors of its columns, G H rows (u, r, n) deep.

template <typename T>
constexpr int kPanel = kGemmVectors * kLanes<T>;

template <typename T>
int64_t panels(int64_t columns) {
    return (columns + kPanel<T> - 1) / kPanel<T>;
}
template <typename T>
int64_t packed_backward_size(int64_t input, int64_t hidden) {
    return 3 * hidden * kPanel<T> * (panels<T>(input) + panels<T>(hidden));
}

template <typename T>
void pack_backward(const Weights<T>& weights, T* packed) {
    const int64_t hidden = weights.hidden;
    for (int side = 0; side < 2; ++side) {
        const T* matrix = side == 0 ? weights.u : weights.w;
        const int64_t columns = side == 0 ? hidden : weights.input;
        for (int64_t panel = 0; panel < panels<T>(columns); ++panel) {
            const int64_t column = panel * kPanel<T>;
            const int64_t lanes = columns - column < kPanel<T> ? columns - column : kPanel<T>;
            for (int gate = 3 - gate_count(weights.cell); gate < 3; ++gate) {
                const T* rows = matrix + gate_block(weights.cell, gate) * hidden * columns + column;
                for (int64_t k = 0; k < hidden; ++k, packed += kPanel<T>) {
                    std::memcpy(packed, rows + k * columns, lanes * sizeof(T));
                    std::memset(packed + lanes, 0, (kPanel<T> - lanes) * sizeof(T));
                }
            }
        }
    }
}

// sums[i][v] += sum over k of a[i * row + k * depth_stride] * b[k * b_stride + v kLanes ...]
template <typename T, int Rows, int Vectors>
DIEN_FAST_INLINE void multiply(Vec<T> (&totals)[Rows][Vectors], const T* a, int64_t row, int64_t depth_stride,
                               const T* b, int64_t b_stride, int64_t depth) {
    for (int64_t begin = 0; begin < depth; begin += kSumLength) {
        const int64_t end = begin + kSumLength < depth ? begin + kSumLength : depth;
        Vec<T> sums[Rows][Vectors] = {};
        for (int64_t k = begin; k < end; ++k) {
            Vec<T> right[Vectors];
#pragma GCC unroll 8
            for (int v = 0; v < Vectors; ++v) right[v] = load(b + v * kLanes<T>);
#pragma GCC unroll 8
            for (int i = 0; i < Rows; ++i) {
                const T left = a[i * row];
#pragma GCC unroll 8
                for (int v = 0; v < Vectors; ++v) sums[i][v] += left * right[v];
            }
            a += depth_stride;
            b += b_stride;
        }
        for (int i = 0; i < Rows; ++i)
            for (int v = 0; v < Vectors; ++v) totals[i][v] += sums[i][v];
    }
}

// Calls f with the integral constants of min(rows, kGemmRows) and min(vectors, kGemmVectors).
template <int N>
struct Constant {
    static constexpr int value = N;
};
template <int Rows = kGemmRows, int Vectors = kGemmVectors, typename F>
DIEN_FAST_INLINE void with_shape(int64_t rows, int64_t vectors, const F& f) {
    if constexpr (Vectors > 1) {
        if (vectors < Vectors) return with_shape<Rows, Vectors - 1>(rows, vectors, f);
    }
    if constexpr (Rows > 1) {
        if (rows < Rows) return with_shape<Rows - 1, Vectors>(rows, vectors, f);
    }
    f(Constant<Rows>{}, Constant<Vectors>{});
}

// What the reverse run of one tile keeps: the carried dh, and the rows collected for the matrix products.
template <typename T>
struct Collected {
    T* dh;        // [kMaxTileRows, padded_hidden]
    T* dgates;    // [kChunkRows, 4, padded_hidden]: du', dr', dc, dn'
    T* x;         // [kChunkRows, padded_input]
    T* h;         // [kChunkRows, padded_hidden], the states before
    T* regained;  // [kMaxTileRows, 4, padded_hidden], gates that were not saved
    T* unused_h;  // [kMaxTileRows, padded_hidden], their next states
    int64_t rows[kChunkRows];
    int64_t count = 0;
};

template <typename T>
int64_t backward_scratch(int64_t input, int64_t hidden) {
    return padded<T>(hidden) * (kMaxTileRows * (2 + kParts) + kChunkRows * (kParts + 1)) +
           padded<T>(input) * kChunkRows;
}

// out[i, :] (row pointers or rows apart) = or += [gates] times one side's packed panels.
template <typename T, typename Out>
void times_weights(int64_t rows, const T* dgates, const int (&parts)[3], int gates, int64_t hidden,
                   const T* packed, int64_t columns, const Out& out) {
    const int64_t stride = padded<T>(hidden);
    for (int64_t panel = 0; panel < panels<T>(columns); ++panel) {
        const int64_t column = panel * kPanel<T>;
        const int64_t vectors = (columns - column + kLanes<T> - 1) / kLanes<T>;
        for (int64_t i = 0; i < rows; i += kGemmRows) {
            with_shape(rows - i, vectors, [&](auto r, auto v) {
                Vec<T> sums[decltype(r)::value][decltype(v)::value] = {};
                const T* b = packed;
                for (int gate = 3 - gates; gate < 3; ++gate) {
                    multiply(sums, dgates + i * kParts * stride + parts[gate] * stride, kParts * stride, 1, b,
                             kPanel<T>, hidden);
                    b += hidden * kPanel<T>;
                }
                for (int row = 0; row < decltype(r)::value; ++row)
                    for (int vector = 0; vector < decltype(v)::value; ++vector)
                        out(i + row, column + vector * kLanes<T>, sums[row][vector]);
            });
        }
        packed += gates * hidden * kPanel<T>;
    }
}

// out [gates H, padded columns] += [gates]^T rows, over the collected rows.
template <typename T>
void add_outer(int64_t count, const T* dgates, const int (&parts)[3], int gates, int64_t hidden,
               const T* rows, int64_t columns, T* out) {
    const int64_t stride = padded<T>(hidden), out_stride = padded<T>(columns);
    for (int64_t column = 0; column < out_stride; column += kPanel<T>) {
        const int64_t vectors = (out_stride - column) / kLanes<T>;
        for (int gate = 3 - gates; gate < 3; ++gate) {
            for (int64_t i = 0; i < hidden; i += kGemmRows) {
                with_shape(hidden - i, vectors, [&](auto r, auto v) {
                    Vec<T> sums[decltype(r)::value][decltype(v)::value];
                    T* to = out + (gate * hidden + i) * out_stride + column;
                    for (int row = 0; row < decltype(r)::value; ++row)
                        for (int vector = 0; vector < decltype(v)::value; ++vector)
                            sums[row][vector] = load(to + row * out_stride + vector * kLanes<T>);
                    multiply(sums, dgates + parts[gate] * stride + i, 1, kParts * stride, rows + column,
                             out_stride, count);
                    for (int row = 0; row < decltype(r)::value; ++row)
                        for (int vector = 0; vector < decltype(v)::value; ++vector)
                            store(to + row * out_stride + vector * kLanes<T>, sums[row][vector]);
                });
            }
        }
    }
}

constexpr int kInputParts[3] = {0, 1, 3};   // du', dr', dn'
constexpr int kHiddenParts[3] = {0, 1, 2};  // du', dr', dc

template <typename T>
void flush(const Backward<T>& b, Collected<T>& c, const WeightGradients<T>& sums) {
    const int64_t hidden = b.weights.hidden, input = b.weights.input, stride = padded<T>(hidden);
    const int gates = gate_count(b.weights.cell);
    if (b.dx != nullptr) {
        const T* packed = b.packed + gates * hidden * kPanel<T> * panels<T>(hidden);
        times_weights(c.count, c.dgates, kInputParts, gates, hidden, packed, input,
                      [&](int64_t i, int64_t column, Vec<T> value) {
                          T* to = b.dx + c.rows[i] * input + column;
                          if (input - column >= kLanes<T>)
                              store(to, value);
                          else
                              for (int64_t lane = 0; lane < input - column; ++lane) to[lane] = value[lane];
                      });
    }
    add_outer(c.count, c.dgates, kInputParts, gates, hidden, c.x, input, sums.dw);
    add_outer(c.count, c.dgates, kHiddenParts, gates, hidden, c.h, hidden, sums.du);
    for (int64_t column = 0; column < kParts * stride; column += kLanes<T>) {
        Vec<T> total = {};
        for (int64_t i = 0; i < c.count; ++i) total += load(c.dgates + i * kParts * stride + column);
        store(sums.db + column, load(sums.db + column) + total);
    }
    c.count = 0;
}

// The gradients of one history's gates in one step; dh in, dh (1 - z) out. Returns da.
template <typename T>
T gate_gradients(int64_t hidden, const T* gates, bool has_u, const Rule<T>& rule, const T* h, const T* dstate,
                 T* dh, T* dgates) {
    const int64_t stride = padded<T>(hidden);
    Vec<T> da = {};
    for (int64_t column = 0; column < stride; column += kLanes<T>) {
        const T* saved = gates + column * kParts;
        const Vec<T> u = has_u ? load(saved) : Vec<T>{};
        const Vec<T> r = load(saved + kLanes<T>);
        const Vec<T> c = load(saved + 2 * kLanes<T>);
        const Vec<T> n = load(saved + 3 * kLanes<T>);
        Vec<T> d = load(dh + column);
        if (dstate != nullptr) {
            if (hidden - column >= kLanes<T>)
                d += load(dstate + column);
            else
                for (int64_t lane = 0; lane < hidden - column; ++lane) d[lane] += dstate[column + lane];
        }
        const Vec<T> z = rule.alpha + rule.beta * u;
        const Vec<T> dz = d * (n - load(h + column));
        const Vec<T> dn = d * z * (T(1) - n * n);
        da += dz * (rule.alpha_a + rule.beta_a * u);
        store(dgates + column, dz * rule.beta * u * (T(1) - u));
        store(dgates + stride + column, dn * c * r * (T(1) - r));
        store(dgates + 2 * stride + column, dn * r);
        store(dgates + 3 * stride + column, dn);
        store(dh + column, d * (T(1) - z));
    }
    return sum<T>(da);
}

template <typename T>
void backward(const Backward<T>& b, Tile tile, const WeightGradients<T>& sums, T* scratch) {
    const Batch& batch = b.batch;
    const int64_t hidden = b.weights.hidden, input = b.weights.input, stride = padded<T>(hidden);
    const int gates = gate_count(b.weights.cell);
    const int64_t* order = batch.order + tile.begin;
    Collected<T> c;
    auto take = [&](int64_t size) {
        T* at = scratch;
        scratch += size;
        return at;
    };
    c.dh = take(kMaxTileRows * stride);
    c.unused_h = take(kMaxTileRows * stride);
    c.regained = take(kMaxTileRows * kParts * stride);
    c.dgates = take(kChunkRows * kParts * stride);
    c.h = take(kChunkRows * stride);
    c.x = take(kChunkRows * padded<T>(input));
    for (int64_t i = 0; i < tile.rows; ++i)
        copy_padded(c.dh + i * stride, b.dlast == nullptr ? nullptr : b.dlast + order[i] * hidden, hidden);

    Rule<T> rules[kMaxTileRows];
    const T* x[kMaxTileRows];
    T* regained[kMaxTileRows];
    int64_t active = 0;
    for (int64_t t = batch.lengths[order[0]] - 1; t >= 0; --t) {
        while (active < tile.rows && batch.lengths[order[active]] > t) ++active;
        if (c.count + active > kChunkRows) flush(b, c, sums);
        const int64_t first = c.count, step_start = batch.step(t);
        const int64_t step_before = t > 0 ? batch.step(t - 1) : 0;
        for (int64_t i = 0; i < active; ++i) {
            const int64_t history = order[i], at = first + i;
            const T* before = b.states + (batch.row_start[history] + step_before) * hidden;
            if (t == 0) before = b.h0 == nullptr ? nullptr : b.h0 + history * hidden;
            c.rows[at] = batch.row_start[history] + step_start;
            copy_padded(c.h + at * stride, before, hidden);
            copy_padded(c.x + at * padded<T>(input), b.x + (batch.x_start[history] + step_start) * b.x_stride,
                        input);
            rules[i] = rule<T>(b.weights.cell, b.att == nullptr ? T(0) : b.att[c.rows[at]]);
            x[i] = c.x + at * padded<T>(input);
            regained[i] = c.regained + i * kParts * stride;
        }
        if (b.gates == nullptr)
            step(active, b.weights, b.packed_gates, x, rules, c.h + first * stride, c.unused_h, regained);
        for (int64_t i = 0; i < active; ++i) {
            const int64_t at = first + i, row = c.rows[at];
            const T* saved = b.gates == nullptr ? regained[i] : b.gates + row * kParts * stride;
            const T da = gate_gradients(hidden, saved, gates == 3, rules[i], c.h + at * stride,
                                        b.dstates == nullptr ? nullptr : b.dstates + row * hidden,
                                        c.dh + i * stride, c.dgates + at * kParts * stride);
            if (b.datt != nullptr) b.datt[row] = da;
        }
        times_weights(active, c.dgates + first * kParts * stride, kHiddenParts, gates, hidden, b.packed,
                      hidden, [&](int64_t i, int64_t column, Vec<T> value) {
                          T* to = c.dh + i * stride + column;
                          store(to, load(to) + value);
                      });
        c.count += active;
    }
    flush(b, c, sums);
    if (b.dh0 != nullptr)
        for (int64_t i = 0; i < tile.rows; ++i)
            std::memcpy(b.dh0 + order[i] * hidden, c.dh + i * stride, hidden * sizeof(T));
}

}  // namespace

template <typename T>
static constexpr Kernels<T> kernels() {
    return {padded<T>,        packed_forward_size<T>, packed_backward_size<T>, pack_forward<T>,
            pack_backward<T>, forward_scratch<T>,     backward_scratch<T>,     forward<T>,
            backward<T>};
}

extern const Kernels<float> kFloatKernels = kernels<float>();
extern const Kernels<double> kDoubleKernels = kernels<double>();

}  // namespace DIEN_FAST_ISA
}  // namespace dien_fast
