"""Textbook forms of the fast operations: what tests and benchmarks compare them with; `forms` exchanges them all."""
