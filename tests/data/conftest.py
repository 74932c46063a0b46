"""The small click table of ``clicks.py``, and what is fitted on it."""

from __future__ import annotations

import pyarrow as pa
import pytest
from clicks import make_schema, make_table

from dien_fast.data import Encoders, Schema, fit_encoders


@pytest.fixture
def table() -> pa.Table:
    return make_table()


@pytest.fixture
def schema() -> Schema:
    return make_schema()


@pytest.fixture
def encoders(table: pa.Table, schema: Schema) -> Encoders:
    return fit_encoders(table, schema)
