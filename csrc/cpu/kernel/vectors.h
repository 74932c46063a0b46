// Vectors of the instruction set that this is compiled for, and the activations of vectors. Included by the
// kernels alone, inside their namespace.

#define DIEN_FAST_INLINE inline __attribute__((always_inline))
#define DIEN_FAST_INLINE_LAMBDA __attribute__((always_inline))

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

// `size` rounded up to whole vectors.
template <typename T>
int64_t padded(int64_t size) {
    return (size + kLanes<T> - 1) / kLanes<T> * kLanes<T>;
}

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
    T lanes[kLanes<T>];
    store(lanes, v);
    for (int half = kLanes<T> / 2; half > 0; half /= 2)
        for (int lane = 0; lane < half; ++lane) lanes[lane] += lanes[lane + half];
    return lanes[0];
}

// Copies `size` numbers and writes zeros to the end of the last vector. Writes zeros alone if `from` is null.
template <typename T>
DIEN_FAST_INLINE void copy_padded(T* to, const T* from, int64_t size) {
    if (from == nullptr) {
        std::memset(to, 0, padded<T>(size) * sizeof(T));
        return;
    }
    int64_t i = 0;
    for (; i + kLanes<T> <= size; i += kLanes<T>) store(to + i, load(from + i));
    if (i == size) return;
    store(to + i, Vec<T>{});
    for (; i < size; ++i) to[i] = from[i];
}

template <typename T>
DIEN_FAST_INLINE void prefetch(const T* from, int64_t size) {
    for (int64_t i = 0; i < size; i += 64 / int64_t(sizeof(T))) __builtin_prefetch(from + i);
}

// Weights are multiplied by a factor when they are packed, so that sums are arguments of 2^t instead of e^v:
// by -log2(e) for the sigmoids of u and r, by 2 log2(e) for the tanh of n. `from_candidate` takes the latter
// back. Doubles are for checks of the floats; they have no factor and call the C library.
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

