"""The diffusion model of guided-diffusion (ADM) and DDIM.

Others use ``unet.Adm``, ``checkpoints.load_adm``, ``noise_schedule`` and ``ddim``.
"""
