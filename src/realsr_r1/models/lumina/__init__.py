"""Lumina-mGPT's decoder as a policy: layers, attention in packed rows, decoder for rollouts."""
