"""What takes long, or holds much: many connections, hours in short, the benchmarks."""
