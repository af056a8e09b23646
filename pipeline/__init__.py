"""Stage one: from images to cached features. The plan, the scan and the sources load without torch."""
