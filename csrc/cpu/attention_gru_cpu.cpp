// The attention GRU on the CPU: the operators attention_gru and attention_gru_backward. ../attention_gru.h
// says what they compute and who does what.

#include <cstring>
#include <optional>
#include <tuple>
#include <vector>

#include "../attention_gru.h"
#include "arguments.h"
#include "runtime.h"
#include "schedule.h"

namespace dien_fast {
namespace {

template <typename T>
const Kernels<T>& kernels(int64_t hidden) {
    const Capability chosen = capability(&hidden, 1);
    if constexpr (sizeof(T) == 4)
        return DIEN_FAST_CHOOSE(chosen, kFloatKernels);
    else
        return DIEN_FAST_CHOOSE(chosen, kDoubleKernels);
}

// The operators' tensor arguments that both directions have.
struct Inputs {
    const Tensor& x;
    const std::optional<Tensor>& att;
    const Tensor& weight_ih;
    const Tensor& weight_hh;
    const std::optional<Tensor>& bias_ih;
    const std::optional<Tensor>& bias_hh;
    const std::optional<Tensor>& h0;
    Layout layout;

    int64_t h0_rows() const { return h0 ? h0->size(0) : -1; }
};

// The same, checked.
template <typename T>
struct Problem {
    Weights<T> weights{};
    Schedule schedule;
    const T* x;
    const T* att;
    const T* h0;
    bool padded;  // x [B, T, I] and what else has a row for each step, against [N, I]

    Problem(const Inputs& in, int64_t cell, int64_t operations_per_number) : padded(in.x.dim() == 3) {
        const CellSizes sizes = check_cell(cell, in.weight_ih, in.weight_hh);
        weights.cell = sizes.cell;
        weights.input = sizes.input;
        weights.hidden = sizes.hidden;
        weights.w = data<T>("weight_ih", in.weight_ih, {sizes.gate_rows, sizes.input});
        weights.u = data<T>("weight_hh", in.weight_hh, {sizes.gate_rows, sizes.hidden});
        weights.bias_ih = data<T>("bias_ih", in.bias_ih, {sizes.gate_rows});
        weights.bias_hh = data<T>("bias_hh", in.bias_hh, {sizes.gate_rows});
        if (in.h0) check_shape("h0", *in.h0, {-1, sizes.hidden});
        schedule = make_schedule(in.layout, in.x, in.h0_rows(),
                                 operations_per_number * sizes.hidden * (sizes.input + sizes.hidden));
        x = padded ? data<T>("x", in.x, {-1, -1, sizes.input}) : data<T>("x", in.x, {-1, sizes.input});
        check_attention_given(sizes.cell, in.att);
        att = padded ? data<T>("att", in.att, {in.x.size(0), in.x.size(1)})
                     : data<T>("att", in.att, {schedule.rows});
        h0 = data<T>("h0", in.h0, {schedule.batch.size, sizes.hidden});
    }
};

template <typename T>
std::tuple<Tensor, Tensor, Tensor> run_forward(const Inputs& in, int64_t cell, bool save_states,
                                               bool save_gates) {
    const Problem<T> problem(in, cell, 6);
    const Schedule& s = problem.schedule;
    const Tensor& x = in.x;
    const int64_t size = s.batch.size, hidden = problem.weights.hidden, input = problem.weights.input;
    const Kernels<T>& k = kernels<T>(hidden);

    Tensor states = !save_states     ? torch::stable::new_empty(x, {0, hidden})
                    : problem.padded ? empty_rows(x, {x.size(0), x.size(1), hidden})
                                     : empty_rows(x, {s.rows, hidden});
    Tensor last = torch::stable::new_empty(x, {size, hidden});
    Tensor gates = empty_rows(x, {save_gates ? s.rows : 0, 4 * k.padded(hidden)});
    if (save_states && s.has_padding())
        std::memset(states.mutable_data_ptr(), 0, s.rows * hidden * sizeof(T));

    const Scratch<T> packed(k.packed_forward_size(input, hidden));
    k.pack_forward(problem.weights, packed.data());
    Forward<T> f{};
    f.batch = s.batch;
    f.weights = problem.weights;
    f.packed = packed.data();
    f.x = problem.x;
    f.x_stride = input;
    f.att = problem.att;
    f.h0 = problem.h0;
    f.states = save_states ? static_cast<T*>(states.mutable_data_ptr()) : nullptr;
    f.last = static_cast<T*>(last.mutable_data_ptr());
    f.gates = save_gates ? static_cast<T*>(gates.mutable_data_ptr()) : nullptr;
    // Where histories share rows of x, each row's product with the weights is computed once.
    std::optional<Scratch<T>> projected, packed_states;
    if (in.layout.x_start && s.steps > 2 * x.size(0)) {
        const int64_t rows = x.size(0), threads = s.threads.size(), stride = 3 * k.padded(hidden);
        projected.emplace(rows * stride);
        for_each_thread(threads, [&](int64_t thread) {
            k.project(f, rows * thread / threads, rows * (thread + 1) / threads, projected->data());
        });
        f.weights.input = 0;
        f.weights.projected = true;
        packed_states.emplace(k.packed_forward_size(0, hidden));
        k.pack_forward(f.weights, packed_states->data());
        f.packed = packed_states->data();
        f.x = projected->data();
        f.x_stride = stride;
    }
    const int64_t per_thread = k.forward_scratch(input, hidden);
    const Scratch<T> scratch(per_thread * s.threads.size());
    for_each_thread(s.threads.size(), [&](int64_t thread) {
        for (const Tile& tile : s.threads[thread]) k.forward(f, tile, scratch.data() + thread * per_thread);
    });
    return {states, last, gates};
}

std::tuple<Tensor, Tensor, Tensor> attention_gru(Tensor x, std::optional<Tensor> att, Tensor weight_ih,
                                                 Tensor weight_hh, std::optional<Tensor> bias_ih,
                                                 std::optional<Tensor> bias_hh, std::optional<Tensor> h0,
                                                 std::optional<Tensor> lengths, std::optional<Tensor> offsets,
                                                 std::optional<Tensor> batch_sizes,
                                                 std::optional<Tensor> x_start, int64_t cell,
                                                 bool save_states, bool save_gates) {
    const Inputs in{x,       att,     weight_ih, weight_hh,
                    bias_ih, bias_hh, h0,        {lengths, offsets, batch_sizes, x_start}};
    const auto run = is_single("x", x) ? run_forward<float> : run_forward<double>;
    return run(in, cell, save_states, save_gates);
}

enum Gradient { kX, kAtt, kWeights, kH0, kGradients };

using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

// Every thread's sums, side by side, and how they become the gradients of the weights.
template <typename T>
class ThreadSums {
  public:
    ThreadSums(const Kernels<T>& k, const Weights<T>& weights, int64_t threads)
        : cell_(weights.cell),
          input_(weights.input),
          hidden_(weights.hidden),
          w_stride_(k.padded(weights.input)),
          u_stride_(k.padded(weights.hidden)),
          du_(gate_count(cell_) * hidden_ * w_stride_),
          db_(du_ + gate_count(cell_) * hidden_ * u_stride_),
          size_(db_ + k.padded((gate_count(cell_) + 1) * hidden_)),
          threads_(threads),
          memory_(size_ * threads) {}

