"""The table of cells in csrc/cells.h against Python's names, numbers, gates and rules."""

import ast
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from dien_fast import functional
from dien_fast.ops.cells import CELLS, ORDERS
from dien_fast.reference.gru import replaced_share

SOURCES = Path(__file__).resolve().parents[2] / "csrc"
COMPILER = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
ATTENTIONS = (-0.5, 0.0, 0.25, 1.0, 3.0)
PROGRAM = """
#include <cstdio>
#include "cells.h"
using namespace dien_fast;
#define NAME(cell, ...) #cell,
static const char* const kNames[] = {DIEN_FAST_CELLS(NAME)};
static const double kAttentions[] = {ATTENTIONS};
int main() {
    for (int64_t i = 0; i < kCellCount; ++i) {
        const Cell cell = Cell(i);
        std::printf("{'name': '%s', 'needs_attention': %d, 'x': [", kNames[i], needs_attention(cell));
        for (int k = 0; k < gate_count(cell); ++k) std::printf("%d, ", gate_block(cell, x_gate(cell, k)));
        std::printf("], 'h': [");
        for (int k = 0; k < gate_count(cell); ++k) std::printf("%d, ", gate_block(cell, h_gate(cell, k)));
        std::printf("], 'rules': [");
        for (double a : kAttentions) {
            const Rule<double> z = rule<double>(cell, a);
            std::printf("(%.17g, %.17g, %.17g, %.17g, %.17g), ", a, z.alpha, z.beta, z.alpha_a, z.beta_a);
        }
        std::printf("]}\\n");
    }
}
"""

pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    directory = tmp_path_factory.mktemp("cells")
    (directory / "cells.cpp").write_text(PROGRAM.replace("ATTENTIONS", str(ATTENTIONS)[1:-1]))
    command = [COMPILER, "-std=c++17", "-O0", "-Wall", "-Wextra", "-Werror", f"-I{SOURCES}"]
    subprocess.run([*command, "-c", "cells.cpp", "-o", "cells.o"], cwd=directory, check=True)
    subprocess.run([COMPILER, "cells.o", "-o", "cells"], cwd=directory, check=True)
    return directory


@pytest.fixture(scope="module")
def table(program):
    lines = subprocess.check_output([program / "cells"], text=True).splitlines()
    return [ast.literal_eval(line) for line in lines]


def test_names_and_numbers(table):
    assert [row["name"] for row in table] == sorted(CELLS, key=CELLS.get)
    assert list(CELLS.values()) == list(range(len(table)))


def test_gates(table):
    """Each block of rows once, in the kernels' orders (u | r | n) and (n | u | r)."""
    for row in table:
        order = ORDERS[row["name"]]
        assert row["x"] == [order.index(gate) for gate in "urn" if gate in order]
        assert row["h"] == [row["x"][-1], *row["x"][:-1]]


def test_rules(table):
    """As the reference's share, at u inside and outside of [0, 1], with the derivatives of its dependence on a."""
    u = torch.tensor([[0.0], [0.3], [1.0], [-2.0]], dtype=torch.float64)
    for row in table:
        for a, alpha, beta, alpha_a, beta_a in row["rules"]:
            attention = torch.full_like(u, a).requires_grad_()
            share = replaced_share(row["name"], u, attention)
            torch.testing.assert_close(alpha + beta * u, share.detach(), rtol=0, atol=1e-15)
            slope = torch.zeros_like(u)
            if share.requires_grad:
                (slope,) = torch.autograd.grad(share.sum(), attention)
            torch.testing.assert_close(alpha_a + beta_a * u, slope, rtol=0, atol=1e-15)
        assert row["needs_attention"] == (row["name"] != "gru")


@pytest.mark.parametrize("cell", CELLS)
def test_every_table_of_equations_has_the_cell(cell):
    assert f"\n//     {cell} " in (SOURCES / "attention_gru.h").read_text()
    assert f"\n    {cell} " in functional.__doc__
    assert f'``"{cell}"``' in functional.attention_gru.__doc__


def test_no_function_is_shared_by_translation_units(program):
    """The linker keeps one of several equal functions, and could keep one of another instruction set."""
    symbols = subprocess.check_output(["nm", "-C", program / "cells.o"], text=True).splitlines()
    functions = [line.split(maxsplit=2) for line in symbols if "dien_fast::" in line]
    assert any("rule" in name for _, _, name in functions)
    assert {kind for _, kind, _ in functions} <= {"t", "r"}
