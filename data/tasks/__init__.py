"""Records of several tasks of one input: their layouts, how results are written and read back, triplets that share an input."""
