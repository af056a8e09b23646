"""Triton kernels of group normalisation on channels-last maps, see :mod:`.fused_norm`. Importing this needs Triton.

The maps are (B, positions, channels), contiguous. A channel is addressed by group and place in the group, which has
``WIDTH`` channels; ``PLACES`` is a power of two that holds them. All arithmetic is float32, in an order that depends on
the shape of an image's map and not on the batch: equal images have equal values.
"""

# Triton reads the annotations of its functions, so they are no strings here.
import triton
import triton.language as tl


@triton.jit
def moments(
    x, found, positions, chunk_rows,
    GROUPS: tl.constexpr, WIDTH: tl.constexpr, PLACES: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Store three moments of each group over a chunk of an image: found is (B, chunks, 3, GROUPS).

    They are the mean of the chunk's first rows, and of the differences from it the mean and the centred sum of squares.
    A mean square minus the square of a mean loses its digits where a group is almost constant.
    """
    chunk, image = tl.program_id(0), tl.program_id(1)
    group, place, row = tl.arange(0, GROUPS), tl.arange(0, PLACES), tl.arange(0, ROWS)
    first = chunk * chunk_rows
    end = tl.minimum(first + chunk_rows, positions)
    column = (group[:, None] * WIDTH + place[None, :])[None, :, :]
    present = (place < WIDTH)[None, None, :]
    values = x + image.to(tl.int64) * positions * WIDTH * GROUPS
    reference = tl.zeros([GROUPS], tl.float32)
    sums = tl.zeros([ROWS, GROUPS, PLACES], tl.float32)
    squares = tl.zeros([ROWS, GROUPS, PLACES], tl.float32)
    for start in range(first, end, ROWS):
        here = (start + row < end)[:, None, None] & present
        tile = tl.load(values + (start + row)[:, None, None] * (WIDTH * GROUPS) + column, mask=here, other=0.0)
        tile = tile.to(tl.float32)
        if start == first:
            reference = tl.sum(tl.sum(tile, 2), 0) / (tl.minimum(ROWS, end - first) * WIDTH).to(tl.float32)
        tile = tl.where(here, tile - reference[None, :, None], 0.0)
        sums += tile
        squares += tile * tile
    count = ((end - first) * WIDTH).to(tl.float32)
    total, square = tl.sum(tl.sum(sums, 2), 0), tl.sum(tl.sum(squares, 2), 0)
    target = found + (image * tl.num_programs(0) + chunk) * (3 * GROUPS) + group
    tl.store(target, reference)
    tl.store(target + GROUPS, total / count)
    tl.store(target + 2 * GROUPS, square - total * (total / count))


@triton.jit
def coefficients(
    found, weight, bias, modulation, factors, positions, chunks, chunk_rows, eps,
    MODULATED: tl.constexpr, GROUPS: tl.constexpr, WIDTH: tl.constexpr, PLACES: tl.constexpr,
):  # fmt: skip
    """Store reference, factor and term of each channel of an image: factors is (B, 3, channels).

    The normalised map is (value - reference) x factor + term. The moments of the chunks are joined as by Chan et al.
    (1979). If ``MODULATED``, ``modulation`` (B, 2, channels) is scale and shift after the normalisation.
    """
    image = tl.program_id(0)
    group, place = tl.arange(0, GROUPS), tl.arange(0, PLACES)
    source = found + image * chunks * (3 * GROUPS) + group
    reference = tl.load(source)
    mean = tl.load(source + GROUPS)  # of the differences from the reference
    square = tl.load(source + 2 * GROUPS)
    for chunk in range(1, chunks):
        own = source + chunk * (3 * GROUPS)
        before = (chunk * chunk_rows * WIDTH).to(tl.float32)
        after = (tl.minimum((chunk + 1) * chunk_rows, positions) * WIDTH).to(tl.float32)
        apart = (tl.load(own) - reference) + tl.load(own + GROUPS) - mean
        square += tl.load(own + 2 * GROUPS) + apart * apart * (before * ((after - before) / after))
        mean += apart * ((after - before) / after)
    deviation = tl.sqrt(square / (positions * WIDTH * 1.0) + eps)  # a product, since Triton makes a 1 a constant
    channels = WIDTH * GROUPS
    channel = group[:, None] * WIDTH + place[None, :]
    present = (place < WIDTH)[None, :] & (group >= 0)[:, None]
    factor = tl.load(weight + channel, mask=present, other=0.0).to(tl.float32) / deviation[:, None]
    term = tl.load(bias + channel, mask=present, other=0.0).to(tl.float32) - factor * mean[:, None]
    if MODULATED:
        after_norm = modulation + image * (2 * channels) + channel
        scale = tl.load(after_norm, mask=present, other=0.0).to(tl.float32) + 1.0
        factor, term = factor * scale, term * scale
        term += tl.load(after_norm + channels, mask=present, other=0.0).to(tl.float32)
    target = factors + image * (3 * channels) + channel
    tl.store(target, tl.zeros_like(factor) + reference[:, None], mask=present)
    tl.store(target + channels, factor, mask=present)
    tl.store(target + 2 * channels, term, mask=present)


@triton.jit
def transform(
    x, factors, y, positions, channels, ACTIVATED: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr
):  # fmt: skip
    """Store (value - reference) x factor + term in y for some positions of an image, its SiLU if ``ACTIVATED``."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    image = tl.program_id(1)
    channel = tl.arange(0, COLUMNS)
    of_image = factors + image * (3 * channels) + channel
    reference = tl.load(of_image, mask=channel < channels, other=0.0)[None, :]
    factor = tl.load(of_image + channels, mask=channel < channels, other=0.0)[None, :]
    term = tl.load(of_image + 2 * channels, mask=channel < channels, other=0.0)[None, :]
    place = image.to(tl.int64) * positions * channels + row[:, None] * channels + channel[None, :]
    here = (row < positions)[:, None] & (channel < channels)[None, :]
    made = (tl.load(x + place, mask=here, other=0.0).to(tl.float32) - reference) * factor + term
    if ACTIVATED:
        made = made / (1.0 + tl.exp(-made))
    tl.store(y + place, made.to(y.dtype.element_ty), mask=here)
