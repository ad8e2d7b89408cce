"""The commands of continuous diffusion: to train it, to train what controls it, to let it speak."""
