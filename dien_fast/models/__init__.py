"""The models: DIEN and its baseline DIN."""

from dien_fast.attention_group import AttentionGroup
from dien_fast.models.dien import DIEN
from dien_fast.models.din import DIN

__all__ = ["DIEN", "DIN", "AttentionGroup"]
