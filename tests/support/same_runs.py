"""Two runs that must be the same, bit for bit, but for the time that they took."""

import pandas as pd
import torch

from dien_fast.training.checkpoints import load_checkpoint

_TIMING = ["seconds", "rows_per_second"]


def assert_same_runs(*directories):
    histories = [pd.read_csv(directory / "history.csv").drop(columns=_TIMING) for directory in directories]
    pd.testing.assert_frame_equal(*histories, check_exact=True)
    encoders = {path.relative_to(directories[0]) for path in (directories[0] / "encoders").iterdir()}
    for name in ("metrics.json", "config.json", *encoders):
        assert len({(directory / name).read_bytes() for directory in directories}) == 1, name
    for name in ("best.pt", "last.pt"):
        contents = [load_checkpoint(directory / name) for directory in directories]
        for content in contents:
            for row in content.get("history", []):
                for timing in _TIMING:
                    del row[timing]
        assert_same(*contents, name)


def assert_same(one, other, name):
    """Compare what a checkpoint holds; NaN is the same as NaN."""
    assert type(one) is type(other), name
    if isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype, name
        assert torch.equal(one.reshape(-1).view(torch.uint8), other.reshape(-1).view(torch.uint8)), name
    elif isinstance(one, dict):
        assert list(one) == list(other), name
        for key in one:
            assert_same(one[key], other[key], f"{name}: {key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), name
        for number, values in enumerate(zip(one, other, strict=True)):
            assert_same(*values, f"{name}: {number}")
    else:
        assert one == other or (one != one and other != other), name
