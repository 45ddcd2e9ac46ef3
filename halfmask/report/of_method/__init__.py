"""Chapters of single methods: a module and a template with the method's name, found by that name.

A module holds `LINK` and `TITLE` of its chapter, and `values(run, images)`: what its template calls `it`. `images` is
`None` where no image could be predicted.
"""
