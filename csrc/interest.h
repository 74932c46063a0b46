// The interest layer around its recurrences: equations, shapes and the interface of the kernels.
//
// B histories, ragged: history b has rows offsets[b] .. offsets[b + 1] of N rows, D numbers each.
//
// Attention scores. For candidate q of a history and its key k, an MLP of layers 1 .. L and a last product:
//
//     x_1 = W [q; k; q - k; q * k] + b_1 = (W_q + W_d) q + b_1 + (W_k - W_d + W_p diag(q)) k
//     a_l = f(x_l)        x_{l+1} = W_{l+1} a_l + b_{l+1}
//     logit = (w a_L + b) / sqrt(D)         score = softmax of the logits of a history
//
// so that a row costs D products a channel, the first term being computed once a history and its matrix once
// too. f is a batch normalisation, if there is one, an activation and dropout. All of it, with the
// normalisation inside Dice, is a function of a row's own number and of numbers of its channel:
//
//     c = x - mean    y = scale c + shift    p = s(gate_scale c + gate_shift)
//     f = y | max(y, 0) | y > 0 ? y : slope y | s(y) | y (slope + (1 - slope) p)
//
// In training mean and variance are those of the batch as if every history were padded with zero keys to T
// steps: B T rows, of which T - len of history b equal x_1 = (W_q + W_d) q + b_1. Those are one row with a
// weight, row N + b. (With normalisation before it, the mean inside Dice is shift and its variance scale^2
// variance: no further pass.)
//
// Backward, with d the gradient of f: dy, dp' (of the gate's argument) and
//
//     dx = scale dy + gate_scale dp' + weight (mean_gradient + c variance_gradient)
//
// where the last two, from mean and variance, are sums over all rows. So every layer costs one pass over the
// rows forward and one backward, and a pass ends with the sums that the next one needs.
//
// Auxiliary loss. For each step t < len of a history: state h_t, clicked event e_{t+1}, negative n_{t+1}, an
// MLP with sigmoids over [h; e] and over [h; n], whose first layer's product with h is shared:
//
//     loss = mean over all these of  log(1 + exp(-logit(h, e))) + log(1 + exp(logit(h, n))),  halved
//
// Its gradients are computed with it, row by row, and scaled by that of the loss in backward.

#pragma once

#include <cstdint>

