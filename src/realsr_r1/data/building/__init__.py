"""Making a dataset folder in parts, by many processes and machines."""
