"""The two training stages: what they share, and a folder each (`cold_start`, `grpo`)."""