    // A thread's own sums, zeroed.
    WeightGradients<T> of(int64_t thread) const {
        T* own = memory_.data() + thread * size_;
        std::memset(own, 0, size_ * sizeof(T));
        WeightGradients<T> out{};
        out.dw = own;
        out.du = own + du_;
        out.db = own + db_;
        return out;
    }

    // From the kernels' orders of the gates to the caller's.
    void gather(T* dweight_ih, T* dweight_hh, T* dbias_ih, T* dbias_hh) const {
        for (int place = 0; place < gate_count(cell_); ++place) {
            const int64_t from = place * hidden_;
            const int64_t of_x = gate_block(cell_, x_gate(cell_, place)) * hidden_;
            const int64_t of_h = gate_block(cell_, h_gate(cell_, place)) * hidden_;
            for (int64_t i = 0; i < hidden_; ++i) {
                add(dweight_ih + (of_x + i) * input_, (from + i) * w_stride_, input_);
                add(dweight_hh + (of_h + i) * hidden_, du_ + (from + i) * u_stride_, hidden_);
            }
            // db is (dc | du' | dr' | dn'): what meets h begins at its start, what meets x a block later.
            add(dbias_ih + of_x, db_ + hidden_ + from, hidden_);
            add(dbias_hh + of_h, db_ + from, hidden_);
        }
    }

  private:
    // Adds the threads' sums in the order of the threads, so that as many threads give the same bits again.
    void add(T* to, int64_t from, int64_t length) const {
        if (length == 0) return;  // an empty gradient has no address
        std::memcpy(to, memory_.data() + from, length * sizeof(T));
        for (int64_t thread = 1; thread < threads_; ++thread) {
            const T* more = memory_.data() + thread * size_ + from;
            for (int64_t i = 0; i < length; ++i) to[i] += more[i];
        }
    }

