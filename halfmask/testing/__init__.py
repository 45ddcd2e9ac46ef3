"""Contract checks that third parties can run on their own files."""
