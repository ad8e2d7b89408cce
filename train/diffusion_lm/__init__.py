"""Diffusion-LM learned from scratch, and the classifiers on its noised latents that control it."""
