"""Lumina-mGPT's decoder as a policy: its layers, its way through packed rows, and its step-by-step
decoder for rollouts.
"""
