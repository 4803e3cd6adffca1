"""What mozsocket costs, beside what people would use instead: ``python -m benchmarks --help``.

Each measurement is made in a fresh process (``worker``), which runs one scenario (``scenarios``) with one subject
(``subjects``, one module for each). ``runner`` alternates between them, ``report`` makes tables and the plot of what
they gave, and ``targets`` says what mozsocket is meant to reach.
"""
