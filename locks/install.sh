#!/usr/bin/env bash
# Make an environment that holds exactly what the lock says, and this checkout, editable.
#
#   bash locks/install.sh PYTHON VENV
#
# TORCH_INDEX (default: PyTorch's CPU index) is asked only where pip's own indexes and local wheels
# have no CPU build of torch. An existing VENV is filled, not replaced.
set -euo pipefail
cd "$(dirname "$0")/.."

python=$1
venv=$2
lock=locks/cpu.txt
torch_index=${TORCH_INDEX:-https://download.pytorch.org/whl/cpu}
# Byte code is written when a module is first imported: most of these files never are.
options=(-qq --disable-pip-version-check --no-input --no-compile)

say() { printf '%s\n' "$*" >&2; }

if [ ! -x "$venv/bin/python" ]; then
  "$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || {
    say "expertmix runs on Python 3.11 to 3.13; $python is $("$python" -V 2>&1)." \
      "Name another one: make PYTHON=python3.12 …"
    exit 1
  }
  say "Creating $venv with $("$python" -V 2>&1)"
  "$python" -m venv "$venv" || {
    rm -rf "$venv"
    say "This Python cannot create environments; on Debian and Ubuntu: apt install python3-venv"
    exit 1
  }
fi
pip() { "$venv/bin/python" -m pip "$@"; }

# torch first and alone. vLLM's CPU build is linked against torch's CPU build, which PyPI does not
# carry. PyPI's own torch serves too, as the last resort: it needs gigabytes of CUDA libraries.
torch=$(grep '^torch==' "$lock")
installed=$("$venv/bin/python" -c \
  'import importlib.metadata as m; print("torch==" + m.version("torch"))' 2>/dev/null || true)

torch_from() { # further options of pip; false if there is none, the end if anything else is wrong
  local log
  log=$(pip install "${options[@]}" --no-deps "$@" "$torch" 2>&1) && return
  grep -q 'No matching distribution' <<<"$log" || { say "$log"; exit 1; }
  return 1
}

if [ "$installed" != "$torch" ] && [ "$installed" != "${torch%+cpu}" ]; then
  say "Installing $torch"
  torch_from || torch_from --retries 1 --index-url "$torch_index" || {
    say "No CPU build of torch in pip's indexes nor at $torch_index:" \
      "taking PyPI's CUDA build (several GB; it works without a GPU)"
    pip install "${options[@]}" "${torch%+cpu}"
  }
fi

say "Installing the rest of $lock: 250 packages, a few minutes"
grep -v '^torch==' "$lock" | pip install "${options[@]}" --no-deps --requirement /dev/stdin
pip install "${options[@]}" --no-deps --no-build-isolation --editable .
