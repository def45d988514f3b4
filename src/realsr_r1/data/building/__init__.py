"""Building a dataset folder in parts, in many processes and on many machines."""
