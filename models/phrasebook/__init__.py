"""Approved language: for each trigger a sequence of moves, each with many clauses that people wrote."""

from models.phrasebook.book import Book, Clause

__all__ = ["Book", "Clause"]
