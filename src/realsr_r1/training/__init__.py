"""The two training stages (`cold_start` and `grpo`, each a folder), and what they share."""
