"""Image networks, their weights files and the device: what both stages need of torch.

Others use ``backbones``, ``device``, ``weights``, ``download``, ``input_size``, ``user_cache`` and ``diffusion``.
"""
