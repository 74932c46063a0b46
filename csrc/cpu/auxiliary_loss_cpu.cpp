// The auxiliary loss on the CPU: the operator auxiliary_loss. ../interest.h says what it computes.

#include <cstring>
#include <optional>
#include <tuple>

#include "../auxiliary_loss_mlp.h"
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
const T* parameter_data(const char* name, const Tensor& value, Shape shape) {
    return data<T>(name, value, shape);
}

// The MLP: its parameters, and packed for the kernels.
template <typename T>
class AuxiliaryMLP : public AuxiliaryParameters<T> {
  public:
    using AuxiliaryParameters<T>::widths, AuxiliaryParameters<T>::layers;

    AuxiliaryMLP(const std::vector<Tensor>& parameters, int64_t depth)
        : AuxiliaryParameters<T>(parameters, depth, parameter_data<T>) {}

    // Points p to packed weights in `memory`, which must outlive it.
    void pack(const AuxiliaryKernels<T>& k, int64_t depth, std::optional<Scratch<T>>& memory,
              Auxiliary<T>& p) const {
        constexpr Direction kForward = Direction::kForward, kBackward = Direction::kBackward;
        const int64_t first = widths[0];
        Pieces<T> pieces;
        const int64_t forward = k.panels_size(first, depth, kForward);
        const int64_t backward = k.panels_size(first, depth, kBackward);
        const int64_t state_forward = pieces.add(forward), event_forward = pieces.add(forward);
        const int64_t state_backward = pieces.add(backward), event_backward = pieces.add(backward);
        const int64_t last = pieces.add(k.padded(widths.back()));
        int64_t biases[kMaxLayers], forwards[kMaxLayers] = {}, backwards[kMaxLayers] = {};
        for (int64_t l = 0; l < layers(); ++l) {
            biases[l] = pieces.add(k.padded(widths[l]));
            if (l == 0) continue;
            forwards[l] = pieces.add(k.panels_size(widths[l], widths[l - 1], kForward));
            backwards[l] = pieces.add(k.panels_size(widths[l], widths[l - 1], kBackward));
        }
        memory.emplace(pieces.size());
        T* base = memory->data();
        std::memset(base, 0, pieces.size() * sizeof(T));
        const View<const T> of_state{this->weights[0], 2 * depth, depth},
            of_event{this->weights[0] + depth, 2 * depth, depth};
        auto packed = [&](int64_t outputs, View<const T> weight, Direction direction, int64_t at) {
            k.pack(outputs, weight, direction, base + at);
            return base + at;
        };
        p.state_forward = packed(first, of_state, kForward, state_forward);
        p.event_forward = packed(first, of_event, kForward, event_forward);
        p.state_backward = packed(first, of_state, kBackward, state_backward);
        p.event_backward = packed(first, of_event, kBackward, event_backward);
        p.layer_count = layers();
        for (int64_t l = 0; l < layers(); ++l) {
            p.widths[l] = widths[l];
            std::memcpy(base + biases[l], this->biases[l], widths[l] * sizeof(T));
            p.bias[l] = base + biases[l];
            if (l == 0) continue;
            const View<const T> weight{this->weights[l], widths[l - 1], widths[l - 1]};
            p.forward[l] = packed(widths[l], weight, kForward, forwards[l]);
            p.backward[l] = packed(widths[l], weight, kBackward, backwards[l]);
        }
        std::memcpy(base + last, this->weights.back(), widths.back() * sizeof(T));
        p.last = base + last;
        p.last_bias = this->biases.back()[0];
    }
};

// The gradients of the parameters, summed by each thread, and where the sums begin.
template <typename T>
class ParameterSums {
  public:
    ParameterSums(const AuxiliaryKernels<T>& k, const Auxiliary<T>& p, int64_t threads)
        : k_(k), p_(p), threads_(threads) {
        state_ = pieces_.add(p.depth * k.padded(p.widths[0]));
        event_ = pieces_.add(p.depth * k.padded(p.widths[0]));
        last_ = pieces_.add(k.padded(p.widths[p.layer_count - 1]));
        for (int64_t l = 0; l < p.layer_count; ++l) {
            biases_[l] = pieces_.add(k.padded(p.widths[l]));
            if (l > 0) weights_[l] = pieces_.add(p.widths[l - 1] * k.padded(p.widths[l]));
        }
        memory_.emplace(pieces_.size() * threads);
    }

    // A thread's own sums, zeroed.
    AuxiliarySums<T> of(int64_t thread) const {
        T* own = memory_->data() + thread * pieces_.size();
        std::memset(own, 0, pieces_.size() * sizeof(T));
        AuxiliarySums<T> out{};
        out.state = own + state_;
        out.event = own + event_;
        out.last = own + last_;
        for (int64_t l = 0; l < p_.layer_count; ++l) {
            out.bias[l] = own + biases_[l];
            out.weight[l] = own + weights_[l];
        }
        return out;
    }

