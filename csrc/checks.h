// Checks of tensor arguments, for CPU and CUDA alike, before any memory is touched. Messages name the
// argument, what was expected and what came, as those of dien_fast/functional.py do.

#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <initializer_list>
#include <optional>
#include <string>

#include "cells.h"

namespace dien_fast {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

using Shape = std::initializer_list<int64_t>;  // -1 stands for any size

template <typename Sizes>
std::string shape_text(const Sizes& sizes) {
    std::string text = "(";
    for (int64_t size : sizes)
        text += (text.size() > 1 ? ", " : "") + (size < 0 ? "*" : std::to_string(size));
    return text + (sizes.size() == 1 ? ",)" : ")");
}

inline void check_sizes(const char* name, const Tensor& value, Shape shape) {
    const auto sizes = value.sizes();
    bool equal = sizes.size() == shape.size();
    for (size_t i = 0; equal && i < shape.size(); ++i)
        equal = shape.begin()[i] < 0 || shape.begin()[i] == sizes[i];
    STD_TORCH_CHECK(equal, name, " must have shape ", shape_text(shape), ", got ", shape_text(sizes));
}

// The cell of a number, and what the sizes of its weights say.
struct CellSizes {
    Cell cell;
    int64_t input, hidden;  // I, H
    int64_t gate_rows;      // G H
};
inline CellSizes check_cell(int64_t number, const Tensor& weight_ih, const Tensor& weight_hh) {
    STD_TORCH_CHECK(number >= 0 && number < kCellCount, "cell must lie in [0, ", kCellCount - 1, "], got ",
                    number);
    check_sizes("weight_hh", weight_hh, {-1, -1});
    const Cell cell = Cell(number);
    const int64_t hidden = weight_hh.size(1), gate_rows = gate_count(cell) * hidden;
    check_sizes("weight_ih", weight_ih, {gate_rows, -1});
    STD_TORCH_CHECK(hidden > 0, "weight_hh must have at least one column, got 0");
    return {cell, weight_ih.size(1), hidden, gate_rows};
}

inline void check_attention_given(Cell cell, const std::optional<Tensor>& att) {
    STD_TORCH_CHECK(att || !needs_attention(cell), "att must be given for this cell, got none");
}

inline void check_one_layout(const std::optional<Tensor>& lengths, const std::optional<Tensor>& offsets,
                             const std::optional<Tensor>& batch_sizes, const std::optional<Tensor>& x_start) {
    const int given = lengths.has_value() + offsets.has_value() + batch_sizes.has_value();
    STD_TORCH_CHECK(given == 1, "exactly one of lengths, offsets and batch_sizes must be given, got ", given);
    STD_TORCH_CHECK(!x_start || offsets, "x_start must come with offsets");
}

}  // namespace dien_fast
