"""Where each key's row lies, and the compacted file that makes opening fast; others use ``index.Index`` and ``index.EMPTY``."""
