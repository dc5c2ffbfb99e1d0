"""One kind of error for everything that a reader can mend."""

from __future__ import annotations

__all__ = ["BookError"]


class BookError(ValueError):
    """A mistake in the input: one line that says what was seen, what was wanted and what to do.

    In a notebook it prints as that one line, without the traceback of the library's inner frames.

    >>> raise BookError("steps is 'many' (str)", "an int", "pass for example -p steps 400")
    Traceback (most recent call last):
    cvlib.errors.BookError: steps is 'many' (str); wanted an int; pass for example -p steps 400
    """

    def __init__(self, seen: str, wanted: str = "", do: str = "") -> None:
        parts = [seen, f"wanted {wanted}" if wanted else "", do]
        super().__init__("; ".join(" ".join(part.split()) for part in parts if part))

    def _render_traceback_(self) -> list[str]:
        """IPython's hook for exceptions that know how to show themselves."""
        return [f"BookError: {self}"]
