// The entry point of the auxiliary loss on the CPU.

#include <cstring>
#include <tuple>

#include "ragged.h"

namespace dien_fast {
namespace {

template <typename T>
const AuxiliaryKernels<T>& kernels(const std::vector<int64_t>& widths) {
    const Capability chosen = capability(widths.data(), widths.size());
    if constexpr (sizeof(T) == 4)
        return DIEN_FAST_CHOOSE(chosen, kFloatAuxiliary);
    else
        return DIEN_FAST_CHOOSE(chosen, kDoubleAuxiliary);
}

template <typename T>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> run(const Tensor& states, const Tensor& events,
                                                       const Tensor& negatives, const Tensor& offsets_tensor,
                                                       const std::vector<Tensor>& parameters, bool save) {
    const int64_t rows = states.size(0), depth = states.size(1), layers = int64_t(parameters.size()) / 2 - 1;
    STD_TORCH_CHECK(parameters.size() % 2 == 0 && layers >= 1 && layers <= kMaxLayers,
                    "parameters must hold weight and bias of 2 to ", kMaxLayers + 1, " layers, got ",
                    parameters.size(), " tensors");
    const std::vector<int64_t> offsets = check_offsets(offsets_tensor, rows);
    const int64_t size = offsets.size() - 1;
    Auxiliary<T> p{};
    p.depth = depth;
    p.offsets = offsets.data();
    p.states = data<T>("states", states, {rows, depth});
    p.events = data<T>("events", events, {rows, depth});
    p.negatives = data<T>("negatives", negatives, {rows, depth});
    p.layer_count = layers;

    int64_t operations = 0, steps = 0, inputs = 2 * depth, gradient_size = 0;
    for (int64_t b = 0; b < size; ++b) steps += std::max<int64_t>(offsets[b + 1] - offsets[b] - 1, 0);
    p.scale = steps > 0 ? T(1 / (2 * double(steps))) : T(0);
    std::vector<const T*> weights;
    for (int64_t l = 0; l <= layers; ++l) {
        const Tensor& weight = parameters[2 * l];
        const int64_t width =
            l == layers ? 1 : (check_shape("parameters", weight, {-1, inputs}), weight.size(0));
        STD_TORCH_CHECK(width > 0, "parameters must have at least one output a layer");
        weights.push_back(data<T>("parameters", weight, {width, inputs}));
        weights.push_back(data<T>("parameters", parameters[2 * l + 1], {width}));
        if (l < layers) p.widths[l] = width;
        operations += (save ? 12 : 4) * inputs * width;
        gradient_size += (inputs + 1) * width;
        inputs = width;
    }

    const AuxiliaryKernels<T>& k = kernels<T>({p.widths, p.widths + layers});
    Pieces<T> pieces;
    const int64_t first = p.widths[0], last_width = p.widths[layers - 1];
    const int64_t forward = k.panels_size(depth, first), backward = k.panels_size(first, depth);
    const int64_t firsts[] = {pieces.add(forward), pieces.add(forward), pieces.add(backward),
                              pieces.add(backward)};
    const int64_t last = pieces.add(k.padded(last_width));
    int64_t biases[kMaxLayers], forwards[kMaxLayers] = {}, backwards[kMaxLayers] = {};
    for (int64_t l = 0; l < layers; ++l) {
        biases[l] = pieces.add(k.padded(p.widths[l]));
        if (l == 0) continue;
        forwards[l] = pieces.add(k.panels_size(p.widths[l - 1], p.widths[l]));
        backwards[l] = pieces.add(k.panels_size(p.widths[l], p.widths[l - 1]));
    }
    const Scratch<T> packed(pieces.size());
    T* base = packed.data();
    std::memset(base, 0, pieces.size() * sizeof(T));
    for (int64_t side = 0; side < 2; ++side) {
        const T* matrix = weights[0] + side * depth;
        k.pack(matrix, depth, first, 2 * depth, true, base + firsts[side]);
        k.pack(matrix, first, depth, 2 * depth, false, base + firsts[2 + side]);
    }
    p.state_forward = base + firsts[0];
    p.event_forward = base + firsts[1];
    p.state_backward = base + firsts[2];
    p.event_backward = base + firsts[3];
    for (int64_t l = 0; l < layers; ++l) {
        std::memcpy(base + biases[l], weights[2 * l + 1], p.widths[l] * sizeof(T));
        p.bias[l] = base + biases[l];
        if (l == 0) continue;
        k.pack(weights[2 * l], p.widths[l - 1], p.widths[l], p.widths[l - 1], true, base + forwards[l]);
        k.pack(weights[2 * l], p.widths[l], p.widths[l - 1], p.widths[l - 1], false, base + backwards[l]);
        p.forward[l] = base + forwards[l];
        p.backward[l] = base + backwards[l];
    }
    std::memcpy(base + last, weights[2 * layers], last_width * sizeof(T));
    p.last = base + last;
    p.last_bias = weights[2 * layers + 1][0];

    auto output = [&] {
        return save ? empty_rows(states, {rows, depth}) : torch::stable::new_empty(states, {0});
    };
    Tensor dstates = output(), devents = output(), dnegatives = output();
    if (save) {
        p.dstates = static_cast<T*>(dstates.mutable_data_ptr());
        p.devents = static_cast<T*>(devents.mutable_data_ptr());
        p.dnegatives = static_cast<T*>(dnegatives.mutable_data_ptr());
    }
    const std::vector<int64_t> begins = share_out(offsets, operations);
    const int64_t threads = begins.size() - 1, per_thread = k.scratch(p);
    Pieces<T> sum_pieces;
    const int64_t of_state = sum_pieces.add(depth * k.padded(first));
    const int64_t of_event = sum_pieces.add(depth * k.padded(first)),
                  of_last = sum_pieces.add(k.padded(last_width));
    int64_t of_weight[kMaxLayers] = {}, of_bias[kMaxLayers];
    for (int64_t l = 0; l < layers; ++l) {
        of_bias[l] = sum_pieces.add(k.padded(p.widths[l]));
        if (l > 0) of_weight[l] = sum_pieces.add(p.widths[l - 1] * k.padded(p.widths[l]));
    }
    const Scratch<T> scratch(per_thread * threads);
    const Scratch<T> sums(save ? sum_pieces.size() * threads : 0);
    std::vector<double> losses(threads), last_biases(threads);
    for_each_thread(threads, [&](int64_t thread) {
        AuxiliarySums<T> own{};
        if (save) {
            T* at = sums.data() + thread * sum_pieces.size();
            std::memset(at, 0, sum_pieces.size() * sizeof(T));
            own.state = at + of_state;
            own.event = at + of_event;
            own.last = at + of_last;
            for (int64_t l = 0; l < layers; ++l) {
                own.bias[l] = at + of_bias[l];
                own.weight[l] = at + of_weight[l];
            }
        }
        k.loss(p, begins[thread], begins[thread + 1], own, scratch.data() + thread * per_thread);
        losses[thread] = own.loss;
        last_biases[thread] = own.last_bias;
    });

    // Threads are added in their order, so that the same threads give the same bits.
    double loss = 0, last_bias = 0;
    for (int64_t thread = 0; thread < threads; ++thread) {
        loss += losses[thread];
        last_bias += last_biases[thread];
    }
    Tensor mean = torch::stable::new_empty(states, {});
    *static_cast<T*>(mean.mutable_data_ptr()) = steps > 0 ? T(loss / (2 * double(steps))) : T(0);
    Tensor dparameters = torch::stable::new_empty(states, {save ? gradient_size : 0});
    if (!save) return {mean, dstates, devents, dnegatives, dparameters};
    add_threads(sums.data(), sum_pieces.size(), sum_pieces.size(), threads);
    T* out = static_cast<T*>(dparameters.mutable_data_ptr());
    for (int64_t l = 0; l < layers; ++l) {
        const int64_t width = p.widths[l], stride = k.padded(width),
                      in = l == 0 ? 2 * depth : p.widths[l - 1];
        if (l == 0) {
            for (int64_t c = 0; c < width; ++c)
                for (int64_t d = 0; d < depth; ++d) {
                    out[c * in + d] = sums.data()[of_state + d * stride + c];
                    out[c * in + depth + d] = sums.data()[of_event + d * stride + c];
                }
        } else {
            copy_matrix(sums.data() + of_weight[l], stride, true, width, in, out);
        }
        out += width * in;
        std::memcpy(out, sums.data() + of_bias[l], width * sizeof(T));
        out += width;
    }
    std::memcpy(out, sums.data() + of_last, last_width * sizeof(T));
    out[last_width] = T(last_bias);
    return {mean, dstates, devents, dnegatives, dparameters};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> auxiliary_loss(Tensor states, Tensor events,
                                                                  Tensor negatives, Tensor offsets,
                                                                  std::vector<Tensor> parameters, bool save) {
    check_shape("states", states, {-1, -1});
    const auto chosen = is_single("states", states) ? run<float> : run<double>;
    return chosen(states, events, negatives, offsets, parameters, save);
}

}  // namespace
}  // namespace dien_fast

STABLE_TORCH_LIBRARY_IMPL(dien_fast, CPU, m) {
    m.impl("auxiliary_loss", TORCH_BOX(&dien_fast::auxiliary_loss));
}
