// oneDNN's lbr_augru behind a C interface, for ctypes: one layer, one direction, dense float32 input.
//
// Layouts are torch's: x [T, B, H], attention [T, B], weights [3 H, H] with gates (u, r, n), bias_ih and
// bias_hh [3 H]. oneDNN wants weights [H, 3, H] and four biases, (u, r, n, c); the reorder is part of a call,
// as weights change between calls.

#include <oneapi/dnnl/dnnl.hpp>
#include <unordered_map>

using namespace dnnl;
using Tag = memory::format_tag;

namespace {

memory::desc desc(const memory::dims& dims, Tag tag) { return {dims, memory::data_type::f32, tag}; }

struct Augru {
    engine cpu{engine::kind::cpu, 0};
    stream queue{cpu};
    memory::dim T, B, H;
    lbr_augru_forward::primitive_desc forward_desc;
    lbr_augru_backward::primitive_desc backward_desc;
    lbr_augru_forward forward_run;
    lbr_augru_backward backward_run;
    memory::desc user_weights;
    memory weights_layer, weights_iter, back_layer, back_iter, bias, dst, dst_iter, src_iter, workspace;
    memory d_weights_layer, d_weights_iter, d_bias, d_src_iter, d_dst_iter;
    bool training;

    Augru(memory::dim T, memory::dim B, memory::dim H, bool training) : T(T), B(B), H(H), training(training) {
        // torch's [3 H, H] read as [layer, direction, input, gate, output].
        user_weights =
            memory::desc({1, 1, H, 3, H}, memory::data_type::f32, {3 * H * H, 3 * H * H, 1, H * H, H});
        const auto kind = training ? prop_kind::forward_training : prop_kind::forward_inference;
        const auto sequence = desc({T, B, H}, Tag::tnc), attention = desc({T, B, 1}, Tag::tnc);
        const auto state = desc({1, 1, B, H}, Tag::ldnc), biases = desc({1, 1, 4, H}, Tag::ldgo);
        const auto any = desc({1, 1, H, 3, H}, Tag::any);
        forward_desc =
            lbr_augru_forward::primitive_desc(cpu, kind, rnn_direction::unidirectional_left2right, sequence,
                                              state, attention, any, any, biases, sequence, state);
        forward_run = lbr_augru_forward(forward_desc);
        weights_layer = memory(forward_desc.weights_layer_desc(), cpu);
        weights_iter = memory(forward_desc.weights_iter_desc(), cpu);
        bias = memory(biases, cpu);
        dst_iter = memory(state, cpu);
        src_iter = memory(state, cpu);
        std::fill_n(static_cast<float*>(src_iter.get_data_handle()), B * H, 0.0f);
        if (!training) return;
        workspace = memory(forward_desc.workspace_desc(), cpu);
        backward_desc = lbr_augru_backward::primitive_desc(
            cpu, prop_kind::backward, rnn_direction::unidirectional_left2right, sequence, state, attention,
            any, any, biases, sequence, state, sequence, state, attention, any, any, biases, sequence, state,
            forward_desc);
        backward_run = lbr_augru_backward(backward_desc);
        back_layer = memory(backward_desc.weights_layer_desc(), cpu);
        back_iter = memory(backward_desc.weights_iter_desc(), cpu);
        d_weights_layer = memory(backward_desc.diff_weights_layer_desc(), cpu);
        d_weights_iter = memory(backward_desc.diff_weights_iter_desc(), cpu);
        d_bias = memory(biases, cpu);
        d_src_iter = memory(state, cpu);
        d_dst_iter = memory(state, cpu);
        std::fill_n(static_cast<float*>(d_dst_iter.get_data_handle()), B * H, 0.0f);
    }

    memory wrap(const memory::desc& d, float* data) { return memory(d, cpu, data); }

    void reorder_weights(float* from, memory& to) {
        memory user = wrap(user_weights, from);
        reorder(user, to).execute(queue, user, to);
    }