// v clamped to [-limit, limit]. NaN stays NaN: the instructions return their second operand where either is
// NaN, and comparisons with NaN are false. (The masks of the 512-bit instructions are all ones. GCC warns of
// the unmasked ones that their result may be uninitialised.)
DIEN_FAST_INLINE Vec<float> clamp(Vec<float> v, float limit) {
    const Vec<float> high = limit - Vec<float>{};
#if defined(DIEN_FAST_HALF_VECTORS) || (defined(__AVX2__) && !defined(__AVX512F__))
    return (Vec<float>)_mm256_max_ps((__m256)-high, _mm256_min_ps((__m256)high, (__m256)v));
#elif defined(__AVX512F__)
    const __m512 below = _mm512_maskz_min_ps(0xFFFF, (__m512)high, (__m512)v);
    return (Vec<float>)_mm512_maskz_max_ps(0xFFFF, (__m512)-high, below);
#elif defined(__SSE2__)
    return (Vec<float>)_mm_max_ps((__m128)-high, _mm_min_ps((__m128)high, (__m128)v));
#else
    v = v > high ? high : v;
    return v < -high ? -high : v;
#endif
}
// t rounded to a whole number, and 2 to the power of that, for |t| < 127. NaN stays NaN in the former.
struct Whole {
    Vec<float> part, power;
};
DIEN_FAST_INLINE Whole whole(Vec<float> t) {
#if defined(DIEN_FAST_HALF_VECTORS)
    const __m256 one = _mm256_set1_ps(1.0f);
    const __m256 part = _mm256_roundscale_ps((__m256)t, _MM_FROUND_TO_NEAREST_INT);
    return {(Vec<float>)part, (Vec<float>)_mm256_scalef_ps(one, part)};
#elif defined(__AVX512F__)
    const __m512 one = _mm512_set1_ps(1.0f);
    const __m512 part = _mm512_maskz_roundscale_ps(0xFFFF, (__m512)t, _MM_FROUND_TO_NEAREST_INT);
    return {(Vec<float>)part, (Vec<float>)_mm512_maskz_scalef_ps(0xFFFF, one, part)};
#else
    const float magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer in the low bits
    const Vec<float> shifted = t + magic;
    return {shifted - magic, (Vec<float>)(((typename Vector<float>::bits)shifted + 127) << 23)};
#endif
}
// 2^t = scale (1 + rest), for |t| < 127. `scale` is a power of two that is to be multiplied in. Adding its
// exponent to the bits of 1 + rest would be quicker, but could turn NaN into a number.
struct PowerOfTwo {
    Vec<float> scale, rest;
};
DIEN_FAST_INLINE PowerOfTwo power_of_two(Vec<float> t) {
    const Whole n = whole(t);
    const Vec<float> f = t - n.part;
    Vec<float> p = f * 1.535336196e-4f + 1.339887502e-3f;  // minimax on [-1/2, 1/2], relative error 1.6e-8
    p = p * f + 9.618436918e-3f;
    p = p * f + 5.550332367e-2f;
    p = p * f + 2.402264774e-1f;
    p = p * f + 6.931471825e-1f;
    return {n.power, f * p};
}
// The sigmoids of two vectors with one division. The clamp keeps the product of the two denominators finite.
DIEN_FAST_INLINE void sigmoids(Vec<float>& v, Vec<float>& w) {
    const PowerOfTwo of_v = power_of_two(clamp(v, 62.0f)), of_w = power_of_two(clamp(w, 62.0f));
    const Vec<float> one_v = 1.0f + (of_v.scale + of_v.scale * of_v.rest);
    const Vec<float> one_w = 1.0f + (of_w.scale + of_w.scale * of_w.rest);
    const Vec<float> inverse = 1.0f / (one_v * one_w);
    v = inverse * one_w;
    w = inverse * one_v;
}
DIEN_FAST_INLINE Vec<float> sigmoid(Vec<float> v) {
    const PowerOfTwo p = power_of_two(clamp(v, 80.0f));
    return 1.0f / (1.0f + (p.scale + p.scale * p.rest));
}
// tanh(v) of t = 2 log2(e) v. With e = 2^|t| - 1, which is accurate near 0 too, it is e / (e + 2), or 1 - 2 /
// (e + 2) where that rounds less, with the sign of t. Beyond the clamp it rounds to 1.
DIEN_FAST_INLINE Vec<float> hyperbolic_tangent(Vec<float> t) {
    const auto bits = (typename Vector<float>::bits)t;
    const auto sign = bits & INT32_MIN;
    const Vec<float> size = (Vec<float>)(bits ^ sign);
    const PowerOfTwo p = power_of_two(clamp(size, 30.0f));
    const Vec<float> e = p.scale * p.rest + (p.scale - 1.0f);
    const auto large = size > 1.8f;
    const Vec<float> over = large ? -2.0f - Vec<float>{} : e;
    const auto one = large & (typename Vector<float>::bits)(1.0f - Vec<float>{});
    return (Vec<float>)((typename Vector<float>::bits)(over / (e + 2.0f) + (Vec<float>)one) | sign);
}
DIEN_FAST_INLINE Vec<double> sigmoid(Vec<double> v) {
    for (int lane = 0; lane < kLanes<double>; ++lane) v[lane] = 1.0 / (1.0 + exp(-v[lane]));
    return v;
}
DIEN_FAST_INLINE void sigmoids(Vec<double>& v, Vec<double>& w) {
    v = sigmoid(v);
    w = sigmoid(w);
}
DIEN_FAST_INLINE Vec<double> hyperbolic_tangent(Vec<double> v) {
    for (int lane = 0; lane < kLanes<double>; ++lane) v[lane] = tanh(v[lane]);
    return v;
}

template <int N>
struct Constant {
    static constexpr int value = N;
};
// Calls f(Constant<0>{}) ... f(Constant<N - 1>{}): a loop whose counter is a constant, so that arrays that it
// indexes stay in registers.
template <int N, int I = 0, typename F>
DIEN_FAST_INLINE void unrolled(const F& f) {
    if constexpr (I < N) {
        f(Constant<I>{});
        unrolled<N, I + 1>(f);
    }
}
