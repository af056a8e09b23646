"""The features that this package brings, one module each: its spec, its rows, and what a reader must know of them."""
