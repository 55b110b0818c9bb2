#!/usr/bin/env bash
# Runs the GPU tests and benchmarks on a machine with a GPU, and writes report.json and report.md.
#
#   tools/gpu_check.sh WHEELS [OUT]
#
# The machine brings Python 3.12 or later with NumPy and any of torch, cupy and jax; it needs no
# network. WHEELS is a folder, which is not committed, of the packages of gpu_wheels.txt:
#
#   pip download --no-deps --only-binary :all: --python-version 3.12 \
#       -c constraints.txt -r tools/gpu_wheels.txt -d WHEELS
#
# One call takes under ten minutes: each part has a limit of its own, and is stopped there. The
# exit status is 0 only if every part came to its end and no test failed.
set -euo pipefail
here="$(cd "$(dirname "$0")/.." && pwd)"
wheels="${1:?name the folder of wheels}"
out="${2:-${OUT:-gpu-report}}"
python="${PYTHON:-python3}"

mkdir -p "$out"
library="$(mktemp -d)"
trap 'rm -rf "$library"' EXIT
for wheel in "$wheels"/*.whl; do
    "$python" -m zipfile -e "$wheel" "$library"
done
export PYTHONPATH="$here:$here/adapters:$here/asv_benches:$library"
export XLA_PYTHON_CLIENT_PREALLOCATE=false
"$python" "$here/tools/gpu_report.py" --out "$out" ${GPU_REPORT_OPTIONS:-}
