"""Examples that run as they stand: YAML files, each with its command, and the reward function that some of them use."""
