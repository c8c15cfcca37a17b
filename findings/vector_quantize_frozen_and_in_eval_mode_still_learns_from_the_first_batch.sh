#!/usr/bin/env bash
# vector-quantize-pytorch: a ResidualVQ in eval mode, told to freeze, learns its first batch by heart.
#
# What one would guess: eval() together with inference_mode() and freeze_codebook=True changes
# nothing. A quantiser that has not been trained answers with arbitrary codes, the same every time.
#
# What happens: with kmeans_init=True the first call fits all the codebooks to the batch that it is
# given, whatever the mode, and keeps them: neither eval(), nor inference_mode(), nor
# freeze_codebook=True is asked about. The semantic ID of an item then depends on which items came
# first. A trained quantiser (its buffer `initted` is saved with the weights) is left alone.
#
# Seen on 2026-11-30 with vector-quantize-pytorch 1.32.0 and torch 2.13.0, 3 levels of 32 codes:
# two quantisers that differ only in the 300 items that they saw first gave the same 300 items no
# semantic ID in common; with 12 items first, the first level held copies of these 12, and 2,000
# other items shared 13 of its 32 codes.
#
# Why it matters: a process whose checkpoint lacks the quantiser (strict=False, another name of a
# level, a path that is empty) starts, warms up and serves. Its codes are good-looking, stable within
# the process and useless, and every replica has others. What freezing was for is what it does not do.
#
# Instead: before serving, demand that `initted` is true on every level. Better: store the codes
# that training assigned, and serve no quantiser at all.
#
# Downloads torch; set PIP_EXTRA_INDEX_URL to PyTorch's index of CPU builds for a small one.
# Ends with 0 while this is so, with 1 once it is not.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6
"$work/venv/bin/pip" install --quiet --disable-pip-version-check vector-quantize-pytorch==1.32.0
export OMP_NUM_THREADS=1 LOGURU_LEVEL=ERROR

cat > "$work/finding.py" <<'PY'
import sys
from importlib.metadata import version

import torch
from vector_quantize_pytorch import ResidualVQ

torch.set_num_threads(1)
items = torch.randn(2_600, 16, generator=torch.Generator().manual_seed(7))
LEVELS, CODES = 3, 32


def quantiser() -> ResidualVQ:
    torch.manual_seed(7)
    return ResidualVQ(dim=16, num_quantizers=LEVELS, codebook_size=CODES, kmeans_init=True).eval()


@torch.inference_mode()
def codes(model: ResidualVQ, batch: torch.Tensor) -> torch.Tensor:
    return model(batch, freeze_codebook=True)[1]


def buffers(model: ResidualVQ) -> list[torch.Tensor]:
    return [tensor.clone() for tensor in model.state_dict().values()]


one, other, few = quantiser(), quantiser(), quantiser()
untouched = buffers(one)
codes(one, items[:300])
fitted = buffers(one)
changed = sum(not torch.equal(a, b) for a, b in zip(untouched, fitted, strict=True))
again = codes(one, items[:300])
later = sum(not torch.equal(a, b) for a, b in zip(fitted, buffers(one), strict=True))
codes(other, items[300:600])
shared = int((again == codes(other, items[:300])).all(dim=1).sum())
codes(few, items[:12])
first_codes = len(codes(few, items[600:])[:, 0].unique())

print(*(f"{name} {version(name)}" for name in ("vector-quantize-pytorch", "torch")), sep=", ")
print("eval(), inference_mode(), freeze_codebook=True. Expected: no buffer changes.")
print(f"  first call: {changed} of {len(untouched)} buffers change; later calls: {later}")
print(f"  300 items in two quantisers that saw other items first: {shared} have the same semantic ID")
print(f"  after a first batch of 12 items: 2,000 others have {first_codes} of {CODES} first codes")
as_found = changed == len(untouched) and later == 0 and shared < 30 and first_codes < 20
print("As found." if as_found else "CHANGED: look at this again.")
sys.exit(not as_found)
PY
"$work/venv/bin/python" "$work/finding.py"
