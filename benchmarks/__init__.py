"""Benchmarks that compare mozsocket with its alternatives: ``python -m benchmarks --help``.

Each measurement is made in a fresh process (``worker``), which runs one scenario (``scenarios``) with one subject
(``subjects``, a module for each). ``runner`` measures them in turn, ``results`` holds the figures, ``report`` makes
tables and a plot of them, and ``targets`` defines the ratios that mozsocket must reach.
"""