    Cell cell_;
    int64_t input_, hidden_, w_stride_, u_stride_;
    int64_t du_, db_, size_;  // where a thread's du and db begin, and where its sums end
    int64_t threads_;
    Scratch<T> memory_;
};

template <typename T>
Gradients run_backward(const Inputs& in, int64_t cell, const std::optional<Tensor>& dstates,
                       const std::optional<Tensor>& dlast, const Tensor& states, const Tensor& gates,
                       const std::vector<bool>& wanted) {
    const Problem<T> problem(in, cell, 18);
    const Schedule& s = problem.schedule;
    const Tensor& x = in.x;
    const int64_t size = s.batch.size, hidden = problem.weights.hidden, input = problem.weights.input;
    const Kernels<T>& k = kernels<T>(hidden);
    auto rows_of_states = [&](const char* name, const std::optional<Tensor>& value) {
        return problem.padded ? data<T>(name, value, {x.size(0), x.size(1), hidden})
                              : data<T>(name, value, {s.rows, hidden});
    };
    Backward<T> b{};
    b.batch = s.batch;
    b.weights = problem.weights;
    b.x = problem.x;
    b.x_stride = input;
    b.att = problem.att;
    b.h0 = problem.h0;
    b.states = rows_of_states("states", states);
    const bool saved = gates.size(0) > 0;
    b.gates = saved ? data<T>("gates", gates, {s.rows, 4 * k.padded(hidden)}) : nullptr;
    b.dstates = rows_of_states("dstates", dstates);
    b.dlast = data<T>("dlast", dlast, {size, hidden});

    auto output = [&](bool want, Shape shape) {
        return want ? empty_rows(x, shape) : torch::stable::new_empty(x, {0});
    };
    Tensor dx = problem.padded ? output(wanted[kX], {x.size(0), x.size(1), input})
                               : output(wanted[kX], {s.rows, input});
    Tensor datt =
        problem.padded ? output(wanted[kAtt], {x.size(0), x.size(1)}) : output(wanted[kAtt], {s.rows});
    Tensor dh0 = output(wanted[kH0], {size, hidden});
    if (s.has_padding())
        for (const Tensor& rows : {dx, datt})
            if (rows.numel() > 0) std::memset(rows.mutable_data_ptr(), 0, rows.numel() * sizeof(T));
    b.dx = output_data<T>(dx);
    b.datt = output_data<T>(datt);
    b.dh0 = output_data<T>(dh0);

    const Scratch<T> packed(k.packed_backward_size(input, hidden));
    k.pack_backward(problem.weights, packed.data());
    b.packed = packed.data();
    const Scratch<T> packed_gates(saved ? 0 : k.packed_forward_size(input, hidden));
    if (!saved) k.pack_forward(problem.weights, packed_gates.data());
    b.packed_gates = packed_gates.data();

    const int64_t threads = s.threads.size(), per_thread = k.backward_scratch(input, hidden);
    std::optional<ThreadSums<T>> sums;
    if (wanted[kWeights]) sums.emplace(k, problem.weights, threads);
    const Scratch<T> scratch(per_thread * threads);
    for_each_thread(threads, [&](int64_t thread) {
        const WeightGradients<T> own = sums ? sums->of(thread) : WeightGradients<T>{};
        for (const Tile& tile : s.threads[thread])
            k.backward(b, tile, own, scratch.data() + thread * per_thread);
    });

    const int64_t gate_rows = gate_count(problem.weights.cell) * hidden;
    Tensor dweight_ih = output(wanted[kWeights], {gate_rows, input});
    Tensor dweight_hh = output(wanted[kWeights], {gate_rows, hidden});
    Tensor dbias_ih = output(wanted[kWeights], {gate_rows});
    Tensor dbias_hh = output(wanted[kWeights], {gate_rows});
    if (sums)
        sums->gather(output_data<T>(dweight_ih), output_data<T>(dweight_hh), output_data<T>(dbias_ih),
                     output_data<T>(dbias_hh));
    return {dx, datt, dweight_ih, dweight_hh, dbias_ih, dbias_hh, dh0};
}

Gradients attention_gru_backward(std::optional<Tensor> dstates, std::optional<Tensor> dlast, Tensor x,
                                 std::optional<Tensor> att, Tensor weight_ih, Tensor weight_hh,
                                 std::optional<Tensor> bias_ih, std::optional<Tensor> bias_hh,
                                 std::optional<Tensor> h0, std::optional<Tensor> lengths,
                                 std::optional<Tensor> offsets, std::optional<Tensor> batch_sizes,
                                 Tensor states, Tensor gates, int64_t cell, std::vector<bool> wanted) {
    STD_TORCH_CHECK(wanted.size() == kGradients, "wanted must have 4 elements, got ", wanted.size());
    const Inputs in{x,       att,     weight_ih, weight_hh,
                    bias_ih, bias_hh, h0,        {lengths, offsets, batch_sizes, std::nullopt}};
    const auto run = is_single("x", x) ? run_backward<float> : run_backward<double>;
    return run(in, cell, dstates, dlast, states, gates, wanted);
}

}  // namespace
}  // namespace dien_fast

STABLE_TORCH_LIBRARY_IMPL(dien_fast, CPU, m) {
    m.impl("attention_gru", TORCH_BOX(&dien_fast::attention_gru));
    m.impl("attention_gru_backward", TORCH_BOX(&dien_fast::attention_gru_backward));
}
