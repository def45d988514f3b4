"""Photos and what is known of them: where they come from, decoding, sidecars, models that annotate
them.
"""
