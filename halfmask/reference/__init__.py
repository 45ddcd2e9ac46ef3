"""Textbook formulations: oracle of the tests and baseline of the benchmark."""
