"""Every wrong argument of attention_gru is refused in one sentence that names it."""

import pytest
import torch

import dien_fast
from dien_fast.functional import attention_gru

B, T, N = 2, 4, 7


def arguments(layout="lengths"):
    """Correct arguments, I = 3 and H = 5, in one of the layouts."""
    rows = (B, T) if layout == "lengths" else (N,)
    sizes = {"lengths": [4, 3], "offsets": [0, 4, 7], "batch_sizes": [2, 2, 2, 1]}[layout]
    return {
        "x": torch.randn(*rows, 3),
        "att": torch.rand(rows),
        "weight_ih": torch.randn(15, 3),
        "weight_hh": torch.randn(15, 5),
        "bias_ih": torch.randn(15),
        "bias_hh": torch.randn(15),
        "h0": torch.randn(B, 5),
        layout: torch.tensor(sizes),
    }


SHAPES = [
    ("lengths", "x", (B, 3), r"x must have shape \(\*, \*, 3\), got \(2, 3\)"),
    ("lengths", "x", (B, T, 4), r"x must have shape \(\*, \*, 3\), got \(2, 4, 4\)"),
    ("offsets", "x", (B, T, 3), r"x must have shape \(\*, 3\), got \(2, 4, 3\)"),
    ("lengths", "att", (B, T + 1), r"att must have shape \(2, 4\), got \(2, 5\)"),
    ("offsets", "att", (N - 1,), r"att must have shape \(7,\), got \(6,\)"),
    ("batch_sizes", "att", (N, 1), r"att must have shape \(7,\), got \(7, 1\)"),
    ("lengths", "weight_ih", (10, 3), r"weight_ih must have shape \(15, \*\), got \(10, 3\)"),
    ("lengths", "weight_ih", (15,), r"weight_ih must have shape \(15, \*\), got \(15,\)"),
    ("lengths", "weight_hh", (10, 5), r"weight_hh must have shape \(15, 5\), got \(10, 5\)"),
    ("lengths", "weight_hh", (5,), r"weight_hh must have shape \(\*, \*\), got \(5,\)"),
    ("lengths", "bias_ih", (5,), r"bias_ih must have shape \(15,\), got \(5,\)"),
    ("lengths", "bias_hh", (15, 1), r"bias_hh must have shape \(15,\), got \(15, 1\)"),
    ("lengths", "h0", (B, 4), r"h0 must have shape \(2, 5\), got \(2, 4\)"),
    ("offsets", "h0", (B + 1, 5), r"h0 must have shape \(2, 5\), got \(3, 5\)"),
    ("batch_sizes", "h0", (1, 5), "h0 must have at least 2 rows, got 1"),
    ("lengths", "lengths", (B + 1,), r"lengths must have shape \(2,\), got \(3,\)"),
    ("lengths", "lengths", (B, 1), r"lengths must have shape \(2,\), got \(2, 1\)"),
    ("offsets", "offsets", (B, 1), r"offsets must have shape \(\*,\), got \(2, 1\)"),
    ("batch_sizes", "batch_sizes", (B, 1), r"batch_sizes must have shape \(\*,\), got \(2, 1\)"),
]


@pytest.mark.parametrize(("layout", "name", "shape", "message"), SHAPES)
def test_wrong_shape(layout, name, shape, message):
    given = arguments(layout)
    given[name] = torch.ones(shape, dtype=given[name].dtype)
    with pytest.raises(ValueError, match=message):
        attention_gru(**given)


SIZES = [
    ("lengths", [5, 3], r"lengths must lie in \[0, 4\], got \[3, 5\]"),
    ("lengths", [4, -1], r"lengths must lie in \[0, 4\], got \[-1, 4\]"),
    ("offsets", [0, 4, 6], "offsets must rise from 0 to 7"),
    ("offsets", [1, 4, 7], "offsets must rise from 0 to 7"),
    ("offsets", [0, 8, 7], "offsets must rise from 0 to 7"),
    ("offsets", [], "offsets must rise from 0 to 7"),
    ("batch_sizes", [2, 2, 2], "batch_sizes must fall, be positive and sum to 7"),
    ("batch_sizes", [1, 2, 2, 2], "batch_sizes must fall, be positive and sum to 7"),
    ("batch_sizes", [4, 3, 0], "batch_sizes must fall, be positive and sum to 7"),
    ("batch_sizes", [9, -2], "batch_sizes must fall, be positive and sum to 7"),
]


