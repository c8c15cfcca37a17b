"""Model families: one folder each, with the same file names, so a folder is the checklist.

`fit`, `export` and validation talk to a `Family` and know none by name; `model.family` in the
configuration names the folder. To add one, add a folder that exports `FAMILY`.

Reading order: `family` (what a family provides), then `mdgr`.
"""
