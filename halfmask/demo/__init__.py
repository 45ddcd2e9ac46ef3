"""The demonstration: render still lifes, train with and without the unlabeled ones, and compare."""
