// The backward pass of one tile. Included by attention_gru_kernel.cpp alone, inside its namespace.
//
// The gradients of a step's gates stand in a row (dc | du' | dr' | dn'), H numbers each, without du' in agru.
// So those that are multiplied by U, (dc | du' | dr'), and those that are multiplied by W, (du' | dr' | dn'),
// are each G H numbers in one piece.
//
// Packed weights: the panels (see products.h) of U, with its rows in the order (c | u | r), then those of W,
// (u | r | n).

template <typename T>
int64_t packed_backward_size(int64_t input, int64_t hidden) {
    return 3 * hidden * (padded<T>(input) + padded<T>(hidden));
}

template <typename T>
void pack_backward(const Weights<T>& weights, T* packed) {
    const int64_t hidden = weights.hidden;
    const int gates = gate_count(weights.cell);
    for (int side = 0; side < 2; ++side) {
        const T* matrix = side == 0 ? weights.u : weights.w;
        const int64_t columns = side == 0 ? hidden : weights.input;
        for (int64_t column = 0, width; column < columns; column += width) {
            width = panel_vectors((columns - column + kLanes<T> - 1) / kLanes<T>) * kLanes<T>;
            const int64_t lanes = columns - column < width ? columns - column : width;
            for (int place = 0; place < gates; ++place) {
                const Gate gate = side == 0 ? h_gate(weights.cell, place) : x_gate(weights.cell, place);
                const T* rows = matrix + gate_block(weights.cell, gate) * hidden * columns + column;
                for (int64_t k = 0; k < hidden; ++k, packed += width)
                    copy_padded(packed, rows + k * columns, lanes);
            }
        }
    }
}

// The memory of a tile's backward run: dh, which goes from step to step, and rows collected for the matrix
// products.
template <typename T>
struct Collected {
    T* dh;        // [kMaxTileRows, padded_hidden]
    T* dgates;    // [kChunkRows, dgates_stride]
    T* x;         // [kChunkRows, padded_input]
    T* h;         // [kChunkRows, padded_hidden], the states before
    T* regained;  // [kMaxTileRows, 4, padded_hidden], gates that were not saved and are computed again
    T* unused_h;  // [kMaxTileRows, padded_hidden], the states that come with them
    int64_t rows[kChunkRows];  // the row of each that is collected
    int64_t count = 0;
};

// The length of a row of gradients, with room for a vector that begins before its end.
template <typename T>
int64_t dgates_stride(int64_t hidden) {
    return padded<T>(kParts * hidden) + kLanes<T>;
}

template <typename T>
int64_t backward_scratch(int64_t input, int64_t hidden) {
    return padded<T>(hidden) * (kMaxTileRows * (2 + kParts) + kChunkRows) +
           kChunkRows * (dgates_stride<T>(hidden) + padded<T>(input));
}

// Computes dx and adds to the sums over rows, from the rows collected so far.
template <typename T>
void flush(const Backward<T>& b, Collected<T>& c, const WeightGradients<T>& sums) {
    if (c.count == 0) return;
    const int64_t hidden = b.weights.hidden, input = b.weights.input, stride = dgates_stride<T>(hidden);
    const int gates = gate_count(b.weights.cell);
    const int64_t depth = gates * hidden;
    const View<const T> of_h{c.dgates, stride, depth}, of_x{c.dgates + hidden, stride, depth};
    if (b.dx != nullptr) {
        const T* packed = b.packed + depth * padded<T>(hidden);
        times_panels(c.count, of_x, packed, input, [&](int64_t i, int64_t column, Vec<T> value) {
            T* to = b.dx + c.rows[i] * input + column;
            if (input - column >= kLanes<T>)
                store(to, value);
            else
                for (int64_t lane = 0; lane < input - column; ++lane) to[lane] = value[lane];
        });
    }
    if (sums.dw != nullptr) {
        add_outer<T>(c.count, of_x, {c.x, padded<T>(input), input}, sums.dw);
        add_outer<T>(c.count, of_h, {c.h, padded<T>(hidden), hidden}, sums.du);
        const int64_t end = padded<T>(depth + hidden);
        for (int64_t column = 0; column < end; column += kLanes<T>) {
            // Two sums in turn, so that an addition does not wait for the one before.
            Vec<T> even = {}, odd = {};
            for (int64_t i = 0; i + 1 < c.count; i += 2) {
                even += load(c.dgates + i * stride + column);
                odd += load(c.dgates + (i + 1) * stride + column);
            }
            if (c.count % 2 == 1) even += load(c.dgates + (c.count - 1) * stride + column);
            store(sums.db + column, load(sums.db + column) + (even + odd));
        }
    }
    c.count = 0;
}

