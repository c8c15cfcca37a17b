#!/usr/bin/env bash
# typer takes the end of a cut-off file for Ctrl-C: "Aborted.", and not a word about the file.
#
# What one would guess: a command that reads a file which a broken download cut off ends with a
# traceback that names the line, as it does for any other error of the file.
#
# What happens: gzip, pickle and numpy raise EOFError when a file ends too early. typer (as click,
# whose code it took over) catches EOFError from anywhere in a command, because a prompt raises it
# when there is no input. It prints "Aborted.", and ends with 1: the same words and the same status
# as for Ctrl-C, without traceback, file or line. The whole file is read as it should be, and an
# error of another type in the same place (here a UnicodeDecodeError) has its traceback.
#
# Seen on 2026-11-30 with typer 0.29.2 and Python 3.11.7 (numpy 2.4.6): interactions.csv.gz and
# histories.pkl, both without their end, and an empty embeddings.npy all end in "Aborted.".
#
# Why it matters: tools that train recommenders are such commands, and they read large compressed
# files that somebody copied. In a log of a job at night "Aborted." says that a person or the
# scheduler stopped it. Nobody looks at the file, and the job is started again.
#
# Instead: catch EOFError where files are read and raise an error that names the file. Or call
# app(standalone_mode=False), which raises typer.Abort: its __cause__ is the EOFError, with its line.
#
# Ends with 0 while this is so, with 1 once it is not.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check typer==0.29.2 numpy==2.4.6

cat > "$work/command.py" <<'PY'
import gzip
import pickle
from pathlib import Path

import numpy as np
import typer

app = typer.Typer()


@app.command()
def count(file: Path) -> None:
    if file.suffix == ".pkl":
        found = pickle.loads(file.read_bytes())
    elif file.suffix == ".npy":
        found = np.load(file)
    else:
        with gzip.open(file, "rt", encoding="utf-8") as lines:
            found = list(lines)
    print(len(found), "rows")


app()
PY

cat > "$work/finding.py" <<'PY'
import gzip
import io
import pickle
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np

folder = Path(sys.argv[1])
lines = "".join(f"user-{n},item-{n % 97},{1_700_000_000 + n}\n" for n in range(5000)).encode()
table = gzip.compress(lines)
histories = pickle.dumps({f"user-{n}": [f"item-{n % 97}"] for n in range(5000)}, protocol=2)
buffer = io.BytesIO()
np.save(buffer, np.zeros((5000, 8), np.float32))
CASES = {  # what the file holds, and whether its end is missing
    "interactions.csv.gz, whole": (table, False),
    "histories.pkl, whole": (histories, False),
    "embeddings.npy, whole": (buffer.getvalue(), False),
    "interactions.csv.gz, cut off": (table[: len(table) // 2], True),
    "histories.pkl, empty": (b"", True),
    "embeddings.npy, empty": (b"", True),
    "interactions.csv.gz, not UTF-8": (gzip.compress(b"caf\xe9,1,2\n"), None),
}


def outcome(content: bytes, name: str) -> str:
    file = folder / name
    file.write_bytes(content)
    command = [sys.executable, str(folder / "command.py"), str(file)]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode == 0:
        return done.stdout.strip()
    said = done.stderr.strip()
    if said == "Aborted.":
        return "Aborted. (status 1)" if done.returncode == 1 else f"Aborted. ({done.returncode})"
    return "names the error" if "Error" in said else said


print(*(f"{name} {version(name)}" for name in ("typer", "numpy")), sep=", ")
print("A command reads a file. Expected: rows, or an error that says what is wrong with the file.")
as_found = True
for case, (content, is_cut) in CASES.items():
    seen = outcome(content, case.split(",")[0])
    wanted = {True: "Aborted. (status 1)", False: "5000 rows", None: "names the error"}[is_cut]
    as_found = as_found and seen == wanted
    print(f"  {case:32} {seen}")
print("As found." if as_found else "CHANGED: look at this again.")
sys.exit(not as_found)
PY
"$work/venv/bin/python" "$work/finding.py" "$work"
