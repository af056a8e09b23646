"""What is on disk: specs, shards, datasets and build records; it knows no model and no training.

Others use ``Cache`` and what the subfolders name, :mod:`.store`, :mod:`.gather`, :mod:`.lease` and :mod:`.spec`.
"""

from .maintenance.listing import summary
from .maintenance.verify import report as verification
from .store import Cache

__all__ = ["Cache", "summary", "verification"]
