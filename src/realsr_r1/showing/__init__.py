"""The demo: a page on which a photo is restored while one watches."""
