// Normalisation, activation and dropout of tiles of rows, and their gradients. Included by
// attention_scores_kernel.cpp alone, inside its namespace.

// The coefficients of one vector of a layer's channels.
template <typename T>
struct Channels : ChannelNumbers<Vec<T>> {
    DIEN_FAST_INLINE Channels(const ScoreLayer<T>& l, int64_t column)
        : ChannelNumbers<Vec<T>>{load(l.mean + column),       load(l.scale + column),
                                 load(l.shift + column),      load(l.gate_scale + column),
                                 load(l.gate_shift + column), load(l.slope + column)} {}
};

template <typename T>
struct Sigmoid {
    DIEN_FAST_INLINE Vec<T> operator()(Vec<T> v) const { return sigmoid(Factor<T>::gate * v); }
};

// The factors of dropout for a vector of channels: 0 or p.kept.
template <typename T>
DIEN_FAST_INLINE Vec<T> dropout(const Scores<T>& p, uint64_t key, int64_t column) {
    if constexpr (sizeof(T) == 4) {
        typedef uint32_t Bits __attribute__((vector_size(kVectorBytes)));
        Bits channel;
        for (int lane = 0; lane < kLanes<T>; ++lane) channel[lane] = uint32_t(column) + lane;
        return channel_bits(channel, key) < p.keep ? p.kept - Vec<T>{} : Vec<T>{};
    } else {
        Vec<T> out;
        for (int lane = 0; lane < kLanes<T>; ++lane)
            out[lane] = channel_bits(uint32_t(column) + lane, key) < p.keep ? p.kept : T(0);
        return out;
    }
}
// The keys of `count` rows.
struct RowKeys {
    uint64_t of[kTileRows];
    template <typename T>
    DIEN_FAST_INLINE RowKeys(const Scores<T>& p, int64_t layer, int64_t row, int64_t count) {
        if (!p.dropout) return;
        for (int64_t i = 0; i < count; ++i) of[i] = row_key(p.seed, layer, row + i);
    }
};

// Calls f with the activation as a Constant.
template <typename F>
DIEN_FAST_INLINE void with_activation(Activation activation, const F& f) {
    switch (activation) {
        case Activation::kIdentity:
            return f(Constant<int(Activation::kIdentity)>{});
        case Activation::kRelu:
            return f(Constant<int(Activation::kRelu)>{});
        case Activation::kPrelu:
            return f(Constant<int(Activation::kPrelu)>{});
        case Activation::kSigmoid:
            return f(Constant<int(Activation::kSigmoid)>{});
        case Activation::kDice:
            return f(Constant<int(Activation::kDice)>{});
    }
}

// out [count, padded C] = f of the rows from `row` on.
template <typename T>
void activate(const Scores<T>& p, int64_t layer, int64_t row, int64_t count, T* out) {
    const ScoreLayer<T>& l = p.layers[layer];
    const int64_t width = padded<T>(l.width);
    const T* x = l.x + row * width;
    const RowKeys keys(p, layer, row, count);
    with_activation(l.activation, [&](auto a) DIEN_FAST_INLINE_LAMBDA {
        constexpr Activation kActivation = Activation(decltype(a)::value);
        for (int64_t column = 0; column < width; column += kLanes<T>) {
            const Channels<T> c(l, column);
            for (int64_t i = 0; i < count; ++i) {
                Vec<T> value =
                    activated<T, kActivation, Vec<T>>(c, load(x + i * width + column), Sigmoid<T>{});
                if (p.dropout) value *= dropout(p, keys.of[i], column);
                store(out + i * width + column, value);
            }
        }
    });
}

// Adds to sums [kReductions, padded C], all but kDx, for the rows from `row` on. d [count, padded C] is the
// gradient of f; it is multiplied by dropout's factors, as input_gradients needs it.
template <typename T>
void reduce(const Scores<T>& p, int64_t layer, int64_t row, int64_t count, T* d, double* sums) {
    const ScoreLayer<T>& l = p.layers[layer];
    const int64_t width = padded<T>(l.width);
    const T* x = l.x + row * width;
    const RowKeys keys(p, layer, row, count);
    with_activation(l.activation, [&](auto a) DIEN_FAST_INLINE_LAMBDA {
        constexpr Activation kActivation = Activation(decltype(a)::value);
        for (int64_t column = 0; column < width; column += kLanes<T>) {
            const Channels<T> c(l, column);
            Vec<T> dy = {}, dy_centred = {}, dgate = {}, dgate_centred = {}, dslope = {};
            for (int64_t i = 0; i < count; ++i) {
                Vec<T> value = load(d + i * width + column);
                if (p.dropout) {
                    value *= dropout(p, keys.of[i], column);
                    store(d + i * width + column, value);
                }
                const auto g =
                    derivatives<T, kActivation, Vec<T>>(c, load(x + i * width + column), value, Sigmoid<T>{});
                dy += g.dy;
                dy_centred += g.dy * g.centred;
                dslope += g.dslope;
                if constexpr (kActivation == Activation::kDice) {
                    dgate += g.dgate;
                    dgate_centred += g.dgate * g.centred;
                }
            }
            add_lanes<double, T>(sums + kDy * width + column, dy);
            add_lanes<double, T>(sums + kDyCentred * width + column, dy_centred);
            if constexpr (kActivation == Activation::kDice) {
                add_lanes<double, T>(sums + kDgate * width + column, dgate);
                add_lanes<double, T>(sums + kDgateCentred * width + column, dgate_centred);
            }
            if constexpr (kActivation == Activation::kDice || kActivation == Activation::kPrelu)
                add_lanes<double, T>(sums + kDslope * width + column, dslope);
        }
    });
}

// out [count, padded C] = the gradient of x of the rows from `row` on. d is the gradient of f, as reduce left
// it.
template <typename T>
void input_gradients(const Scores<T>& p, int64_t layer, int64_t row, int64_t count, const T* d, T* out) {
    const ScoreLayer<T>& l = p.layers[layer];
    const int64_t width = padded<T>(l.width);
    const T* x = l.x + row * width;
    with_activation(l.activation, [&](auto a) DIEN_FAST_INLINE_LAMBDA {
        constexpr Activation kActivation = Activation(decltype(a)::value);
        for (int64_t column = 0; column < width; column += kLanes<T>) {
            const Channels<T> c(l, column);
            const Vec<T> of_mean = load(l.mean_gradient + column);
            const Vec<T> of_variance = load(l.variance_gradient + column);
            for (int64_t i = 0; i < count; ++i) {
                const auto g = derivatives<T, kActivation, Vec<T>>(
                    c, load(x + i * width + column), load(d + i * width + column), Sigmoid<T>{});
                Vec<T> dx = c.scale * g.dy + c.gate_scale * g.dgate;
                if (p.weights != nullptr) dx += p.weights[row + i] * (of_mean + g.centred * of_variance);
                store(out + i * width + column, dx);
            }
        }
    });
}
