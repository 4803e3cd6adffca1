"""Tests that take long or use much: many connections, a short soak, the benchmarks."""
