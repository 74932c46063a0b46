// Normalisation, activation and dropout of tiles of rows, and their gradients. Included by
// attention_scores_kernel.cpp alone, inside its namespace.

// The coefficients of one vector of a layer's channels.
template <typename T>
struct Channels {
    Vec<T> mean, scale, shift, gate_scale, gate_shift, slope;

    DIEN_FAST_INLINE Channels(const ScoreLayer<T>& l, int64_t column)
        : mean(load(l.mean + column)),
          scale(load(l.scale + column)),
          shift(load(l.shift + column)),
          gate_scale(load(l.gate_scale + column)),
          gate_shift(load(l.gate_shift + column)),
          slope(load(l.slope + column)) {}
};

// f of a vector of x, before dropout.
template <typename T, Activation A>
DIEN_FAST_INLINE Vec<T> activated(const Channels<T>& c, Vec<T> x) {
    const Vec<T> centred = x - c.mean, y = c.scale * centred + c.shift;
    if constexpr (A == Activation::kRelu) return y < T(0) ? Vec<T>{} : y;
    if constexpr (A == Activation::kPrelu) return y > T(0) ? y : c.slope * y;
    if constexpr (A == Activation::kSigmoid) return sigmoid(Factor<T>::gate * y);
    if constexpr (A == Activation::kDice) {
        const Vec<T> p = sigmoid(Factor<T>::gate * (c.gate_scale * centred + c.gate_shift));
        return y * (c.slope + (T(1) - c.slope) * p);
    }
    if constexpr (A == Activation::kIdentity) return y;
}

// c of a vector of x, and what the gradient d of f gives for y, for the gate's argument and for the slope.
template <typename T>
struct Derivatives {
    Vec<T> centred, dy, dgate, dslope;
};
template <typename T, Activation A>
DIEN_FAST_INLINE Derivatives<T> derivatives(const Channels<T>& c, Vec<T> x, Vec<T> d) {
    const Vec<T> none = {}, centred = x - c.mean, y = c.scale * centred + c.shift;
    if constexpr (A == Activation::kRelu) return {centred, y <= T(0) ? none : d, none, none};
    if constexpr (A == Activation::kPrelu)
        return {centred, y > T(0) ? d : c.slope * d, none, y > T(0) ? none : d * y};
    if constexpr (A == Activation::kSigmoid) {
        const Vec<T> p = sigmoid(Factor<T>::gate * y);
        return {centred, d * p * (T(1) - p), none, none};
    }
    if constexpr (A == Activation::kDice) {
        const Vec<T> p = sigmoid(Factor<T>::gate * (c.gate_scale * centred + c.gate_shift)), q = T(1) - p;
        const Vec<T> dp = d * y * q;  // of the slope; times (1 - slope) p, of the gate's argument
        return {centred, d * (c.slope + (T(1) - c.slope) * p), dp * (T(1) - c.slope) * p, dp};
    }
    if constexpr (A == Activation::kIdentity) return {centred, d, none, none};
}

// Dropout draws a number from the seed, the layer, the row and the channel: backward draws the same again,
// and the number of threads does not matter. The numbers are mixed as splitmix64 does for a row and lowbias32
// for a channel.
DIEN_FAST_INLINE uint64_t row_key(uint64_t seed, int64_t layer, int64_t row) {
    uint64_t z = seed + 0x9E3779B97F4A7C15u * uint64_t(row * kMaxLayers + layer + 1);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
}
template <typename U>
DIEN_FAST_INLINE U channel_bits(U channel, uint64_t key) {
    U h = channel * 0x9E3779B1u + uint32_t(key);
    h = (h ^ (h >> 16)) * 0x7FEB352Du;
    h = ((h ^ (h >> 15)) + uint32_t(key >> 32)) * 0x846CA68Bu;
    return h ^ (h >> 16);
}
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
                Vec<T> value = activated<T, kActivation>(c, load(x + i * width + column));
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
                const auto g = derivatives<T, kActivation>(c, load(x + i * width + column), value);
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
                const auto g = derivatives<T, kActivation>(c, load(x + i * width + column),
                                                           load(d + i * width + column));
                Vec<T> dx = c.scale * g.dy + c.gate_scale * g.dgate;
                if (p.weights != nullptr) dx += p.weights[row + i] * (of_mean + g.centred * of_variance);
                store(out + i * width + column, dx);
            }
        }
    });
}
