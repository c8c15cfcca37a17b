#!/usr/bin/env bash
# transformers: a constrained beam search that has too few answers repeats the ones it has.
#
# What one would guess: generate() with prefix_allowed_tokens_fn (a trie of the catalogue) and
# num_return_sequences=10 returns the three sequences that the trie allows, or raises, or fills the
# rest with padding. Beams are different from each other; that is what a beam search is.
#
# What happens: ten complete, valid sequences come back: each of the three, then copies of them whose
# scores are near -2.5e8. All beams but one begin at -1e9, a stand-in for minus infinity, and are
# extended like any other; with too few real continuations they are never displaced. The length
# penalty then divides -1e9 by four tokens. Nothing warns, and every sequence passes the trie.
#
# Seen on 2026-11-30 with transformers 5.24.0 and torch 2.13.0: 10 sequences asked for, 3 allowed; 10
# returned, 3 different ones, 7 of the scores at -250,000,000.
#
# Why it matters: this is the usual way to generate semantic IDs with an encoder-decoder. A catalogue
# filter, or seen items left out of the trie, makes the allowed set small for just some users, who
# are then shown the same item several times; a metric that counts hits by rank counts one twice.
#
# Instead: drop sequences with scores below -1e8 before anything else, and remove duplicates.
#
# Downloads torch; set PIP_EXTRA_INDEX_URL to PyTorch's index of CPU builds for a small one.
# Ends with 0 while this is so, with 1 once it is not.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6
"$work/venv/bin/pip" install --quiet --disable-pip-version-check transformers==5.24.0
export OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 HF_HOME="$work/hub"

cat > "$work/finding.py" <<'PY'
import sys
from importlib.metadata import version

import torch
from transformers import T5Config, T5ForConditionalGeneration

PAD, END, WANTED = 0, 1, 10
ALLOWED = [(5, 15, 25), (5, 16, 26), (7, 15, 27)]  # semantic IDs: three codes, each level its own tokens

following: dict[tuple[int, ...], list[int]] = {}
for sid in ALLOWED:
    for length, token in enumerate((*sid, END)):
        following.setdefault(sid[:length], []).append(token)


def allowed(_batch: int, generated: torch.Tensor) -> list[int]:
    return following.get(tuple(generated.tolist()[1:]), [PAD])  # [0] is the decoder's start token


torch.manual_seed(7)
model = T5ForConditionalGeneration(
    T5Config(
        vocab_size=40, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2,
        decoder_start_token_id=PAD, pad_token_id=PAD, eos_token_id=END,
    )
).eval()
answer = model.generate(
    input_ids=torch.tensor([[3, 4, 5, END]]),
    num_beams=WANTED,
    num_return_sequences=WANTED,
    max_new_tokens=4,
    prefix_allowed_tokens_fn=allowed,
    return_dict_in_generate=True,
    output_scores=True,
)
sids = [tuple(row[1:4]) for row in answer.sequences.tolist()]
scores = answer.sequences_scores.tolist()

print(*(f"{name} {version(name)}" for name in ("transformers", "torch")), sep=", ")
print(f"{WANTED} sequences asked for, {len(ALLOWED)} allowed. Expected: {len(ALLOWED)} sequences, or an error.")
for sid, score in zip(sids, scores, strict=True):
    print(f"  {sid} {score:,.2f}")
as_found = (
    len(sids) == WANTED
    and sorted(sids[:3]) == ALLOWED
    and set(sids[3:]) <= set(ALLOWED)
    and min(scores[:3]) > -100
    and max(scores[3:]) < -1e8
)
print("As found." if as_found else "CHANGED: look at this again.")
sys.exit(not as_found)
PY
"$work/venv/bin/python" "$work/finding.py"
