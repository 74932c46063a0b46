// Times the AVX2 kernels alone, on one core and in its caches, against a loop of independent multiply-adds.
//
//     c++ -std=c++17 -O3 -Wno-psabi -fno-math-errno -ffp-contract=fast -mavx2 -mfma -Icsrc
//         csrc/cpu/attention_gru_kernel.cpp benchmarks/core.cpp -o build/core && build/core
//
// 48 histories of 20 steps; a figure is the least of several hundred runs, counting 12 H^2 operations a step
// forward and 24 H^2 backward, in percent of the loop's rate.

#include <immintrin.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "attention_gru.h"

using namespace dien_fast;

namespace {

constexpr int64_t kHistories = 48, kSteps = 20, kRows = kHistories * kSteps;

template <typename F>
double least_seconds(int runs, const F& f) {
    double least = 1e9;
    for (int i = 0; i < runs; ++i) {
        const auto begin = std::chrono::steady_clock::now();
        f();
        const std::chrono::duration<double> passed = std::chrono::steady_clock::now() - begin;
        least = std::min(least, passed.count());
    }
    return least;
}

// Memory for the whole run of the program.
float* numbers(int64_t count, float size) {
    void* memory = nullptr;
    if (posix_memalign(&memory, 64, (count + 64) * sizeof(float)) != 0) std::abort();
    float* out = static_cast<float*>(memory);
    for (int64_t i = 0; i < count + 64; ++i) out[i] = size * float(std::rand() % 2001 - 1000) / 1000;
    return out;
}

double multiply_add_rate() {
    const __m256 x = _mm256_set1_ps(0.999f), y = _mm256_set1_ps(1e-3f);
    __m256 a = x, b = x, c = x, d = x, e = x, f = x, g = x, h = x, i = x, j = x;
    constexpr int kTurns = 100000;
    const double seconds = least_seconds(30, [&] {
        for (int turn = 0; turn < kTurns; ++turn) {
            for (__m256* sum : {&a, &b, &c, &d, &e, &f, &g, &h, &i, &j}) *sum = _mm256_fmadd_ps(*sum, x, y);
            asm volatile(""
                         : "+x"(a), "+x"(b), "+x"(c), "+x"(d), "+x"(e), "+x"(f), "+x"(g), "+x"(h), "+x"(i),
                           "+x"(j));
        }
    });
    return 10.0 * 16 * kTurns / seconds;
}

void time_size(int64_t hidden, double peak) {
    const Kernels<float>& k = avx2::kFloatKernels;
    const int64_t padded = k.padded(hidden);
    const float scale = 1 / std::sqrt(float(hidden));
    std::vector<int64_t> order(kHistories), lengths(kHistories, kSteps), start(kHistories);
    for (int64_t b = 0; b < kHistories; ++b) order[b] = b, start[b] = b * kSteps;
    const Batch batch{kHistories, order.data(), lengths.data(), start.data(), start.data(), nullptr};
    const float* bias = numbers(3 * hidden, scale);
    const float* w = numbers(3 * hidden * hidden, scale);
    const float* u = numbers(3 * hidden * hidden, scale);
    const Weights<float> weights{Cell::augru, hidden, hidden, w, u, bias, bias};
    float* packed = numbers(k.packed_forward_size(hidden, hidden), 0);
    float* packed_backward = numbers(k.packed_backward_size(hidden, hidden), 0);
    k.pack_forward(weights, packed);
    k.pack_backward(weights, packed_backward);
    const float *x = numbers(kRows * hidden, 1), *att = numbers(kRows, 1);
    const float* dstates = numbers(kRows * hidden, 1);
    float *states = numbers(kRows * hidden, 0), *last = numbers(kHistories * hidden, 0);
    float *gates = numbers(kRows * 4 * padded, 0), *dx = numbers(kRows * hidden, 0),
          *datt = numbers(kRows, 0);
    const WeightGradients<float> sums{numbers(3 * hidden * padded, 0), numbers(3 * hidden * padded, 0),
                                      numbers(4 * hidden, 0)};
    float* scratch =
        numbers(std::max(k.forward_scratch(hidden, hidden), k.backward_scratch(hidden, hidden)), 0);

    auto forward = [&](bool save) {
        const Forward<float> f{batch, weights, packed, x,    hidden,
                               att,   nullptr, states, last, save ? gates : nullptr};
        for (int64_t begin = 0; begin < kHistories; begin += kMaxTileRows)
            k.forward(f, {begin, kMaxTileRows}, scratch);
    };
    auto backward = [&](bool saved) {
        const Backward<float> b{batch,   weights, packed_backward,         packed,  x,       hidden, att,
                                nullptr, states,  saved ? gates : nullptr, dstates, nullptr, dx,     datt,
                                nullptr};
        for (int64_t begin = 0; begin < kHistories; begin += kMaxTileRows)
            k.backward(b, {begin, kMaxTileRows}, sums, scratch);
    };
    const int runs = hidden < 64 ? 1000 : 300;
    const double operations = 12.0 * hidden * hidden * kRows / peak * 100;
    const double plain = least_seconds(runs, [&] { forward(false); });
    const double saving = least_seconds(runs, [&] { forward(true); });
    const double with_saved = least_seconds(runs, [&] { backward(true); });
    const double again = least_seconds(runs, [&] { backward(false); });
    std::printf("| %ld | %.0f %% | %.0f %% | %.0f %% | %.0f %% |\n", long(hidden), operations / plain,
                operations / saving, 2 * operations / with_saved, 2 * operations / again);
}

}  // namespace

int main() {
    static_assert(kHistories % kMaxTileRows == 0);
    const double peak = multiply_add_rate();
    std::printf("multiply-adds: %.1f GFLOP/s\n\n", peak / 1e9);
    std::printf("| H | forward | forward, gates saved | backward | backward, gates computed again |\n");
    std::printf("|---|---|---|---|---|\n");
    for (int64_t hidden : {16, 32, 36, 64, 128}) time_size(hidden, peak);
}
