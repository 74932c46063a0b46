// The forward scan of the attention GRU: runs the steps of a chunk, whose inputs' products with W are there
// already (gx).

#pragma once

#include "scan.cuh"

namespace dien_fast::cuda {

template <typename T>
struct ForwardScan {
    using W = Wide<T>;
    Histories histories;
    Chunk chunk;
    Cell cell;
    int64_t hidden;
    Panels panels;
    const W* weights;         // forward panels
    const W* c_bias;          // [H]
    const W* gx;              // rows (u | r | n) of what x adds
    const int64_t* gx_start;  // [B] row of gx of each position's first step
    int ahead;       // steps that gx is fetched ahead; with streamed weights its two places alternate
    const W* att;    // or null for gru
    const W* start;  // [B, H] states before the chunk, or null for 0
    T* states;       // or null
    W* wide_states;  // or null
    T* last;         // [B, H]
    W* carried;      // [B, H] states at the end of the chunk, or null in the last one; may be `start`
};

template <typename T, int kGates, int kRows, bool kResident>
int forward_shared_bytes(const Panels& p, int ahead) {
    using W = Wide<T>;
    const int numbers = 2 * p.depth * kRows + ahead * kGates * kRows * p.columns;
    return PanelReader<W, kResident>::shared_bytes(p) + numbers * int(sizeof(W));
}

template <typename T, int kGates, int kRows, bool kResident>
__global__ void __launch_bounds__(kScanMaxThreads) forward_kernel(ForwardScan<T> f) {
    using W = Wide<T>;
    constexpr int kOwn = kRows / 4;
    using OwnRows = Vector<W, kOwn>;
    const Panels& p = f.panels;
    const int blocks = kResident ? 1 : p.blocks;  // of columns
    const int64_t hidden = f.hidden;
    const Owner owner;
    const int steps = longest<kRows>(f.histories, f.chunk);

    SharedMemory shared;
    PanelReader<W, kResident> reader(shared, f.weights, p);
    W* h = shared.take<W>(2 * p.depth * kRows);  // [2][depth][kRows], this step's states and the next one's
    W* fetched = shared.take<W>(f.ahead * kGates * kRows * p.columns);  // [ahead][kGates kOwn][threads]

    OwnHistory own[kOwn];
    const W* gx[kOwn];
    // The row of the step whose attention is fetched, and where to look for that of the next one: what had to
    // be loaded for that is not waited for before the next step.
    int64_t row[kOwn], next_row[kOwn];
    W att[kOwn];
    auto load_att = [&](int s) {
#pragma unroll
        for (int i = 0; i < kOwn; ++i) {
            row[i] = own[i].row_start + next_row[i];
            if (s + 1 < own[i].steps) next_row[i] = step_row(f.histories, own[i].begin + s + 1);
            if (f.att != nullptr && s < own[i].steps) att[i] = f.att[row[i]];
        }
    };
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
        const int64_t position = int64_t(blockIdx.x) * kRows + owner.group * kOwn + i;
        own[i].load(f.histories, f.chunk, position);
        gx[i] = own[i].steps > 0 ? f.gx + f.gx_start[position] * kGates * hidden : nullptr;
        row[i] = 0;
        next_row[i] = own[i].steps > 0 ? step_row(f.histories, own[i].begin) : int64_t(0);
        att[i] = 0;
        for (int block = 0; block < blocks; ++block) {
            const int column = block * p.columns + owner.column;
            const bool some = column < hidden && position < f.histories.batch && f.start != nullptr;
            if (column < p.depth)
                h[column * kRows + owner.group * kOwn + i] =
                    some ? f.start[own[i].history * hidden + column] : W(0);
        }
    }
    // Every thread fetches what it alone will read, so that no barrier is needed.
    auto fetch = [&](int s, int block, int place) {
        const int column = block * p.columns + owner.column;
#pragma unroll
        for (int i = 0; i < kOwn; ++i) {
            if (s >= own[i].steps || column >= hidden) continue;
            const W* from = gx[i] + s * kGates * hidden + column;
#pragma unroll
            for (int gate = 0; gate < kGates; ++gate)
                copy_async<sizeof(W)>(
                    fetched + ((place * kGates + gate) * kOwn + i) * blockDim.x + threadIdx.x,
                    from + gate * hidden);
        }
    };
    if constexpr (kResident) {
        for (int s = 0; s < f.ahead; ++s) {
            fetch(s, 0, s);
            copy_async_commit();
        }
        copy_async_wait<0>();
    } else {
        fetch(0, 0, 0);  // is committed with the first stage below
    }
    W c_bias = 0;
    if constexpr (kResident)
        if (owner.column < hidden) c_bias = f.c_bias[owner.column];
    load_att(0);
    __syncthreads();

