"""A student of the residual alone."""

from distil_cache.train.methods.method import Method, MethodDefaults

RESIDUAL = Method(
    "residual",
    title="residual of the reconstruction alone",
    scales={"residual": "stored"},
    defaults=MethodDefaults(epochs=2, batch_size=4),
)
