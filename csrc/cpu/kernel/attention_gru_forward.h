// The forward pass of one tile. Included by attention_gru_kernel.cpp alone, inside its namespace.
//
// The weights are packed by column block: I rows of W, then H rows of U, each a vector of every gate (u, r,
// n); then four vectors of biases: b_iu + b_hu, b_ir + b_hr, b_in, b_hn. Without u in agru, but with room for
// it.

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
    const int gates = gate_count(weights.cell), stride = gates * kLanes<T>;
    for (int64_t column = 0; column < padded<T>(hidden); column += kLanes<T>) {
        T* out = packed;
        const int64_t lanes = hidden - column < kLanes<T> ? hidden - column : kLanes<T>;
        if (lanes < kLanes<T>) std::memset(out, 0, packed_block<T>(input, hidden) * sizeof(T));
        for (int side = 0; side < 2; ++side) {
            const T* matrix = side == 0 ? weights.w : weights.u;
            const int64_t depth = side == 0 ? input : hidden;
            for (int place = 0; place < gates; ++place) {
                const Gate gate = x_gate(weights.cell, place);
                const T* rows = matrix + (gate_block(weights.cell, gate) * hidden + column) * depth;
                pack_transposed<T>(rows, depth, lanes, depth,
                                   gate == kCandidate ? Factor<T>::candidate : Factor<T>::gate,
                                   out + place * kLanes<T>, stride);
            }
            out += depth * stride;
        }
        auto bias = [&](const T* from, Gate gate, int64_t lane) -> T {
            const int block = gate_block(weights.cell, gate);
            return from == nullptr || block < 0 || lane >= lanes ? T(0)
                                                                 : from[block * hidden + column + lane];
        };
        for (int64_t lane = 0; lane < kLanes<T>; ++lane) {
            const T* ih = weights.bias_ih;
            const T* hh = weights.bias_hh;
            out[lane] = Factor<T>::gate * (bias(ih, kUpdate, lane) + bias(hh, kUpdate, lane));
            out[kLanes<T> + lane] = Factor<T>::gate * (bias(ih, kReset, lane) + bias(hh, kReset, lane));
            out[2 * kLanes<T> + lane] = Factor<T>::candidate * bias(ih, kCandidate, lane);
            out[3 * kLanes<T> + lane] = Factor<T>::candidate * bias(hh, kCandidate, lane);
        }
        packed += packed_block<T>(input, hidden);
    }
}

// What one step of a tile reads and writes, by history of the tile.
template <typename T>
struct Step {
    const T* x[kMaxTileRows];
    const T* h[kMaxTileRows];  // the states before
    T* h_next[kMaxTileRows];   // the states after
    T* gates[kMaxTileRows];    // scratch, kParts vectors for each column block: u, r, c, n
    T* saved[kMaxTileRows];    // where backward finds them, or null
    Rule<T> rules[kMaxTileRows];
};

// Computes the products with x and h for `Rows` histories and `Columns` column blocks, with all sums in
// registers, and stores the arguments of the activations where the gates will be: those of u and r, c, and
// what x adds to n.
template <typename T, int Gates, int Rows, int Columns>
struct GateSums {
    static constexpr int kFirst = 3 - Gates, kStride = Gates * kLanes<T>;
    typedef Vec<T> Sums[Gates][Rows][Columns];

    template <typename F>
    static DIEN_FAST_INLINE void each(const F& f) {
        unrolled<Gates>([&](auto gate) DIEN_FAST_INLINE_LAMBDA {
            unrolled<Rows>([&](auto i) DIEN_FAST_INLINE_LAMBDA {
                unrolled<Columns>([&](auto c) DIEN_FAST_INLINE_LAMBDA { f(gate, i, c); });
            });
        });
    }

