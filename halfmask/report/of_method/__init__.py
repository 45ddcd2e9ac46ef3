"""Chapters of single methods: a module and a template with the method's name, found by that name.

A module holds `LINK` and `TITLE` of its chapter, and `values(run, images)`, which returns the variable `it` of its
template. `images` is `None` where no image could be predicted.
"""
