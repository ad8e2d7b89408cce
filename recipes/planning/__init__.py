"""A run planned before there are weights: the options that say for which machine, and what is printed of it."""
