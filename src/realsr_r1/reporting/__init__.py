"""The parts of `realsr-r1 report`: reading a run, drawing curves and strips, writing the page."""
