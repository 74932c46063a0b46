// The interest layer around its recurrences: equations, shapes and the interface of the CPU kernels. Read
// this page first for the attention scores and the auxiliary loss.
//
// B ragged histories: history b has rows offsets[b] .. offsets[b + 1] of N rows, each D numbers.
//
// ATTENTION SCORES. A history has a candidate q, and each of its rows a key k. An MLP of layers 1 .. L and a
// last product give a logit for each row:
//
//     x_1 = W [q; k; q - k; q * k] + b_1         a_l = f(x_l)        x_{l+1} = W_{l+1} a_l + b_{l+1}
//     logit = (w a_L + b) / sqrt(D)              score = softmax over the logits of a history
//
// The first layer is linear in k, so with W = [W_q W_k W_d W_p], of D columns each,
//
//     x_1 = (W_q + W_d) q + b_1 + (W_k - W_d + W_p diag(q)) k
//
// The first two terms, the "query term", and the matrix in front of k are computed once for each history. A
// row then costs D products for each channel instead of 4 D, and the concatenation never exists.
//
// f is a batch normalisation (if the layer has one), an activation and dropout. All of these, with the
// normalisation inside Dice, act on each channel by itself, with six numbers that the channel's rows share:
//
//     c = x - mean    y = scale c + shift    p = s(gate_scale c + gate_shift)
//     f = y | max(y, 0) | y > 0 ? y : slope y | s(y) | y (slope + (1 - slope) p)
//         identity, ReLU, PReLU, sigmoid, Dice
//
// In training, mean and variance are those of the batch with every history padded to T steps by zero keys:
// B T rows. The T - len padded rows of history b all equal its query term, so one row with that weight stands
// for them: row N + b. (In a normalised layer the mean that Dice takes is shift and its variance is scale^2
// variance, so Dice needs no further pass.)
//
// Backward, with d the gradient of f, dy that of y and dp' that of p's argument:
//
//     dx = scale dy + gate_scale dp' + weight (mean_gradient + c variance_gradient)
//
// where mean_gradient and variance_gradient, which come through mean and variance, are sums over all rows. So
// each layer costs one pass over the rows forward and one backward, and each pass ends with the sums that the
// next one needs.
//
// AUXILIARY LOSS. For each step t < len of a history: the state h_t, the clicked event e_{t+1} and a negative
// n_{t+1}. An MLP with sigmoids is applied to [h; e] and to [h; n]; the two share the first layer's product
// with h.
//
//     loss = mean over all these of  (log(1 + exp(-logit(h, e))) + log(1 + exp(logit(h, n)))) / 2
//
// Its gradients are computed together with it, row by row; backward multiplies them by the loss's gradient.

#pragma once

#include <cstdint>

#include "cpu/view.h"

