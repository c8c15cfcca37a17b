"""Offline training: from interactions to a bundle.

Reading order: `pipeline` (the stages in order), then the stages: `interactions` (reads, filters,
splits), `embeddings`, `codebook`, `model`, `masking`, `objective`, `fit`, `export`, `evaluation`,
`report`. `config` holds one section per stage. Beside them: `synthetic` makes a world with a known
answer, `raw_formats` and `fetch` bring public data sets.
"""