    static DIEN_FAST_INLINE void run(const T* const* x, const T* const* h, T* const* gates, int64_t column,
                                     int64_t input, int64_t hidden, bool projected, const T* packed) {
        const int64_t block = packed_block<T>(input, hidden);
        const T* biases = packed + (input + hidden) * kStride;
        Sums sums;
        if (projected) {
            each([&](auto gate, auto i, auto c) DIEN_FAST_INLINE_LAMBDA {
                sums[gate.value][i.value][c.value] =
                    load(x[i.value] + (column + c.value * kLanes<T>)*Gates + gate.value * kLanes<T>);
            });
        } else {
            project(sums, x, input, hidden, packed);
        }
        auto place = [&](auto i, auto c, int part) DIEN_FAST_INLINE_LAMBDA {
            return gates[i.value] + (column + c.value * kLanes<T>)*kParts + part * kLanes<T>;
        };
        unrolled<Rows>([&](auto i) DIEN_FAST_INLINE_LAMBDA {
            unrolled<Columns>([&](auto c) DIEN_FAST_INLINE_LAMBDA {
                store(place(i, c, 3), sums[Gates - 1][i.value][c.value]);
                sums[Gates - 1][i.value][c.value] = load(biases + c.value * block + 3 * kLanes<T>);
            });
        });
        accumulate(sums, h, hidden, packed + input * kStride, block);
        each([&](auto gate, auto i, auto c) DIEN_FAST_INLINE_LAMBDA {
            store(place(i, c, gate.value + kFirst), sums[gate.value][i.value][c.value]);
        });
    }

    static DIEN_FAST_INLINE void project(Sums& sums, const T* const* x, int64_t input, int64_t hidden,
                                         const T* packed) {
        const int64_t block = packed_block<T>(input, hidden);
        const T* biases = packed + (input + hidden) * kStride;
        each([&](auto gate, auto i, auto c) DIEN_FAST_INLINE_LAMBDA {
            sums[gate.value][i.value][c.value] =
                load(biases + c.value * block + (gate.value + kFirst) * kLanes<T>);
        });
        accumulate(sums, x, input, packed, block);
    }

    static DIEN_FAST_INLINE void accumulate(Sums& sums, const T* const* rows, int64_t depth, const T* packed,
                                            int64_t block) {
        const T* from[Rows];
        unrolled<Rows>([&](auto i) DIEN_FAST_INLINE_LAMBDA { from[i.value] = rows[i.value]; });
        // The first kSumLength products are added to the sums in their registers, so that short depths touch
        // no memory.
        int64_t end = depth < kSumLength ? depth : kSumLength;
        products(sums, from, 0, end, packed, block);
        for (int64_t begin = end; begin < depth; begin = end) {
            end = begin + kSumLength < depth ? begin + kSumLength : depth;
            Sums more;
            each([&](auto gate, auto i, auto c)
                     DIEN_FAST_INLINE_LAMBDA { more[gate.value][i.value][c.value] = Vec<T>{}; });
            products(more, from, begin, end, packed, block);
            each([&](auto gate, auto i, auto c) DIEN_FAST_INLINE_LAMBDA {
                sums[gate.value][i.value][c.value] += more[gate.value][i.value][c.value];
            });
        }
    }

    static DIEN_FAST_INLINE void products(Sums& to, const T* const (&from)[Rows], int64_t begin, int64_t end,
                                          const T* packed, int64_t block) {
        packed += begin * kStride;
        for (int64_t k = begin; k < end; ++k) {
            unrolled<Rows>([&](auto i) DIEN_FAST_INLINE_LAMBDA {
                const T value = from[i.value][k];
                unrolled<Columns>([&](auto c) DIEN_FAST_INLINE_LAMBDA {
                    unrolled<Gates>([&](auto gate) DIEN_FAST_INLINE_LAMBDA {
                        to[gate.value][i.value][c.value] +=
                            value * load(packed + c.value * block + gate.value * kLanes<T>);
                    });
                });
            });
            packed += kStride;
        }
    }
};

template <typename T, int Gates, int Rows, int Columns>
__attribute__((noinline)) void gate_sums(const Step<T>& s, int64_t row, int64_t column,
                                         const Weights<T>& weights, const T* packed) {
    GateSums<T, Gates, Rows, Columns>::run(s.x + row, s.h + row, s.gates + row, column, weights.input,
                                           weights.hidden, weights.projected, packed);
}

