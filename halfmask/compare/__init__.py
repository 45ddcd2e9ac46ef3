"""Compare methods on one data set: the same network, masks, steps and seeds for all, each beside its control.

forms    which rows a table has, and the recipe of each run: `Form`, `Settings`
cell     train one run in a process of its own, score it on the test images, keep what is known of it
table    reduce the seeds of each row to figures, and write them as Markdown, LaTeX, CSV, JSON and SVG
compare  `compare`: all runs, over processes and devices, with the tables written anew after each
"""