    int place = 0;  // in `fetched`
    for (int s = 0; s < steps; ++s) {
        const W* h_now = h + (s & 1) * p.depth * kRows;
        W* h_next = h + (1 - (s & 1)) * p.depth * kRows;
        int64_t own_row[kOwn];
        W own_att[kOwn];
#pragma unroll
        for (int i = 0; i < kOwn; ++i) {
            own_row[i] = row[i];
            own_att[i] = att[i];
        }
        load_att(s + 1);
        for (int block = 0; block < blocks; ++block) {
            const int column = block * p.columns + owner.column;
            W from_x[kGates][kOwn];
            auto take_fetched = [&] {
#pragma unroll
                for (int gate = 0; gate < kGates; ++gate)
#pragma unroll
                    for (int i = 0; i < kOwn; ++i)
                        from_x[gate][i] =
                            fetched[((place * kGates + gate) * kOwn + i) * blockDim.x + threadIdx.x];
            };
            if constexpr (kResident) {
                if (f.ahead == 4)
                    copy_async_wait<3>();
                else if (f.ahead == 2)
                    copy_async_wait<1>();
                else
                    copy_async_wait<0>();
                take_fetched();
                fetch(s + f.ahead, 0, place);
                copy_async_commit();
                place = place + 1 == f.ahead ? 0 : place + 1;
            } else {
                // Is committed with the first stage below, and so has arrived when the last one is read.
                const bool wraps = block + 1 == blocks;
                fetch(wraps ? s + 1 : s, wraps ? 0 : block + 1, 1 - place);
            }

            W sums[kGates][kRows] = {};
            Stage<W> stage;
            do {
                stage = reader.next();
                const W* u = stage.rows + owner.group * p.stride + owner.warp * kGates * kWarpColumns +
                             owner.lane % kWarpColumns;
                const W* other = h_now + (stage.first + owner.group) * kRows;
#pragma unroll 4
                for (int k = 0; k < stage.count; k += 4, u += 4 * p.stride, other += 4 * kRows) {
                    const auto rows = *reinterpret_cast<const Vector<W, kRows>*>(other);
#pragma unroll
                    for (int gate = 0; gate < kGates; ++gate) {
                        const W weight = u[gate * kWarpColumns];
#pragma unroll
                        for (int i = 0; i < kRows; ++i) sums[gate][i] += weight * rows.values[i];
                    }
                }
            } while (!stage.last);
            if constexpr (!kResident) {
                take_fetched();
                place = 1 - place;
            }
#pragma unroll
            for (int gate = 0; gate < kGates; ++gate) {
                exchange<kRows>(sums[gate], owner.lane, 16);
                exchange<kRows / 2>(sums[gate], owner.lane, 8);
            }

            if (column >= p.depth) continue;
            const int at = column * kRows + owner.group * kOwn;
            auto state = *reinterpret_cast<const OwnRows*>(h_now + at);
            if (column < hidden) {
                if constexpr (!kResident) c_bias = f.c_bias[column];
#pragma unroll
                for (int i = 0; i < kOwn; ++i) {
                    if (s >= own[i].steps) continue;
                    const Rule<W> z = rule<W>(f.cell, own_att[i]);
                    W share = z.alpha;
                    if constexpr (kGates == 3) share += z.beta * sigmoid(from_x[0][i] + sums[1][i]);
                    const W r = sigmoid(from_x[kGates - 2][i] + sums[kGates - 1][i]);
                    const W n = hyperbolic_tangent(from_x[kGates - 1][i] + r * (sums[0][i] + c_bias));
                    state.values[i] += share * (n - state.values[i]);
                    const int64_t to = own_row[i] * hidden + column;
                    if (f.states != nullptr) store(f.states[to], state.values[i]);
                    if constexpr (sizeof(T) < sizeof(W))
                        if (f.wide_states != nullptr) f.wide_states[to] = state.values[i];
                }
            }
            *reinterpret_cast<OwnRows*>(h_next + at) = state;
        }
        if constexpr (kResident) __syncthreads();
    }

    const W* h_end = h + (steps & 1) * p.depth * kRows;
    for (int block = 0; block < blocks; ++block) {
        const int column = block * p.columns + owner.column;
        if (column >= hidden) continue;
#pragma unroll
        for (int i = 0; i < kOwn; ++i) {
            if (int64_t(blockIdx.x) * kRows + owner.group * kOwn + i >= f.histories.batch) continue;
            const W value = h_end[column * kRows + owner.group * kOwn + i];
            store(f.last[own[i].history * hidden + column], value);
            if (f.carried != nullptr) f.carried[own[i].history * hidden + column] = value;
        }
    }
    copy_async_wait<0>();
}

}  // namespace dien_fast::cuda