// gate_sums for `rows` <= kRows histories in the column blocks from `column` to `end`. Of few histories,
// several column blocks at once, so that there are always enough sums to hide the latency of an addition.
template <typename T, int Gates, int Rows = kRows>
void row_sums(const Step<T>& s, int64_t rows, int64_t row, int64_t column, int64_t end,
              const Weights<T>& weights, const T* packed) {
    if constexpr (Rows > 1) {
        if (rows < Rows) return row_sums<T, Gates, Rows - 1>(s, rows, row, column, end, weights, packed);
    }
    const int64_t block = packed_block<T>(weights.input, weights.hidden);
    constexpr int kWide = Rows == 1 ? 4 : Rows == 2 ? 2 : 1;
    if constexpr (kWide > 1) {
        for (; column + kWide * kLanes<T> <= end; column += kWide * kLanes<T>, packed += kWide * block)
            gate_sums<T, Gates, Rows, kWide>(s, row, column, weights, packed);
    }
    for (; column < end; column += kLanes<T>, packed += block)
        gate_sums<T, Gates, Rows, 1>(s, row, column, weights, packed);
}

// Turns the arguments into gates and computes the states after the step, for all histories in the column
// blocks from `column` to `end`. In two loops, as the processor overlaps more iterations of a short one.
template <typename T, int Gates>
DIEN_FAST_INLINE void activate(const Step<T>& s, int64_t rows, int64_t column, int64_t end) {
    for (int64_t i = 0; i < rows; ++i)
        for (int64_t j = column; j < end; j += kLanes<T>) {
            T* at = s.gates[i] + j * kParts;
            Vec<T> r = load(at + kLanes<T>);
            if constexpr (Gates == 3) {
                Vec<T> u = load(at);
                sigmoids(u, r);
                store(at, u);
            } else {
                r = sigmoid(r);
            }
            store(at + kLanes<T>, r);
            store(at + 3 * kLanes<T>, load(at + 3 * kLanes<T>) + r * load(at + 2 * kLanes<T>));
        }
    for (int64_t i = 0; i < rows; ++i) {
        const Vec<T> alpha = s.rules[i].alpha - Vec<T>{}, beta = s.rules[i].beta - Vec<T>{};
        for (int64_t j = column; j < end; j += kLanes<T>) {
            const T* at = s.gates[i] + j * kParts;
            const Vec<T> n = hyperbolic_tangent(load(at + 3 * kLanes<T>));
            const Vec<T> before = load(s.h[i] + j);
            Vec<T> u = {}, z = alpha;
            if constexpr (Gates == 3) {
                u = load(at);
                z += beta * u;
            }
            store(s.h_next[i] + j, before + z * (n - before));
            if (s.saved[i] != nullptr) {
                T* to = s.saved[i] + j * kParts;
                store(to, u);
                store(to + kLanes<T>, load(at + kLanes<T>));
                store(to + 2 * kLanes<T>, Factor<T>::from_candidate * load(at + 2 * kLanes<T>));
                store(to + 3 * kLanes<T>, n);
            }
        }
    }
}

template <typename T, int Gates>
void step(const Step<T>& s, int64_t rows, const Weights<T>& weights, const T* packed) {
    const int64_t stride = padded<T>(weights.hidden);
    const int64_t block = packed_block<T>(weights.input, weights.hidden);
    const int64_t groups = (rows + kRows - 1) / kRows, least = rows / groups, larger = rows % groups;
    // With few histories, several column blocks at once, so that about kMaxTileRows vectors go through the
    // activations.
    const int64_t span = kMaxTileRows / rows * kLanes<T>;
    for (int64_t column = 0; column < stride; column += span) {
        const int64_t end = column + span < stride ? column + span : stride;
        for (int64_t group = 0, row = 0; group < groups; ++group) {
            const int64_t count = least + (group < larger);
            row_sums<T, Gates>(s, count, row, column, end, weights, packed);
            row += count;
        }
        activate<T, Gates>(s, rows, column, end);
        packed += span / kLanes<T> * block;
    }
}

