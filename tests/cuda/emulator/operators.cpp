// The operators, in one unit, as the headers of torch take longer to compile than they do; and the emulator's
// settings for Python (through ctypes).

// clang-format off: it gives the names that the others use other meanings
#include "operators.h"
// clang-format on

#include "../../../csrc/cuda/attention_gru/attention_gru_cuda.cpp"
#include "../../../csrc/cuda/attention_scores/attention_scores_cuda.cpp"
#include "../../../csrc/cuda/auxiliary_loss/auxiliary_loss_cuda.cpp"
#include "../../../csrc/cuda/rows/rows_cuda.cpp"
#include "../../../csrc/library.cpp"

extern "C" __attribute__((visibility("default"))) void configure_emulator(int order, unsigned seed,
                                                                          int multiprocessors,
                                                                          int shared_bytes,
                                                                          int64_t chunk_bytes) {
    emulator::settings() = {emulator::Order(order), seed, multiprocessors, shared_bytes, chunk_bytes};
}
