"""Users' files, read exactly or refused with a sentence and the line.

Reading order: `table` (columns with their lines), `table_files` and `text_files` (CSV, JSON lines,
parquet), `columns`, `times` and `categories` (what a column means), then `log_files`, `item_files`
and `vectors`.
"""
