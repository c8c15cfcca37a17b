#!/usr/bin/env bash
# torch.onnx.export takes repeat_interleave with a dynamic count, and the graph runs for one row only.
#
# What one would guess: each user's state is repeated for all of the user's beams by
# states.repeat_interleave(beams.shape[1], dim=0). The export (dynamo=True, two dynamic axes) ends
# without a complaint, so the graph does what the module does.
#
# What happens: the graph holds an Expand whose shape is wrong unless it is 1. ONNX Runtime raises
# "invalid expand shape", also for the very shapes of the example that was exported. With one user
# and one beam it runs and is right, so a smoke test with one request passes.
#
# Seen on 2026-11-30 with torch 2.13.0, onnxscript 0.7.2 and onnxruntime 1.32.0: (users, beams) of
# (3, 4), which is the example, (2, 3) and (5, 7) raise; (1, 1) is right. expand + flatten, which is
# the same in torch, is right for all four.
#
# Why it matters: beam search over users in a batch is the place for this line, and the error comes
# when the first batch of two requests does.
#
# Instead: states[:, None].expand(-1, beams, -1).flatten(0, 1); and hold every exported graph
# against torch for several shapes, the example's among them.
#
# Downloads torch; set PIP_EXTRA_INDEX_URL to PyTorch's index of CPU builds for a small one.
# Ends with 0 while this is so, else with 1.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6
"$work/venv/bin/pip" install --quiet --disable-pip-version-check \
    onnx==1.23.2 onnx-ir==1.1.0 onnxscript==0.7.2 onnxruntime==1.32.0

cat > "$work/finding.py" <<'PY'
import logging
import sys
import warnings
from importlib.metadata import version

import numpy as np
import onnxruntime as ort
import torch

warnings.simplefilter("ignore")
logging.getLogger("torch.onnx").setLevel(logging.ERROR)
SHAPES = ((3, 4), (1, 1), (2, 3), (5, 7))


class ByRepeat(torch.nn.Module):
    def forward(self, states, codes):
        return states.repeat_interleave(codes.shape[1], dim=0) + codes.flatten(0, 1)


class ByExpand(torch.nn.Module):
    def forward(self, states, codes):
        each = states[:, None].expand(-1, codes.shape[1], -1).flatten(0, 1)
        return each + codes.flatten(0, 1)


def outcomes(module):
    program = torch.onnx.export(
        module,
        (torch.zeros(3, 8), torch.zeros(3, 4, 8)),
        dynamo=True,
        verbose=False,
        dynamic_shapes=({0: "users"}, {0: "users", 1: "beams"}),
        input_names=["states", "codes"],
        output_names=["sum"],
    )
    options = ort.SessionOptions()
    options.log_severity_level = 4
    graph = program.model_proto.SerializeToString()
    session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    found = []
    for users, beams in SHAPES:
        random = np.random.default_rng(7)
        states = random.random((users, 8), np.float32)
        codes = random.random((users, beams, 8), np.float32)
        expected = module(torch.from_numpy(states), torch.from_numpy(codes)).numpy()
        try:
            [result] = session.run(None, {"states": states, "codes": codes})
        except Exception as error:
            found.append("raises" if "expand shape" in str(error) else "another error")
        else:
            found.append("right" if np.allclose(result, expected) else "wrong")
    return found


print(*(f"{name} {version(name)}" for name in ("torch", "onnxscript", "onnxruntime")), sep=", ")
print(f"{'(users, beams)':20}", *(f"{shape!s:8}" for shape in SHAPES))
by_repeat, by_expand = outcomes(ByRepeat()), outcomes(ByExpand())
print(f"{'repeat_interleave':20}", *(f"{one:8}" for one in by_repeat))
print(f"{'expand and flatten':20}", *(f"{one:8}" for one in by_expand))
as_found = by_repeat == ["raises", "right", "raises", "raises"] and by_expand == ["right"] * 4
print("As found." if as_found else "CHANGED: look at this again.")
sys.exit(not as_found)
PY
"$work/venv/bin/python" "$work/finding.py"
