"""What a training run needs of a machine, by formulas: memory and time by part, and what fits."""
