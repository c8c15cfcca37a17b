"""Offline training: from interactions to a bundle.

Reading order: `pipeline` (the stages in order) and `stages` (when one is done), then the stages:
`interactions` (reads, filters, splits; `repeats` are collapsed), `embeddings`, `codebook`,
`segments`, `model`, `masking`, `objective`, `fit` and its `checkpoint`, `export`, `neighbours`,
`grid`, `precision` (8-bit graphs, which `quantise` makes), `evaluation`, `report`.
`config` holds one section per stage, `preset` fills it. Beside them: `compare` ranks ablations and
the models in `baselines` on the same users, `step_time` measures training, `synthetic` makes a
world with a known answer, `raw_formats` and `fetch` bring public data sets.
"""

import os

# ONNX Runtime's own builds report to Microsoft from 1.29.0 on; it looks here as it is imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
