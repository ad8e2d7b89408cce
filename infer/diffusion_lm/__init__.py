"""Continuous diffusion (Li et al. 2022, "Diffusion-LM"): a text is a row of vectors that Gaussian noise becomes, and each vector is rounded to a word."""
