// The forward run of the attention GRU, on the host: enqueues the schedule and the packing of the weights;
// then for each chunk the product of its inputs with W, and the scan.

#pragma once

#include "forward_scan.cuh"
#include "products.cuh"
#include "runs.h"

namespace dien_fast::cuda {

// Sizes, and the pieces of the workspace.
template <typename T>
struct ForwardPlan {
    using W = Wide<T>;
    int64_t gates, chunk_rows, chunks;
    bool shared_rows;  // x is projected once, for all the histories that share its rows
    Schedule schedule;
    Chunk chunk;
    Packed<T> packed;
    W* gx;            // what x adds to the gates' arguments, (u | r | n) for each slot
    int64_t* x_rows;  // row of x of each slot
    W* carried;       // [B, H] states that one chunk hands to the next

    ForwardPlan(const Forward& f, Arena& arena)
        : gates(gate_count(f.cell)),
          schedule(f.layout, arena),
          chunk(take_chunk(f.layout.batch, arena)),
          packed(f, true, arena) {
        const int64_t row_bytes = gates * f.hidden * int64_t(sizeof(W)) + int64_t(sizeof(int64_t));
        const int64_t most = std::max<int64_t>(f.chunk_bytes / row_bytes, 1);
        shared_rows = f.layout.x_start != nullptr && f.layout.x_rows <= most;
        chunk_rows = shared_rows ? f.layout.rows : std::min(most, f.layout.rows);
        chunks = chunk_rows == 0 ? 1 : (f.layout.rows + chunk_rows - 1) / chunk_rows;
        gx = arena.take<W>((shared_rows ? f.layout.x_rows : chunk_rows) * gates * f.hidden);
        x_rows = shared_rows ? nullptr : arena.take<int64_t>(chunk_rows);
        carried = arena.take<W>(chunks > 1 ? f.layout.batch * f.hidden : 0);
    }
};

// Launches the scan with kRows histories for each block; false if that takes more shared memory than there
// is.
template <typename T, int kGates, int kRows>
bool try_forward_scan(ForwardScan<T> scan, const Device& device, Stream stream) {
    const dim3 blocks = blocks_for(scan.histories.batch, kRows);
    const int threads = 4 * scan.panels.columns;
    if (scan.panels.blocks == 1) {
        // All weights in shared memory, and gx fetched as far ahead as possible: with room for a second block
        // on the multiprocessor, or else for this one alone.
        for (const int limit : {device.shared_bytes / 2, device.shared_bytes})
            for (const int ahead : {4, 2, 1}) {
                const int bytes = forward_shared_bytes<T, kGates, kRows, true>(scan.panels, ahead);
                if (bytes > limit) continue;
                scan.ahead = ahead;
                launch(forward_kernel<T, kGates, kRows, true>, blocks, threads, bytes, stream, scan);
                return true;
            }
    }
    scan.ahead = 2;
    for (; scan.panels.stage >= 4; scan.panels.stage /= 2) {
        const int bytes = forward_shared_bytes<T, kGates, kRows, false>(scan.panels, scan.ahead);
        // What is fetched ahead arrives within two stages, so there must be two.
        if (bytes > device.shared_bytes || scan.panels.depth <= scan.panels.stage) continue;
        launch(forward_kernel<T, kGates, kRows, false>, blocks, threads, bytes, stream, scan);
        return true;
    }
    return false;
}

template <typename T, int kGates>
void enqueue_forward_scan(const ForwardScan<T>& scan, Stream stream) {
    const Device device = current_device();
    if constexpr (sizeof(T) < 8)  // 8 rows of double would take more registers than there are
        if (rows_of_block(scan.histories.batch, scan.panels, device) == 8 &&
            try_forward_scan<T, kGates, 8>(scan, device, stream))
            return;
    if (!try_forward_scan<T, kGates, 4>(scan, device, stream))
        throw std::runtime_error("hidden size " + std::to_string(scan.hidden) +
                                 " needs more shared memory than a block has on this device");
}

template <typename T>
int64_t forward_bytes(const Forward& call) {
    Arena arena(nullptr);
    const ForwardPlan<T> plan(call, arena);
    return arena.used();
}

template <typename T>
void run_forward(const Forward& f, void* workspace, void* stream_) {
    using W = Wide<T>;
    const auto stream = static_cast<Stream>(stream_);
    const Layout& layout = f.layout;
    Arena arena(workspace);
    const ForwardPlan<T> plan(f, arena);
    T* states = static_cast<T*>(f.states);
    W* wide_states = static_cast<W*>(f.wide_states);
    if (layout.batch == 0) return;
    plan.schedule.enqueue(layout, stream);
    plan.packed.enqueue(stream);
    if (layout.lengths != nullptr && layout.rows > 0) {
        const dim3 rows(static_cast<unsigned>(layout.rows));
        if (states != nullptr) launch(zero_padding_kernel<T>, rows, 64, 0, stream, layout, f.hidden, states);
        if (wide_states != nullptr)
            launch(zero_padding_kernel<W>, rows, 64, 0, stream, layout, f.hidden, wide_states);
    }

    const Histories& histories = plan.schedule.histories;
    const int64_t width = plan.gates * f.hidden;
    for (int64_t i = 0; i < plan.chunks; ++i) {
        const int64_t begin = i * plan.chunk_rows, end = std::min(begin + plan.chunk_rows, layout.rows);
        enqueue_chunk(histories, begin, end, plan.chunk, {plan.x_rows, nullptr, nullptr}, stream);
        const int64_t rows = plan.shared_rows ? layout.x_rows : end - begin;
        Projection<T> projection{};
        projection.input = {static_cast<const T*>(f.x), f.input, plan.x_rows};
        projection.weights = plan.packed.pack.x_weights;
        projection.bias = plan.packed.pack.x_bias;
        projection.columns = projection.stride = width;
        projection.count = plan.shared_rows ? nullptr : plan.chunk.slot + layout.batch;
        projection.max_count = rows;
        projection.out = plan.gx;
        if (rows > 0)
            launch(gemm_kernel<Projection<T>>, gemm_blocks(rows, width), kGemmThreads, gemm_shared_bytes<W>(),
                   stream, projection);
        ForwardScan<T> scan{};
        scan.histories = histories;
        scan.chunk = plan.chunk;
        scan.cell = f.cell;
        scan.hidden = f.hidden;
        scan.panels = plan.packed.pack.shape;
        scan.weights = plan.packed.pack.panels;
        scan.c_bias = plan.packed.pack.c_bias;
        scan.gx = plan.gx;
        scan.gx_start = plan.shared_rows ? histories.x_start : plan.chunk.slot;
        scan.att = static_cast<const W*>(f.att);
        scan.start = i == 0 ? static_cast<const W*>(f.h0) : plan.carried;
        scan.states = states;
        scan.wide_states = wide_states;
        scan.last = static_cast<T*>(f.last);
        scan.carried = i + 1 < plan.chunks ? plan.carried : nullptr;
        plan.gates == 3 ? enqueue_forward_scan<T, 3>(scan, stream) : enqueue_forward_scan<T, 2>(scan, stream);
    }
}

}  // namespace dien_fast::cuda