namespace dien_fast {

enum class Activation : int64_t { kIdentity, kRelu, kPrelu, kSigmoid, kDice };

constexpr int kMaxLayers = 8;
constexpr int kTileRows = 64;  // rows that go through a product together

// What a channel's sums are sums of; a row of padded channels each.
enum Moment { kSum, kSquares, kDeviations, kMoments };
enum Reduction { kDy, kDyCentred, kDgate, kDgateCentred, kDslope, kDx, kReductions };

// C channels; arrays over channels are padded to whole vectors.
template <typename T>
struct ScoreLayer {
    Activation activation;
    int64_t inputs;     // columns of its weight; D for layer 1
    int64_t width;      // C
    const T* forward;   // panels of W^T [inputs, C]; null for layer 1
    const T* backward;  // panels of W [C, inputs]; null for layer 1
    const T* bias;
    const T *mean, *scale, *shift, *gate_scale, *gate_shift, *slope;
    const T *mean_gradient, *variance_gradient;
    T* x;         // [N + B, padded C]
    T* gradient;  // [N + B, padded C], of the activation; null for layer L
};

template <typename T>
struct Scores {
    int64_t size;              // B
    int64_t rows;              // N
    int64_t depth;             // D
    const int64_t* offsets;    // [B + 1]
    const int64_t* key_start;  // [B] first row of keys
    const T* weights;  // [N + B] of rows in batch statistics, or null: rows from N on are not computed
    const T* query;    // [B, D]
    const T* keys;     // rows of D
    int64_t layer_count;
    ScoreLayer<T> layers[kMaxLayers];
    const T *query_forward, *key_forward, *product_forward;     // panels [D, C_1]
    const T *query_backward, *key_backward, *product_backward;  // panels [C_1, D]
    const T* product_rows;                                      // [D, padded C_1]
    const T* last;                                              // w, [padded C_L]
    T last_bias;
    T logit_scale;
    bool dropout;
    uint32_t keep;  // of 2^32
    T kept;         // factor of what is kept
    uint64_t seed;
    T* scores;         // [N]
    const T* dscores;  // [N]
    T* dlogits;        // [N + B], 0 from N on
    T* dquery;         // [B, D]
    T* dkeys;          // [N, D]
};

// A thread's sums, zeroed by the caller.
template <typename T>
struct ScoreSums {
    double* moments[kMaxLayers];     // [kMoments, padded C]
    double* reductions[kMaxLayers];  // [kReductions, padded C]
    T* weight[kMaxLayers];           // [inputs, padded C], from layer 2 on
    T *query, *key, *product;        // [D, padded C_1]
    double* last;                    // [padded C_L], then the bias's
};

template <typename T>
struct Auxiliary {
    int64_t depth;           // D
    const int64_t* offsets;  // [B + 1]
    const T *states, *events, *negatives;
    int64_t layer_count;
    int64_t widths[kMaxLayers];
    const T *state_forward, *event_forward;    // panels [D, C_1]
    const T *state_backward, *event_backward;  // panels [C_1, D]
    const T* forward[kMaxLayers];              // panels [C_{l-1}, C_l], from layer 2 on
    const T* backward[kMaxLayers];             // panels [C_l, C_{l-1}]
    const T* bias[kMaxLayers];                 // [padded C_l]
    const T* last;                             // [padded C_L]
    T last_bias;
    T scale;                            // of a row's gradient: 1 / (2 number of steps)
    T *dstates, *devents, *dnegatives;  // [N, D], or null: no gradients
};

template <typename T>
struct AuxiliarySums {
    T *state, *event;       // [D, padded C_1]
    T* weight[kMaxLayers];  // [C_{l-1}, padded C_l], from layer 2 on
    T* bias[kMaxLayers];    // [padded C_l]
    T* last;                // [padded C_L]
    double last_bias, loss;
};

// One instruction set's kernels for one type. Sizes count elements of T; memory is 64-byte aligned. Ranges
// are of histories where they are called so, of the N + B rows otherwise. Layers count from 0.
template <typename T>
struct ScoreKernels {
    int64_t (*padded)(int64_t size);
    int64_t (*panels_size)(int64_t depth, int64_t columns);
    void (*pack)(const T* matrix, int64_t depth, int64_t columns, int64_t stride, bool transposed, T* panels);
    int64_t (*scratch)(const Scores<T>&);
    void (*query_terms)(const Scores<T>&, int64_t begin, int64_t end, const ScoreSums<T>&);
    void (*key_terms)(const Scores<T>&, int64_t begin, int64_t end, const ScoreSums<T>&, T* scratch);
    void (*layer)(const Scores<T>&, int64_t layer, int64_t begin, int64_t end, const ScoreSums<T>&,
                  T* scratch);
    void (*softmax)(const Scores<T>&, int64_t begin, int64_t end, T* scratch);
    void (*softmax_backward)(const Scores<T>&, int64_t begin, int64_t end);
    void (*last_backward)(const Scores<T>&, int64_t begin, int64_t end, const ScoreSums<T>&, T* scratch);
    void (*layer_backward)(const Scores<T>&, int64_t layer, int64_t begin, int64_t end, const ScoreSums<T>&,
                           T* scratch);
    void (*terms_backward)(const Scores<T>&, int64_t begin, int64_t end, const ScoreSums<T>&, T* scratch);
};

template <typename T>
struct AuxiliaryKernels {
    int64_t (*padded)(int64_t size);
    int64_t (*panels_size)(int64_t depth, int64_t columns);
    void (*pack)(const T* matrix, int64_t depth, int64_t columns, int64_t stride, bool transposed, T* panels);
    int64_t (*scratch)(const Auxiliary<T>&);
    void (*loss)(const Auxiliary<T>&, int64_t begin, int64_t end, AuxiliarySums<T>&, T* scratch);
};

// Defined by the translation units that cpu/attention_scores_kernel.cpp and cpu/auxiliary_loss_kernel.cpp are
// compiled into.
namespace baseline {
extern const ScoreKernels<float> kFloatScores;
extern const ScoreKernels<double> kDoubleScores;
extern const AuxiliaryKernels<float> kFloatAuxiliary;
extern const AuxiliaryKernels<double> kDoubleAuxiliary;
}  // namespace baseline
namespace avx2 {
extern const ScoreKernels<float> kFloatScores;
extern const ScoreKernels<double> kDoubleScores;
extern const AuxiliaryKernels<float> kFloatAuxiliary;
extern const AuxiliaryKernels<double> kDoubleAuxiliary;
}  // namespace avx2
namespace avx512 {
extern const ScoreKernels<float> kFloatScores;
extern const ScoreKernels<double> kDoubleScores;
extern const AuxiliaryKernels<float> kFloatAuxiliary;
extern const AuxiliaryKernels<double> kDoubleAuxiliary;
}  // namespace avx512
namespace avx512vl {
extern const ScoreKernels<float> kFloatScores;
extern const ScoreKernels<double> kDoubleScores;
extern const AuxiliaryKernels<float> kFloatAuxiliary;
extern const AuxiliaryKernels<double> kDoubleAuxiliary;
}  // namespace avx512vl

}  // namespace dien_fast
