"""What lies on disk: specs, shards, datasets and build records. Knows no model and no training."""

from .listing import summary
from .store import Cache
from .verify import report as verification

__all__ = ["Cache", "summary", "verification"]
