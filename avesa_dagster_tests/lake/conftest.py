from __future__ import annotations

from ..canonical.conftest import catalog, objects

__all__ = ["catalog", "objects"]
