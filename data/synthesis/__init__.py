"""Instruction data that a model is to make: what it is shown, what it is asked, what its answer says."""
