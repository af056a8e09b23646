"""What lies on disk: specs, shards, datasets and build records. Knows no model and no training."""

from .maintenance.listing import summary
from .maintenance.verify import report as verification
from .store import Cache

__all__ = ["Cache", "summary", "verification"]
