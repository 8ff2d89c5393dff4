"""Neurons of several models brought into one order before a merge (docs/alignment.md)."""
