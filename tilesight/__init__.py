"""Tilesight: aerial and satellite tiles into words that GIS people can use."""

__all__ = ["__version__"]

__version__ = "0.1.0"
