// The backward scan of the attention GRU: runs the steps of a chunk from the last to the first. It finds the
// arguments of their gates, which were computed for all steps at once, and puts the gradients in their place.
// Only dh_{t-1} = dh (1 - z) + U^T [dc du' dr'] goes from step to step.

#pragma once

#include "scan.cuh"

namespace dien_fast::cuda {

template <typename T>
struct BackwardScan {
    using W = Wide<T>;
    Histories histories;
    Chunk chunk;
    Cell cell;
    int64_t hidden;
    Panels panels;
    const W* weights;  // backward panels
    W* gates;          // by slot: arguments (c | u | r | n), then dc, du', dr', dn'
    const W* att;      // or null for gru
    const W* states;
    const W* h0;       // or null for 0
    const T* dstates;  // or null for 0
    const T* dlast;    // [B, H], or null for 0; read in the last chunk
    const W* behind;   // [B, H] dh at the end of the chunk, or null in the last one
    W* dstart;         // [B, H] dh at the start of the chunk, or null; may be `behind`
    W* datt;           // or null
};

template <typename T, int kGates, int kRows, bool kResident>
int backward_shared_bytes(const Panels& p) {
    using W = Wide<T>;
    const int numbers = p.depth * kRows + p.blocks * p.columns * kRows + p.columns / kWarpColumns * kRows;
    return PanelReader<W, kResident>::shared_bytes(p) + numbers * int(sizeof(W));
}

template <typename T, int kGates, int kRows, bool kResident>
__global__ void __launch_bounds__(kScanMaxThreads) backward_kernel(BackwardScan<T> b) {
    using W = Wide<T>;
    constexpr int kOwn = kRows / 4;
    using OwnRows = Vector<W, kOwn>;
    const Panels& p = b.panels;
    const int blocks = kResident ? 1 : p.blocks;  // of columns
    const int64_t hidden = b.hidden;
    const Owner owner;
    const int64_t width = (kGates + 1) * hidden;  // of a row of gates
    const int steps = longest<kRows>(b.histories, b.chunk);
    const int warps = p.columns / kWarpColumns;

    SharedMemory shared;
    PanelReader<W, kResident> reader(shared, b.weights, p);
    W* dgates = shared.take<W>(p.depth * kRows);         // [depth][kRows], this step's (dc | du' | dr')
    W* dh = shared.take<W>(blocks * p.columns * kRows);  // [columns][kRows], each read by its owner alone
    W* da = shared.take<W>(warps * kRows);               // [warps][kRows]

    OwnHistory own[kOwn];
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
        const int64_t position = int64_t(blockIdx.x) * kRows + owner.group * kOwn + i;
        own[i].load(b.histories, b.chunk, position);
        for (int block = 0; block < blocks; ++block) {
            const int column = block * p.columns + owner.column;
            const int64_t from = own[i].history * hidden + column;
            W value = 0;
            if (column < hidden && position < b.histories.batch) {
                if (b.behind != nullptr)
                    value = b.behind[from];
                else if (b.dlast != nullptr)
                    value = widened(b.dlast[from]);
            }
            dh[column * kRows + owner.group * kOwn + i] = value;
        }
    }
    for (int k = int(kGates * hidden) * kRows + threadIdx.x; k < p.depth * kRows; k += blockDim.x)
        dgates[k] = 0;

