"""Encodes clicks in workers of Ray Data, and compares the ids with those of `dien-fast prepare`.

    .venv-peers/ray/bin/python tests/peers/encode_with_ray.py

Two local workers read several Parquet files and encode them in batches. Ends with "N rows of N columns are equal".
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests/support")]
import ray  # noqa: E402
from clicks import timed_schema, timed_table  # noqa: E402

from dien_fast.data import ArrowEncoder, PreparedData, prepare  # noqa: E402
from dien_fast.models.batches import session_key  # noqa: E402

ROWS, FILES = 4000, 5


def write_clicks(folder: Path) -> None:
    """Write a table in several files, with the number of each row."""
    table = timed_table(ROWS).append_column("number", pa.array(range(ROWS)))
    for number in range(FILES):
        part = table.slice(number * ROWS // FILES, ROWS // FILES)
        pa.parquet.write_table(part, folder / f"{number}.parquet", row_group_size=300)


def encode_in_workers(folder: Path, encoder: ArrowEncoder) -> pa.Table:
    """Return the encoded rows of the files in order, encoded by Ray's workers."""

    def encode(rows: pa.Table) -> pa.Table:
        return encoder(rows).append_column("number", rows["number"])

    paths = {"env_vars": {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests/support'}"}}
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, runtime_env=paths)
    dataset = ray.data.read_parquet(str(folder)).map_batches(encode, batch_format="pyarrow", batch_size=170)
    blocks = [ray.get(reference) for reference in dataset.to_arrow_refs()]
    ray.shutdown()
    return pa.concat_tables(blocks).sort_by("number")


def compare(encoded: pa.Table, prepared: PreparedData) -> int:
    """Refuse a column that differs from the prepared training rows; return the number of columns."""
    dataset, schema = prepared.dataset("train"), prepared.schema
    assert encoded["number"].to_pylist() == dataset.source_rows.tolist()
    names = [schema.label, *schema.numeric, *schema.categorical, "__user__"]
    for name in names:
        np.testing.assert_array_equal(encoded[name].to_numpy(), dataset.column(name), err_msg=name)
    lists = [*schema.sequences, *(session_key(group.name) for group in schema.groups)]
    for name in lists:
        column = encoded[name].combine_chunks()
        values, offsets = dataset.events(name)
        np.testing.assert_array_equal(column.flatten().to_numpy(), values, err_msg=name)
        np.testing.assert_array_equal(column.offsets.to_numpy(), offsets, err_msg=name)
    return len(names) + len(lists)


def main() -> None:
    """Prepare, encode and compare."""
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory) / "clicks"
        folder.mkdir()
        write_clicks(folder)
        # Other rows validate and test, so that all of these are training rows.
        others = {}
        for number, part in enumerate(("valid", "test")):
            others[part] = Path(directory) / f"{part}.parquet"
            pa.parquet.write_table(timed_table(40, seed=number + 1), others[part])
        prepared = prepare(folder, timed_schema(), Path(directory) / "prepared", **others)
        encoded = encode_in_workers(folder, ArrowEncoder(prepared.schema, prepared.encoders))
        columns = compare(encoded, prepared)
    print(f"{encoded.num_rows} rows of {columns} columns are equal")


if __name__ == "__main__":
    main()