namespace dien_fast {

enum class Activation : int64_t { kIdentity, kRelu, kPrelu, kSigmoid, kDice };

constexpr int kMaxLayers = 8;
constexpr int kTileRows = 64;  // rows that go through a product together

// A weight [outputs, inputs] is kept in panels (see cpu/kernel/products.h): of its transpose for forward,
// where rows of inputs are multiplied by it, of itself for backward, where rows of gradients are.
enum class Direction { kForward, kBackward };

// The sums that a channel has, for each a row of padded channels. Of the rows' moments, by tiles of rows: the
// weighted sum, the weight times the square of the tile's mean, and the weighted squares of the deviations
// from that mean.
enum Moment { kSum, kSquares, kDeviations, kMoments };
// Of the gradients: dy, dy c, dp', dp' c, the slope's, and dx.
enum Reduction { kDy, kDyCentred, kDgate, kDgateCentred, kDslope, kDx, kReductions };

// A layer of C channels. "padded" is rounded up to whole vectors; arrays over channels are padded.
template <typename T>
struct ScoreLayer {
    Activation activation;
    int64_t inputs;   // D for layer 1
    int64_t width;    // C
    const T* panels;  // of its weight, in the run's direction; null for layer 1
    const T* bias;
    const T *mean, *scale, *shift, *gate_scale, *gate_shift, *slope;
    const T *mean_gradient, *variance_gradient;
    T* x;         // [N + B, padded C]
    T* gradient;  // of f [N + B, padded C]; null for layer L
};

template <typename T>
struct Scores {
    int64_t size;              // B
    int64_t rows;              // N
    int64_t depth;             // D
    const int64_t* offsets;    // [B + 1]
    const int64_t* key_start;  // [B] first row of keys
    // [N + B] weights of the rows in batch statistics; or null, and rows from N on are not computed.
    const T* weights;
    const T* query;  // [B, D]
    const T* keys;   // rows of D
    int64_t layer_count;
    ScoreLayer<T> layers[kMaxLayers];
    // Layer 1, in panels of the run's direction: W_q + W_d, W_k - W_d and W_p.
    const T *query_panels, *key_panels, *product_panels;
    const T* product_rows;  // the transpose of W_p [D, padded C_1]
    const T* last;          // w [padded C_L]
    T last_bias;
    T logit_scale;
    bool dropout;
    uint32_t keep;  // a number is kept with probability keep / 2^32
    T kept;         // and multiplied by this
    uint64_t seed;
    T* scores;         // [N]
    const T* dscores;  // [N]
    T* dlogits;        // [N + B], 0 from N on
    T* dquery;         // [B, D]
    T* dkeys;          // [N, D]
};

// The sums of one thread, zeroed by the caller.
template <typename T>
struct ScoreSums {
    double* moments[kMaxLayers];     // [kMoments, padded C]
    double* reductions[kMaxLayers];  // [kReductions, padded C]
    T* weight[kMaxLayers];           // the weight's gradient, transposed [inputs, padded C]; from layer 2 on
    T *query, *key, *product;        // those of W_q + W_d, W_k - W_d and W_p, transposed [D, padded C_1]
    double* last;                    // those of w [padded C_L], and behind them of b
};

template <typename T>
struct Auxiliary {
    int64_t depth;           // D
    const int64_t* offsets;  // [B + 1]
    const T *states, *events, *negatives;
    int64_t layer_count;
    int64_t widths[kMaxLayers];
    // Panels of the first layer's weight, whose first D columns meet states and the others events and
    // negatives.
    const T *state_forward, *event_forward;
    const T *state_backward, *event_backward;
    const T* forward[kMaxLayers];   // panels of the weight, from layer 2 on
    const T* backward[kMaxLayers];  // the same for backward
    const T* bias[kMaxLayers];      // [padded C_l]
    const T* last;                  // [padded C_L]
    T last_bias;
    T scale;                            // the weight of a logit in the loss: 1 / (2 number of steps)
    T *dstates, *devents, *dnegatives;  // [N, D], or null: no gradients
};

// The sums of one thread, zeroed by the caller; gradients of weights are transposed.
template <typename T>
struct AuxiliarySums {
    T *state, *event;       // of the first layer's weight [D, padded C_1]
    T* weight[kMaxLayers];  // [C_{l-1}, padded C_l], from layer 2 on
    T* bias[kMaxLayers];    // [padded C_l]
    T* last;                // [padded C_L]
    double last_bias, loss;
};

// The kernels of one instruction set for one type. Sizes count elements of T; memory is 64-byte aligned. A
// range [begin, end) is of histories in query_terms, key_terms, softmax, softmax_backward, terms_backward and
// loss, and of the N + B rows in the others. Layers count from 0.
template <typename T>
struct ScoreKernels {
    int64_t (*padded)(int64_t size);
    int64_t (*panels_size)(int64_t outputs, int64_t inputs, Direction);
    void (*pack)(int64_t outputs, View<const T> weight, Direction, T* panels);
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
    int64_t (*panels_size)(int64_t outputs, int64_t inputs, Direction);
    void (*pack)(int64_t outputs, View<const T> weight, Direction, T* panels);
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
