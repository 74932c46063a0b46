// The cells of the attention GRU: one table, from which the checks, the CPU kernels and the CUDA kernels take
// all that tells one cell from another. The equations are in attention_gru.h. To add a cell, add a row.
//
// Everything here has internal linkage. Of a function that several translation units share, the linker keeps
// one copy for all of them, and that could be one compiled for instructions that the machine does not have.

#pragma once

#include <cstdint>

#if defined(__CUDACC__)  // device code calls these functions too
#define DIEN_FAST_HOST_DEVICE __host__ __device__
#else
#define DIEN_FAST_HOST_DEVICE
#endif

namespace dien_fast {

// A step replaces the share z = alpha + beta u of the state; `a` is the attention of the step, alpha' and
// beta' are derivatives in a. Weights and biases have a block of H rows for each gate: the columns u, r and n
// tell which block is the gate's, -1 that the cell has no such gate.
//
// A cell's number is its place in the table. Python passes it and exported programs contain it, so a new row
// goes to the end.
//
// clang-format off
//        cell            u  r  n  alpha   beta  alpha'  beta'
#define DIEN_FAST_CELLS(CELL)                                  \
    CELL(augru,           0, 1, 2,     0,     a,      0,     1) \
    CELL(augru_official,  0, 1, 2,     1, a - 1,      0,     1) \
    CELL(augru_inverted,  0, 1, 2,     1,    -a,      0,    -1) \
    CELL(agru,           -1, 0, 1,     a,     0,      1,     0) \
    CELL(gru,             1, 0, 2,     1,    -1,      0,     0)
// clang-format on

#define DIEN_FAST_ROW(cell, ...) cell,
enum class Cell : int64_t { DIEN_FAST_CELLS(DIEN_FAST_ROW) };
#undef DIEN_FAST_ROW

#define DIEN_FAST_ROW(...) +1
constexpr int64_t kCellCount = DIEN_FAST_CELLS(DIEN_FAST_ROW);
#undef DIEN_FAST_ROW

#define DIEN_FAST_ROW(cell, u, r, n, ...)                                                           \
    static_assert(u != r && r != n && n != u && r >= 0 && n >= 0 && u + r + n == (u == -1 ? 0 : 3), \
                  #cell " must have a block for r and n, and for u or -1, counted from 0");
DIEN_FAST_CELLS(DIEN_FAST_ROW)
#undef DIEN_FAST_ROW

enum Gate { kUpdate, kReset, kCandidate };  // u, r, n

// The gate's block of rows in the caller's weights and biases, or -1.
static DIEN_FAST_HOST_DEVICE constexpr int gate_block(Cell cell, Gate gate) {
    switch (cell) {
#define DIEN_FAST_ROW(cell, u, r, n, ...) \
    case Cell::cell:                      \
        return gate == kUpdate ? u : gate == kReset ? r : n;
        DIEN_FAST_CELLS(DIEN_FAST_ROW)
#undef DIEN_FAST_ROW
    }
    __builtin_unreachable();
}

static DIEN_FAST_HOST_DEVICE constexpr bool has_update_gate(Cell cell) {
    return gate_block(cell, kUpdate) >= 0;
}

// G, the number of blocks.
static DIEN_FAST_HOST_DEVICE constexpr int gate_count(Cell cell) { return has_update_gate(cell) ? 3 : 2; }

// The kernels have orders of their own, the same for every cell: (u | r | n) for what is multiplied by x, and
// (c | u | r) for what is multiplied by h, where c is the candidate's part; both without u where the cell has
// none. So a row (c | u | r | n) holds the gates of either product in one piece. These tell the gate at a
// place.
static DIEN_FAST_HOST_DEVICE constexpr Gate x_gate(Cell cell, int place) {
    return Gate(place + 3 - gate_count(cell));
}
static DIEN_FAST_HOST_DEVICE constexpr Gate h_gate(Cell cell, int place) {
    return place == 0 ? kCandidate : x_gate(cell, place - 1);
}

template <typename T>
struct Rule {
    T alpha, beta;      // z = alpha + beta u
    T alpha_a, beta_a;  // their derivatives in a
};
template <typename T>
static DIEN_FAST_HOST_DEVICE constexpr Rule<T> rule(Cell cell, T a) {
    switch (cell) {
#define DIEN_FAST_ROW(cell, u, r, n, alpha, beta, alpha_a, beta_a) \
    case Cell::cell:                                               \
        return {T(alpha), T(beta), T(alpha_a), T(beta_a)};
        DIEN_FAST_CELLS(DIEN_FAST_ROW)
#undef DIEN_FAST_ROW
    }
    __builtin_unreachable();
}

// Whether z depends on the attention. The derivative may be 0 at one attention, as that of a * a is at 0, so
// several are tried.
static constexpr bool needs_attention(Cell cell) {
    constexpr double attentions[] = {-0.7, 0.3, 1.9};
    for (const double a : attentions) {
        const Rule<double> z = rule<double>(cell, a);
        if (z.alpha_a != 0 || z.beta_a != 0) return true;
    }
    return false;
}

}  // namespace dien_fast
