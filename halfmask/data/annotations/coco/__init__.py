"""COCO json (instances).

Reading order: `read` (from json to class ids), `files` (which json files hold instances), `regions` (polygons and
run-length codes), `write` (from class ids to json).
"""
