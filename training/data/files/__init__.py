"""Reads users' files exactly, or refuses them with a sentence that names the line.

Reading order: `table` (columns with their lines), `table_files` and `text_files` (CSV, JSON lines,
parquet, folders of parts), `columns`, `times`, `categories` and `event_types` (what a column
means), then `log_files`, `item_files` and `vectors`. Knows no splits and no models.
"""
