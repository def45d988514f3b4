"""Records to token ids: chains to train the cold start on, and shards of their tokens."""
