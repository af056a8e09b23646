"""Rows that hypothesis draws: what a shard may hold."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

shapes = st.lists(st.integers(1, 5), min_size=1, max_size=4).map(tuple)
any_rows = st.tuples(st.integers(0, 7), shapes, st.sampled_from(["uint8", "float16", "float32"])).flatmap(
    lambda drawn: hnp.arrays(
        np.dtype(drawn[2]),
        (drawn[0], *drawn[1]),
        elements={} if drawn[2] == "uint8" else {"allow_nan": False, "allow_infinity": False},
    )
)
