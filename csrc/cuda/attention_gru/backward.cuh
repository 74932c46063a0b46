// The backward run of the attention GRU, on the host. Enqueues for each chunk, the last one first: the
// products that give the arguments of its gates again from x and the saved states, the backward scan, and the
// products that give the gradients of x and of the weights.

#pragma once

#include "backward_scan.cuh"
#include "products.cuh"
#include "runs.h"

namespace dien_fast::cuda {

// Sizes, and the pieces of the workspace.
template <typename T>
struct BackwardPlan {
    using W = Wide<T>;
    int64_t gates, chunk_rows, chunks;
    int64_t width;  // of a row (c | u | r | n)
    int splits;     // of the sums over slots, see WeightGradient
    Schedule schedule;
    Chunk chunk;
    Packed<T> packed;
    W* arguments;  // of the gates (c | u | r | n) for each slot, which the scan turns into their gradients
    SlotRows rows;
    W* carried;                      // [B, H] dh that one chunk hands to the one before it
    W *dw, *du, *dbias_x, *dbias_h;  // sums of each split

    BackwardPlan(const Backward& b, Arena& arena)
        : gates(gate_count(b.cell)),
          width((gates + 1) * b.hidden),
          schedule(b.layout, arena),
          chunk(take_chunk(b.layout.batch, arena)),
          packed(b, false, arena) {
        const int64_t gate_rows = gates * b.hidden;
        const int64_t sums_bytes = gate_rows * (b.input + b.hidden + 2) * int64_t(sizeof(W));
        // In a quarter of the chunk's memory.
        const int64_t enough = splits_for<W>(b.layout.rows, gate_rows, std::min(b.input, b.hidden));
        splits = b.du == nullptr ? 0 : int(std::clamp<int64_t>(b.chunk_bytes / 4 / sums_bytes, 1, enough));
        const int64_t row_bytes = width * int64_t(sizeof(W)) + 3 * int64_t(sizeof(int64_t));
        const int64_t left = b.chunk_bytes - splits * sums_bytes;
        chunk_rows = std::min(std::max<int64_t>(left / row_bytes, 1), b.layout.rows);
        chunks = chunk_rows == 0 ? 1 : (b.layout.rows + chunk_rows - 1) / chunk_rows;
        arguments = arena.take<W>(chunk_rows * width);
        rows = {arena.take<int64_t>(chunk_rows), arena.take<int64_t>(chunk_rows),
                arena.take<int64_t>(chunk_rows)};
        carried = arena.take<W>(chunks > 1 ? b.layout.batch * b.hidden : 0);
        dw = arena.take<W>(splits * gate_rows * b.input);
        du = arena.take<W>(splits * gate_rows * b.hidden);
        dbias_x = arena.take<W>(splits * gate_rows);
        dbias_h = arena.take<W>(splits * gate_rows);
    }
};

// Launches the scan with kRows histories for each block; false if that takes more shared memory than there
// is.
template <typename T, int kGates, int kRows>
bool try_backward_scan(BackwardScan<T> scan, const Device& device, Stream stream) {
    const dim3 blocks = blocks_for(scan.histories.batch, kRows);
    const int threads = 4 * scan.panels.columns;
    const int all = backward_shared_bytes<T, kGates, kRows, true>(scan.panels);
    if (scan.panels.blocks == 1 && all <= device.shared_bytes) {
        launch(backward_kernel<T, kGates, kRows, true>, blocks, threads, all, stream, scan);
        return true;
    }
    for (; scan.panels.stage >= 8; scan.panels.stage /= 2) {
        const int some = backward_shared_bytes<T, kGates, kRows, false>(scan.panels);
        if (some > device.shared_bytes) continue;
        launch(backward_kernel<T, kGates, kRows, false>, blocks, threads, some, stream, scan);
        return true;
    }
    return false;
}

template <typename T, int kGates>
void enqueue_backward_scan(const BackwardScan<T>& scan, Stream stream) {
    const Device device = current_device();
    if constexpr (sizeof(T) < 8)  // 8 rows of double would take more registers than there are
        if (rows_of_block(scan.histories.batch, scan.panels, device) == 8 &&
            try_backward_scan<T, kGates, 8>(scan, device, stream))
            return;
    if (!try_backward_scan<T, kGates, 4>(scan, device, stream))
        throw std::runtime_error("hidden size " + std::to_string(scan.hidden) +
                                 " needs more shared memory than a block has on this device");
}

template <typename T>
int64_t backward_bytes(const Backward& call) {
    Arena arena(nullptr);
    const BackwardPlan<T> plan(call, arena);
    return arena.used();
}

template <typename T>
void run_backward(const Backward& b, void* workspace, void* stream_) {
    using W = Wide<T>;
    const auto stream = static_cast<Stream>(stream_);
    const Layout& layout = b.layout;
    Arena arena(workspace);
    const BackwardPlan<T> plan(b, arena);
    const int64_t hidden = b.hidden, gate_rows = plan.gates * hidden;
    T* dx = static_cast<T*>(b.dx);
    W* datt = static_cast<W*>(b.datt);
    if (layout.batch > 0) {
        plan.schedule.enqueue(layout, stream);
        plan.packed.enqueue(stream);
    }
    if (layout.lengths != nullptr && layout.rows > 0) {
        const dim3 rows(static_cast<unsigned>(layout.rows));
        if (dx != nullptr && b.input > 0)
            launch(zero_padding_kernel<T>, rows, 64, 0, stream, layout, b.input, dx);
        if (datt != nullptr) launch(zero_padding_kernel<W>, rows, 32, 0, stream, layout, int64_t(1), datt);
    }

    const Histories& histories = plan.schedule.histories;
    const auto& packed = plan.packed.pack;
    const int64_t* count = plan.chunk.slot + layout.batch;
    const InputRows<T> inputs{static_cast<const T*>(b.x), b.input, plan.rows.x};
    const StatesBefore<W> before{static_cast<const W*>(b.states), static_cast<const W*>(b.h0), hidden,
                                 plan.rows.before};
    for (int64_t i = plan.chunks - 1; i >= 0 && layout.batch > 0; --i) {
        const bool last = i == plan.chunks - 1;
        const int64_t begin = i * plan.chunk_rows, end = std::min(begin + plan.chunk_rows, layout.rows);
        const int64_t rows = end - begin;
        enqueue_chunk(histories, begin, end, plan.chunk, plan.rows, stream);
        if (rows > 0) {
            Projection<T> projection{};
            projection.input = inputs;
            projection.weights = packed.x_weights;
            projection.bias = packed.x_bias;
            projection.columns = gate_rows;
            projection.count = count;
            projection.max_count = rows;
            projection.out = plan.arguments + hidden;
            projection.stride = plan.width;
            launch(gemm_kernel<Projection<T>>, gemm_blocks(rows, gate_rows), kGemmThreads,
                   gemm_shared_bytes<W>(), stream, projection);
            StateProduct<W> product{};
            product.before = before;
            product.weights = packed.state_weights;
            product.c_bias = packed.c_bias;
            product.columns = gate_rows;
            product.count = count;
            product.out = plan.arguments;
            product.stride = plan.width;
            launch(gemm_kernel<StateProduct<W>>, gemm_blocks(rows, gate_rows), kGemmThreads,
                   gemm_shared_bytes<W>(), stream, product);
        }
        BackwardScan<T> scan{};
        scan.histories = histories;
        scan.chunk = plan.chunk;
        scan.cell = b.cell;
        scan.hidden = hidden;
        scan.panels = packed.shape;
        scan.weights = packed.panels;
        scan.gates = plan.arguments;
        scan.att = static_cast<const W*>(b.att);
        scan.states = static_cast<const W*>(b.states);
        scan.h0 = static_cast<const W*>(b.h0);
        scan.dstates = static_cast<const T*>(b.dstates);
        scan.dlast = static_cast<const T*>(b.dlast);
        scan.behind = last ? nullptr : plan.carried;
        scan.dstart = i > 0 ? plan.carried : static_cast<W*>(b.dh0);
        scan.datt = datt;
        plan.gates == 3 ? enqueue_backward_scan<T, 3>(scan, stream)
                        : enqueue_backward_scan<T, 2>(scan, stream);
        if (rows == 0) continue;
        if (dx != nullptr && b.input > 0) {
            InputGradient<T> gradient{};
            gradient.gates = plan.arguments + hidden;
            gradient.stride = plan.width;
            gradient.depth = gate_rows;
            gradient.weights = packed.x_weights;
            gradient.input = b.input;
            gradient.count = count;
            gradient.out_rows = plan.rows.out;
            gradient.dx = dx;
            launch(gemm_kernel<InputGradient<T>>, gemm_blocks(rows, b.input), kGemmThreads,
                   gemm_shared_bytes<W>(), stream, gradient);
        }
        if (b.du != nullptr) {
            WeightGradient<W, InputRows<T>> of_w{};
            of_w.gates = plan.arguments + hidden;
            of_w.stride = plan.width;
            of_w.gate_rows = gate_rows;
            of_w.source = inputs;
            of_w.count = count;
            of_w.first = last;
            of_w.sums = plan.dw;
            of_w.bias_sums = plan.dbias_x;
            launch(gemm_kernel<WeightGradient<W, InputRows<T>>>, gemm_blocks(gate_rows, b.input, plan.splits),
                   kGemmThreads, gemm_shared_bytes<W>(), stream, of_w);
            WeightGradient<W, StatesBefore<W>> of_u{};
            of_u.gates = plan.arguments;
            of_u.stride = plan.width;
            of_u.gate_rows = gate_rows;
            of_u.source = before;
            of_u.count = count;
            of_u.first = last;
            of_u.sums = plan.du;
            of_u.bias_sums = plan.dbias_h;
            launch(gemm_kernel<WeightGradient<W, StatesBefore<W>>>,
                   gemm_blocks(gate_rows, hidden, plan.splits), kGemmThreads, gemm_shared_bytes<W>(), stream,
                   of_u);
        }
    }
    if (b.du == nullptr) return;
    // Without any row no sums were written.
    const int splits = layout.rows > 0 && layout.batch > 0 ? plan.splits : 0;
    auto gather = [&](bool of_state, int64_t columns, const W* sums, void* out) {
        if (columns == 0) return;
        GatherGradient<T> g{};
        g.cell = b.cell;
        g.of_state = of_state;
        g.hidden = hidden;
        g.gate_rows = gate_rows;
        g.width = columns;
        g.splits = splits;
        g.sums = sums;
        g.out = static_cast<T*>(out);
        launch(gather_gradient_kernel<T>, split_blocks(gate_rows * columns), kThreads,
               kThreads * int(sizeof(W)), stream, g);
    };
    gather(false, b.input, plan.dw, b.dw);
    gather(true, hidden, plan.du, b.du);
    gather(false, 1, plan.dbias_x, b.dbias_ih);
    gather(true, 1, plan.dbias_h, b.dbias_hh);
}

}  // namespace dien_fast::cuda
