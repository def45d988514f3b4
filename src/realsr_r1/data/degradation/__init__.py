"""Real-ESRGAN's degradation with true labels, and crops of photos to apply it to."""
