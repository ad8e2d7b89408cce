"""Examples that run as they stand: YAML files, each with its commands, and the rewards that some of them use."""