    void forward(float* x, float* attention, float* w, float* u, float* bias_ih, float* bias_hh,
                 float* states) {
        reorder_weights(w, weights_layer);
        reorder_weights(u, weights_iter);
        float* b = static_cast<float*>(bias.get_data_handle());
        for (memory::dim i = 0; i < 2 * H; ++i) b[i] = bias_ih[i] + bias_hh[i];
        for (memory::dim i = 2 * H; i < 3 * H; ++i) b[i] = bias_ih[i], b[H + i] = bias_hh[i];
        memory x_memory = wrap(forward_desc.src_layer_desc(), x);
        memory attention_memory = wrap(forward_desc.attention_desc(), attention);
        dst = wrap(forward_desc.dst_layer_desc(), states);
        std::unordered_map<int, memory> arguments{{DNNL_ARG_SRC_LAYER, x_memory},
                                                  {DNNL_ARG_SRC_ITER, src_iter},
                                                  {DNNL_ARG_AUGRU_ATTENTION, attention_memory},
                                                  {DNNL_ARG_WEIGHTS_LAYER, weights_layer},
                                                  {DNNL_ARG_WEIGHTS_ITER, weights_iter},
                                                  {DNNL_ARG_BIAS, bias},
                                                  {DNNL_ARG_DST_LAYER, dst},
                                                  {DNNL_ARG_DST_ITER, dst_iter}};
        if (training) arguments[DNNL_ARG_WORKSPACE] = workspace;
        forward_run.execute(queue, arguments);
        queue.wait();
    }

    // After forward on the same arguments. The gradients are the library's, wrong ones included.
    void backward(float* x, float* attention, float* w, float* u, float* d_states, float* dx,
                  float* d_attention) {
        reorder_weights(w, back_layer);
        reorder_weights(u, back_iter);
        for (memory* sum : {&d_weights_layer, &d_weights_iter, &d_bias})
            std::fill_n(static_cast<char*>(sum->get_data_handle()), sum->get_desc().get_size(), 0);
        memory x_memory = wrap(backward_desc.src_layer_desc(), x);
        memory attention_memory = wrap(backward_desc.attention_desc(), attention);
        memory dx_memory = wrap(backward_desc.diff_src_layer_desc(), dx);
        memory d_attention_memory = wrap(backward_desc.diff_attention_desc(), d_attention);
        memory d_states_memory = wrap(backward_desc.diff_dst_layer_desc(), d_states);
        backward_run.execute(queue, {{DNNL_ARG_SRC_LAYER, x_memory},
                                     {DNNL_ARG_SRC_ITER, src_iter},
                                     {DNNL_ARG_AUGRU_ATTENTION, attention_memory},
                                     {DNNL_ARG_WEIGHTS_LAYER, back_layer},
                                     {DNNL_ARG_WEIGHTS_ITER, back_iter},
                                     {DNNL_ARG_BIAS, bias},
                                     {DNNL_ARG_DST_LAYER, dst},
                                     {DNNL_ARG_DST_ITER, dst_iter},
                                     {DNNL_ARG_WORKSPACE, workspace},
                                     {DNNL_ARG_DIFF_DST_LAYER, d_states_memory},
                                     {DNNL_ARG_DIFF_DST_ITER, d_dst_iter},
                                     {DNNL_ARG_DIFF_SRC_LAYER, dx_memory},
                                     {DNNL_ARG_DIFF_SRC_ITER, d_src_iter},
                                     {DNNL_ARG_DIFF_AUGRU_ATTENTION, d_attention_memory},
                                     {DNNL_ARG_DIFF_WEIGHTS_LAYER, d_weights_layer},
                                     {DNNL_ARG_DIFF_WEIGHTS_ITER, d_weights_iter},
                                     {DNNL_ARG_DIFF_BIAS, d_bias}});
        queue.wait();
    }
};

}  // namespace

extern "C" {
void* augru_create(int64_t steps, int64_t batch, int64_t hidden, int training) {
    return new Augru(steps, batch, hidden, training != 0);
}
void augru_destroy(void* augru) { delete static_cast<Augru*>(augru); }
void augru_forward(void* augru, float* x, float* attention, float* w, float* u, float* bias_ih,
                   float* bias_hh, float* states) {
    static_cast<Augru*>(augru)->forward(x, attention, w, u, bias_ih, bias_hh, states);
}
void augru_backward(void* augru, float* x, float* attention, float* w, float* u, float* d_states, float* dx,
                    float* d_attention) {
    static_cast<Augru*>(augru)->backward(x, attention, w, u, d_states, dx, d_attention);
}
}