// One step of up to kMaxTileRows histories.
template <typename T>
void run_step(const Step<T>& s, int64_t rows, const Weights<T>& weights, const T* packed) {
    if (has_update_gate(weights.cell))
        step<T, 3>(s, rows, weights, packed);
    else
        step<T, 2>(s, rows, weights, packed);
}

template <typename T, int Gates>
void project(const Forward<T>& f, int64_t begin, int64_t end, T* out) {
    const int64_t input = f.weights.input, hidden = f.weights.hidden, stride = padded<T>(hidden);
    typedef GateSums<T, Gates, 1, 1> Row;
    for (int64_t row = begin; row < end; ++row) {
        const T *x = f.x + row * f.x_stride, *packed = f.packed;
        T* to = out + row * 3 * stride;
        for (int64_t column = 0; column < stride;
             column += kLanes<T>, packed += packed_block<T>(input, hidden)) {
            typename Row::Sums sums;
            Row::project(sums, &x, input, hidden, packed);
            for (int gate = 0; gate < Gates; ++gate, to += kLanes<T>) store(to, sums[gate][0][0]);
        }
    }
}
template <typename T>
void project(const Forward<T>& f, int64_t begin, int64_t end, T* out) {
    if (has_update_gate(f.weights.cell))
        project<T, 3>(f, begin, end, out);
    else
        project<T, 2>(f, begin, end, out);
}

template <typename T>
int64_t forward_scratch(int64_t, int64_t hidden) {
    return (2 + kParts) * kMaxTileRows * padded<T>(hidden);
}

template <typename T>
void forward(const Forward<T>& f, Tile tile, T* scratch) {
    const Batch& batch = f.batch;
    const int64_t hidden = f.weights.hidden, input = f.weights.input, stride = padded<T>(hidden);
    const int64_t* order = batch.order + tile.begin;
    // Where a state is whole vectors, it is written to the output alone, and the next step reads it there.
    const bool direct = f.states != nullptr && hidden == stride;
    T* const own[2] = {scratch, scratch + kMaxTileRows * stride};
    T* const own_gates = scratch + 2 * kMaxTileRows * stride;

    Step<T> s;
    int64_t row_start[kMaxTileRows], x_start[kMaxTileRows];
    for (int64_t i = 0; i < tile.rows; ++i) {
        const int64_t history = order[i];
        row_start[i] = batch.row_start[history];
        x_start[i] = batch.x_start[history];
        copy_padded(own[0] + i * stride, f.h0 == nullptr ? nullptr : f.h0 + history * hidden, hidden);
        s.h[i] = own[0] + i * stride;
        s.gates[i] = own_gates + i * kParts * stride;
        s.saved[i] = nullptr;
    }
    int64_t active = tile.rows;
    for (int64_t t = 0;; ++t) {
        // The tile is sorted by length, so histories that are over are at its end.
        for (; active > 0 && batch.lengths[order[active - 1]] == t; --active)
            std::memcpy(f.last + order[active - 1] * hidden, s.h[active - 1], hidden * sizeof(T));
        if (active == 0) break;
        const int64_t step_start = batch.step(t);
        for (int64_t i = 0; i < active; ++i) {
            const int64_t row = row_start[i] + step_start;
            s.x[i] = f.x + (x_start[i] + step_start) * f.x_stride;
            s.rules[i] = rule<T>(f.weights.cell, f.att == nullptr ? T(0) : f.att[row]);
            s.h_next[i] = direct ? f.states + row * hidden : own[(t + 1) & 1] + i * stride;
            if (f.gates != nullptr) s.saved[i] = f.gates + row * kParts * stride;
            // Otherwise the products would wait for rows that are in no cache yet.
            if (t + 2 < batch.lengths[order[i]])
                prefetch(f.x + (x_start[i] + batch.step(t + 2)) * f.x_stride, input);
        }
        run_step(s, active, f.weights, f.packed);
        if (f.states != nullptr && !direct)
            for (int64_t i = 0; i < active; ++i)
                std::memcpy(f.states + (row_start[i] + step_start) * hidden, s.h_next[i], hidden * sizeof(T));
        for (int64_t i = 0; i < active; ++i) s.h[i] = s.h_next[i];
    }
}
