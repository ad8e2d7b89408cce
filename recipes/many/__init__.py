"""Many prompts answered by many workers: in shards, each written once, joined in the prompts' order; Ray has the workers."""
