"""Read masks as class ids, never by a guess.

Reading order: `decode` (from a file to training ids), `layers` (the one layer of a file), `forms` (how a file stores
its ids, and whether masks agree), `ids` (the table of ids that results carry).
"""
