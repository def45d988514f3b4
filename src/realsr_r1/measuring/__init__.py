"""How good restored photos are: the metrics, and comparing folders of photos by them."""
