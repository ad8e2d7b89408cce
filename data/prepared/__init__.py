"""Records made rows once, on disk: shards that are whole or not there, mapped by any number of runs and processes."""
