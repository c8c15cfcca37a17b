"""Offline training: from interactions to a bundle.

Rooms, in the order of a run (docs/structure.md has the picture): `data` reads files and splits
them; `codebooks` makes semantic IDs; `families` are the kinds of networks; `fitting` trains them;
`evaluation` ranks test users and chooses the default setting; `bundling` makes 8-bit graphs and
promotes. `baselines` are the models to beat, `comparison` puts systems side by side.

Reading order: `pipeline` (the stages in order) with `stages` (what is done is not done again) and
`checkpoint`, `config` and `preset` (what can be set), then the rooms. `printing` and `errors` are
what people see; `__main__` is the command line.
"""

import os

# ONNX Runtime's own builds report to Microsoft from 1.29.0 on; it looks here as it is imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