    // All of them, one behind the other, in the order and the shapes of the parameters.
    void write(double last_bias, T* out) {
        const T* sums = memory_->data();
        add_threads(memory_->data(), pieces_.size(), threads_);
        for (int64_t l = 0; l < p_.layer_count; ++l) {
            const int64_t width = p_.widths[l], stride = k_.padded(width);
            if (l == 0) {
                for (int64_t c = 0; c < width; ++c)
                    for (int64_t d = 0; d < p_.depth; ++d) {
                        out[c * 2 * p_.depth + d] = sums[state_ + d * stride + c];
                        out[c * 2 * p_.depth + p_.depth + d] = sums[event_ + d * stride + c];
                    }
                out += width * 2 * p_.depth;
            } else {
                copy_transposed(sums + weights_[l], stride, width, p_.widths[l - 1], out);
                out += width * p_.widths[l - 1];
            }
            std::memcpy(out, sums + biases_[l], width * sizeof(T));
            out += width;
        }
        const int64_t last_width = p_.widths[p_.layer_count - 1];
        std::memcpy(out, sums + last_, last_width * sizeof(T));
        out[last_width] = T(last_bias);
    }

  private:
    const AuxiliaryKernels<T>& k_;
    const Auxiliary<T>& p_;
    int64_t threads_, state_, event_, last_;
    int64_t weights_[kMaxLayers] = {}, biases_[kMaxLayers] = {};
    Pieces<T> pieces_;
    std::optional<Scratch<T>> memory_;
};

template <typename T>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> run(const Tensor& states, const Tensor& events,
                                                       const Tensor& negatives, const Tensor& offsets_tensor,
                                                       const std::vector<Tensor>& parameters, bool save) {
    const int64_t rows = states.size(0), depth = states.size(1);
    const AuxiliaryMLP<T> mlp(parameters, depth);
    const std::vector<int64_t> offsets = check_offsets(offsets_tensor, rows);
    const int64_t size = offsets.size() - 1;
    int64_t steps = 0;
    for (int64_t b = 0; b < size; ++b) steps += std::max<int64_t>(offsets[b + 1] - offsets[b] - 1, 0);
    Auxiliary<T> p{};
    p.depth = depth;
    p.offsets = offsets.data();
    p.states = data<T>("states", states, {rows, depth});
    p.events = data<T>("events", events, {rows, depth});
    p.negatives = data<T>("negatives", negatives, {rows, depth});
    p.scale = steps > 0 ? T(1 / (2 * double(steps))) : T(0);
    const AuxiliaryKernels<T>& k = kernels<T>(mlp.widths);
    std::optional<Scratch<T>> packed;
    mlp.pack(k, depth, packed, p);

    auto output = [&] {
        return save ? empty_rows(states, {rows, depth}) : torch::stable::new_empty(states, {0});
    };
    Tensor dstates = output(), devents = output(), dnegatives = output();
    if (save) {
        p.dstates = static_cast<T*>(dstates.mutable_data_ptr());
        p.devents = static_cast<T*>(devents.mutable_data_ptr());
        p.dnegatives = static_cast<T*>(dnegatives.mutable_data_ptr());
    }
    // With the gradients a row costs three times as much.
    const std::vector<int64_t> begins = share_out(offsets, save ? 3 * mlp.operations : mlp.operations);
    const int64_t threads = begins.size() - 1, per_thread = k.scratch(p);
    const Scratch<T> scratch(per_thread * threads);
    std::optional<ParameterSums<T>> sums;
    if (save) sums.emplace(k, p, threads);
    std::vector<double> losses(threads), last_biases(threads);
    for_each_thread(threads, [&](int64_t thread) {
        AuxiliarySums<T> own = sums ? sums->of(thread) : AuxiliarySums<T>{};
        k.loss(p, begins[thread], begins[thread + 1], own, scratch.data() + thread * per_thread);
        losses[thread] = own.loss;
        last_biases[thread] = own.last_bias;
    });
    double loss = 0, last_bias = 0;
    for (int64_t thread = 0; thread < threads; ++thread) {
        loss += losses[thread];
        last_bias += last_biases[thread];
    }
    Tensor mean = torch::stable::new_empty(states, {});
    *static_cast<T*>(mean.mutable_data_ptr()) = steps > 0 ? T(loss / (2 * double(steps))) : T(0);
    Tensor dparameters = torch::stable::new_empty(states, {save ? mlp.size : 0});
    if (sums) sums->write(last_bias, static_cast<T*>(dparameters.mutable_data_ptr()));
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