@pytest.mark.parametrize(("layout", "sizes", "message"), SIZES)
def test_wrong_sizes(layout, sizes, message):
    given = arguments(layout) | {layout: torch.tensor(sizes, dtype=torch.int64), "h0": None}
    with pytest.raises(ValueError, match=message):
        attention_gru(**given)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cell": "lstm"}, "cell must be one of .*'augru'.*, got 'lstm'"),
        ({"reset": "never"}, "reset must be 'after' or 'before', got 'never'"),
        ({"att": None}, "att must be given for cell 'augru', got None"),
        ({"lengths": None}, r"exactly one of lengths, offsets and batch_sizes must be given, got \[\]"),
        ({"offsets": torch.tensor([0])}, "exactly one of .* must be given, got .*'lengths', 'offsets'"),
    ],
)
def test_wrong_choice(change, message):
    with pytest.raises(ValueError, match=message):
        attention_gru(**(arguments() | change))


@pytest.mark.parametrize("layout", ["lengths", "offsets", "batch_sizes"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bool, torch.complex64])
def test_sizes_must_be_integers(layout, dtype):
    given = arguments(layout)
    given[layout] = given[layout].to(dtype)
    with pytest.raises(TypeError, match=f"{layout} must have an integer dtype, got {dtype}"):
        attention_gru(**given)


@pytest.mark.parametrize(
    ("name", "dtype", "message"),
    [
        ("x", torch.float64, "weight_ih must have the dtype of x, torch.float64, got torch.float32"),
        ("x", torch.int64, "x must have a floating-point dtype, got torch.int64"),
        # The other weights fit x, so the error names weight_ih.
        ("weight_ih", torch.float64, "weight_ih.* torch.float64"),
        (
            "weight_hh",
            torch.bfloat16,
            "weight_hh must have the dtype of x, torch.float32, got torch.bfloat16",
        ),
        ("bias_ih", torch.float64, "bias_ih must have the dtype of x, torch.float32, got torch.float64"),
        ("bias_hh", torch.float64, "bias_hh must have the dtype of x, torch.float32, got torch.float64"),
        ("att", torch.float64, "att must .* got torch.float64"),
        ("att", torch.int64, "att must .* got torch.int64"),
        ("h0", torch.float16, "h0 must .* got torch.float16"),
        ("h0", torch.float64, "h0 must .* got torch.float64"),
    ],
)
def test_mixed_dtypes(name, dtype, message):
    given = arguments()
    given[name] = given[name].to(dtype)
    with pytest.raises(TypeError, match=message):
        attention_gru(**given)


def test_integer_input():
    """Integer x and weights have one dtype, but no gate can be computed in it."""
    given = {name: value.to(torch.int64) for name, value in arguments().items()}
    with pytest.raises(TypeError, match=r"x must .* got torch\.int64"):
        attention_gru(**given)


@pytest.mark.parametrize("name", ["att", "weight_ih", "weight_hh", "bias_ih", "bias_hh", "h0"])
def test_mixed_devices(name):
    given = arguments()
    given[name] = given[name].to("meta")
    with pytest.raises(ValueError, match=f"{name} must be on cpu as x is, got meta"):
        attention_gru(**given)


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_gru_with_attention_names_x_before_its_attention(backend):
    if backend == "native" and dien_fast.backend().name != "native":
        pytest.skip("the native backend is not in use")
    x, weights = torch.randn(1, 0, 1), (torch.randn(3, 0), torch.randn(3, 1))
    with dien_fast.use_backend(backend), pytest.raises(ValueError, match=r"x must have shape \(\*, 0\)"):
        attention_gru(x, torch.rand(1), *weights, batch_sizes=torch.tensor([1]), cell="gru")


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_gru_refuses_attention_of_another_dtype(backend):
    if backend == "native" and dien_fast.backend().name != "native":
        pytest.skip("the native backend is not in use")
    x, weights = torch.randn(3, 2), (torch.randn(3, 2), torch.randn(3, 1))
    with (
        dien_fast.use_backend(backend),
        pytest.raises(TypeError, match=r"att must have the dtype of x, torch\.float32"),
    ):
        attention_gru(x, torch.ones(3, dtype=torch.int64), *weights, offsets=torch.tensor([0, 3]), cell="gru")