    // What a step reads from memory, fetched during the products of the step before it.
    struct Inputs {
        W gates[kGates + 1];
        W before;
        T dstate;
    };
    Inputs next[kOwn];
    W next_att[kOwn] = {};
    // The row of the step whose inputs are fetched, that of the step before it, and where to look for the one
    // before that: what had to be loaded for that is not waited for before the next step.
    int64_t row[kOwn], row_before[kOwn], next_row[kOwn];
    auto find_row = [&](int64_t t) { return t < 0 ? int64_t(0) : step_row(b.histories, t); };
    auto go_back = [&](int s) {  // to the rows of step s
#pragma unroll
        for (int i = 0; i < kOwn; ++i) {
            row[i] = row_before[i];
            row_before[i] = own[i].row_start + next_row[i];
            const int at = own[i].steps - 1 - s;
            if (at >= 0) next_row[i] = find_row(own[i].begin + at - 2);
        }
    };
    auto load = [&](int s, int block) {
        const int column = block * p.columns + owner.column;
#pragma unroll
        for (int i = 0; i < kOwn; ++i) {
            const int at = own[i].steps - 1 - s;
            if (at < 0 || column >= hidden) continue;
            const W* from = b.gates + (own[i].slot + at) * width + column;
#pragma unroll
            for (int gate = 0; gate <= kGates; ++gate) next[i].gates[gate] = from[gate * hidden];
            if (own[i].begin + at > 0)
                next[i].before = b.states[row_before[i] * hidden + column];
            else
                next[i].before = b.h0 == nullptr ? W(0) : b.h0[own[i].history * hidden + column];
            if (b.dstates != nullptr) next[i].dstate = b.dstates[row[i] * hidden + column];
            if (b.att != nullptr) next_att[i] = b.att[row[i]];
        }
    };
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
        const int64_t t = own[i].begin + own[i].steps - 1;
        row_before[i] = own[i].row_start + (own[i].steps > 0 ? find_row(t) : 0);
        next_row[i] = own[i].steps > 0 ? find_row(t - 1) : 0;
    }
    go_back(0);
    load(0, 0);
    if constexpr (kResident) copy_async_wait<0>();  // the first barrier below makes it visible

    for (int s = 0; s < steps; ++s) {
        W own_da[kOwn] = {};
        int64_t da_row[kOwn];
#pragma unroll
        for (int i = 0; i < kOwn; ++i) da_row[i] = row[i];
        for (int block = 0; block < blocks; ++block) {
            const int column = block * p.columns + owner.column;
            Inputs in[kOwn];
            W att[kOwn];
#pragma unroll
            for (int i = 0; i < kOwn; ++i) {
                in[i] = next[i];
                att[i] = next_att[i];
            }
            const bool wraps = block + 1 == blocks;
            if (wraps) go_back(s + 1);
            load(wraps ? s + 1 : s, wraps ? 0 : block + 1);
            if (column >= hidden) continue;
            OwnRows of_state[kGates] = {};
            W* own_dh = dh + column * kRows + owner.group * kOwn;
#pragma unroll
            for (int i = 0; i < kOwn; ++i) {
                const int at = own[i].steps - 1 - s;
                if (at < 0) continue;
                W d = own_dh[i];
                if (b.dstates != nullptr) d += widened(in[i].dstate);
                const Rule<W> z = rule<W>(b.cell, att[i]);
                const W c = in[i].gates[0], r = sigmoid(in[i].gates[kGates - 1]);
                const W n = hyperbolic_tangent(in[i].gates[kGates] + r * c);
                const W dz = d * (n - in[i].before);
                W* to = b.gates + (own[i].slot + at) * width + column;
                W share = z.alpha;
                if constexpr (kGates == 3) {
                    const W u = sigmoid(in[i].gates[1]);
                    share += z.beta * u;
                    own_da[i] += dz * (z.alpha_a + z.beta_a * u);
                    to[hidden] = of_state[1].values[i] = dz * z.beta * u * (1 - u);
                } else {
                    own_da[i] += dz * z.alpha_a;
                }
                const W dn = d * share * (1 - n * n);
                to[0] = of_state[0].values[i] = dn * r;
                to[(kGates - 1) * hidden] = of_state[kGates - 1].values[i] = dn * c * r * (1 - r);
                to[kGates * hidden] = dn;
                own_dh[i] = d * (1 - share);
            }
#pragma unroll
            for (int gate = 0; gate < kGates; ++gate)
                *reinterpret_cast<OwnRows*>(dgates + (gate * hidden + column) * kRows + owner.group * kOwn) =
                    of_state[gate];
        }
        if (b.datt != nullptr) {
#pragma unroll
            for (int i = 0; i < kOwn; ++i) {
                for (int mask = 1; mask < kWarpColumns; mask *= 2) own_da[i] += shuffle_xor(own_da[i], mask);
                if (owner.lane % kWarpColumns == 0)
                    da[owner.warp * kRows + owner.group * kOwn + i] = own_da[i];
            }
        }
        if constexpr (kResident) __syncthreads();

        bool summed_da = b.datt == nullptr;
        for (int block = 0; block < blocks; ++block) {
            // A lane adds up two columns of its warp; four pairs of lanes have the same two and share the
            // terms.
            const int share = (owner.lane & 1) + (owner.lane >> 3 << 1);
            W sums[2 * kRows] = {};
            Stage<W> stage;
            do {
                stage = reader.next();
                const W* u = stage.rows + share * p.stride + owner.column / 2 * 2;
                const W* other = dgates + (stage.first + share) * kRows;
#pragma unroll 4
                for (int k = 0; k < stage.count; k += 8, u += 8 * p.stride, other += 8 * kRows) {
                    const auto rows = *reinterpret_cast<const Vector<W, kRows>*>(other);
                    const auto weights = *reinterpret_cast<const Vector<W, 2>*>(u);
#pragma unroll
                    for (int c = 0; c < 2; ++c)
#pragma unroll
                        for (int i = 0; i < kRows; ++i)
                            sums[c * kRows + i] += weights.values[c] * rows.values[i];
                }
            } while (!stage.last);
            exchange<2 * kRows>(sums, owner.lane, 1);
            exchange<kRows>(sums, owner.lane, 16);
            exchange<kRows / 2>(sums, owner.lane, 8);
            const int column = block * p.columns + owner.column;
            if (column < hidden) {
                W* own_dh = dh + column * kRows + owner.group * kOwn;
#pragma unroll
                for (int i = 0; i < kOwn; ++i)
                    if (s < own[i].steps) own_dh[i] += sums[i];
            }
            if (!summed_da) {
                summed_da = true;
                // The lanes of the first warp that wrote da.
                if (owner.warp == 0 && owner.lane % kWarpColumns == 0)
#pragma unroll
                    for (int i = 0; i < kOwn; ++i) {
                        if (s >= own[i].steps) continue;
                        W sum = 0;
                        for (int warp = 0; warp < warps; ++warp)
                            sum += da[warp * kRows + owner.group * kOwn + i];
                        b.datt[da_row[i]] = sum;
                    }
            }
        }
        __syncthreads();
    }

    if (b.dstart != nullptr)
        for (int block = 0; block < blocks; ++block) {
            const int column = block * p.columns + owner.column;
            if (column >= hidden) continue;
#pragma unroll
            for (int i = 0; i < kOwn; ++i)
                if (int64_t(blockIdx.x) * kRows + owner.group * kOwn + i < b.histories.batch)
                    b.dstart[own[i].history * hidden + column] = dh[column * kRows + owner.group * kOwn + i];
        }
    copy_async_wait<0>();
}

}  // namespace dien_fast::cuda
