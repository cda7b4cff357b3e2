"""Vision-language training for agriculture, livestock and fishery in JAX."""

__version__ = "0.1.0"
