"""A Sphinx extension that makes the theme's pages read offline without an error."""

from __future__ import annotations

from typing import Any

__all__ = ["setup"]


def setup(app: Any) -> dict[str, bool]:
    """Take out thebe (live cells from a public server, which this book does without).

    jupyter-book loads it unasked, twice, so that every page would open with a script error, and writes the
    address of its server into each.
    """
    for listeners in app.events.listeners.values():
        for listener in list(listeners):
            if listener.handler.__module__ == "sphinx_thebe":
                app.disconnect(listener.id)
    kept = [(name, options) for name, options in app.registry.css_files if "thebe" not in name]
    app.registry.css_files[:] = kept  # its style sheet would be asked for and not be there
    return {"parallel_read_safe": True, "parallel_write_safe": True}
