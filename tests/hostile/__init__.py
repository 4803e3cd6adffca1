"""Each moment, each order, and peers that stall: many cases, which wait."""
