"""The models: DIEN and its baseline DIN."""

from dien_fast.models.dien import DIEN
from dien_fast.models.din import DIN
from dien_fast.reference.groups import AttentionGroup

__all__ = ["DIEN", "DIN", "AttentionGroup"]
