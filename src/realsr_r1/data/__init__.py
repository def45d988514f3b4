"""Data: degrading photos, cropping them, pairing them with sidecars, records and DatasetDicts,
chains to train on.
"""
