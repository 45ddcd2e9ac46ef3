"""`halfmask bench`: every fast path against its plain formulation, as ratios that anyone can repeat."""
