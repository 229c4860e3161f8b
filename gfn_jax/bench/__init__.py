"""PosteriorBench: targets that can be listed whole, and how far methods are from them."""
