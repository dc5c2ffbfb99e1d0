"""Pages of the book: their parameters, their two paired files, and running them."""

from __future__ import annotations

from cvlib.pages.page import Page, begin
from cvlib.pages.pairing import check, definitions, sync
from cvlib.pages.running import report, run_page

__all__ = ["Page", "begin", "check", "definitions", "report", "run_page", "sync"]