// The gradients of one history's gates in one step. Turns dh into dh (1 - z), and returns da.
template <typename T, int Gates>
DIEN_FAST_INLINE T gate_gradients(int64_t hidden, const T* gates, const Rule<T>& rule, const T* h,
                                  const T* dstate, T* dh, T* dgates) {
    const Vec<T> alpha = rule.alpha - Vec<T>{}, beta = rule.beta - Vec<T>{};
    Vec<T> da = {};
    // A vector may write beyond the end of its part of dgates, into the beginning of the next part. With the
    // last columns first, and the parts in their order, the right numbers are written there afterwards.
    for (int64_t column = padded<T>(hidden) - kLanes<T>; column >= 0; column -= kLanes<T>) {
        const T* saved = gates + column * kParts;
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
        const Vec<T> dz = d * (n - load(h + column));
        Vec<T> z = alpha, u = {};
        if constexpr (Gates == 3) {
            u = load(saved);
            z += beta * u;
            da += dz * (rule.alpha_a + rule.beta_a * u);
        } else {
            da += dz * rule.alpha_a;
        }
        const Vec<T> dn = d * z * (T(1) - n * n), dc = dn * r;
        store(dgates + column, dc);
        if constexpr (Gates == 3) store(dgates + hidden + column, dz * beta * u * (T(1) - u));
        store(dgates + (Gates - 1) * hidden + column, dc * c * (T(1) - r));
        store(dgates + Gates * hidden + column, dn);
        store(dh + column, d * (T(1) - z));
    }
    return sum<T>(da);
}

template <typename T, int Gates>
void backward(const Backward<T>& b, Tile tile, const WeightGradients<T>& sums, T* scratch) {
    const Batch& batch = b.batch;
    const int64_t hidden = b.weights.hidden, input = b.weights.input, stride = padded<T>(hidden);
    const int64_t x_stride = padded<T>(input), dgates = dgates_stride<T>(hidden);
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
    c.h = take(kChunkRows * stride);
    c.x = take(kChunkRows * x_stride);
    c.dgates = take(kChunkRows * dgates);

    Step<T> s;
    int64_t row_start[kMaxTileRows], x_start[kMaxTileRows];
    for (int64_t i = 0; i < tile.rows; ++i) {
        const int64_t history = order[i];
        row_start[i] = batch.row_start[history];
        x_start[i] = batch.x_start[history];
        copy_padded(c.dh + i * stride, b.dlast == nullptr ? nullptr : b.dlast + history * hidden, hidden);
        s.gates[i] = s.saved[i] = c.regained + i * kParts * stride;
        s.h_next[i] = c.unused_h + i * stride;
    }
    int64_t active = 0;
    for (int64_t t = batch.lengths[order[0]] - 1; t >= 0; --t) {
        while (active < tile.rows && batch.lengths[order[active]] > t) ++active;
        if (c.count + active > kChunkRows) flush(b, c, sums);
        const int64_t first = c.count, step_start = batch.step(t);
        const int64_t step_before = t > 0 ? batch.step(t - 1) : 0;
        for (int64_t i = 0; i < active; ++i) {
            const int64_t at = first + i, row = row_start[i] + step_start;
            const T* before = b.states + (row_start[i] + step_before) * hidden;
            if (t == 0) before = b.h0 == nullptr ? nullptr : b.h0 + order[i] * hidden;
            c.rows[at] = row;
            copy_padded(c.h + at * stride, before, hidden);
            copy_padded(c.x + at * x_stride, b.x + (x_start[i] + step_start) * b.x_stride, input);
            s.rules[i] = rule<T>(b.weights.cell, b.att == nullptr ? T(0) : b.att[row]);
            s.x[i] = c.x + at * x_stride;
            s.h[i] = c.h + at * stride;
        }
        if (b.gates == nullptr) step<T, Gates>(s, active, b.weights, b.packed_gates);
        for (int64_t i = 0; i < active; ++i) {
            const int64_t row = c.rows[first + i];
            const T* gates = b.gates == nullptr ? s.gates[i] : b.gates + row * kParts * stride;
            const T da = gate_gradients<T, Gates>(hidden, gates, s.rules[i], s.h[i],
                                                  b.dstates == nullptr ? nullptr : b.dstates + row * hidden,
                                                  c.dh + i * stride, c.dgates + (first + i) * dgates);
            if (b.datt != nullptr) b.datt[row] = da;
        }
        times_panels<T>(active, {c.dgates + first * dgates, dgates, Gates * hidden}, b.packed, hidden,
                        [&](int64_t i, int64_t column, Vec<T> value) {
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

template <typename T>
void backward(const Backward<T>& b, Tile tile, const WeightGradients<T>& sums, T* scratch) {
    if (has_update_gate(b.weights.cell))
        backward<T, 3>(b, tile, sums, scratch);
    else
        backward<T, 2>(b, tile, sums, scratch);
}
