"""Adversarial diffusion models: processes, players, objectives and the engine that plays them."""

__version__ = "0.1.0"
