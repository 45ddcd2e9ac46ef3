"""The demonstration: still lifes rendered on the spot, and what their unlabeled images are worth."""
