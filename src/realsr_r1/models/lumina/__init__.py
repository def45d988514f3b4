"""Lumina-mGPT's decoder as a policy: layers, attention in packed rows, and a decoder for rollouts.
"""
