"""The models: DIEN, its baseline DIN, DSIN, which reads sessions, and the base that they share."""

from dien_fast.models.base import ClickModel
from dien_fast.models.dien import DIEN
from dien_fast.models.din import DIN
from dien_fast.models.dsin import DSIN
from dien_fast.reference.groups import AttentionGroup

__all__ = ["DIEN", "DIN", "DSIN", "MODELS", "AttentionGroup", "ClickModel"]

#: The models by the name that the command and ``config.json`` have for them; the first is the default.
MODELS: dict[str, type[ClickModel]] = {
    "dien": DIEN,
    "din": DIN,
    "dsin": DSIN,
}
