"""Support library of the book: what two chapters need, written once."""

from __future__ import annotations

__version__ = "0.1.0"
__all__ = ["__version__"]
