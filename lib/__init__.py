"""Prune, measure and heal open-weight language models: the library behind the book."""
