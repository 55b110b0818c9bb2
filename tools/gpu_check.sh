#!/usr/bin/env bash
# Runs the GPU tests and benchmarks on a machine with a GPU, and writes report.json and report.md.
#
#   tools/gpu_check.sh WHEELS [OUT]
#
# The machine brings Python 3.12 or later with NumPy and any of torch, cupy and jax; it needs no
# network. WHEELS is a folder of wheels of pure Python that it lacks, which is not committed:
#
#   pip download --no-deps --only-binary :all: -c constraints.txt -d WHEELS \
#       array-api-compat array-api-strict pytest pluggy iniconfig packaging pygments
#
# One call takes under ten minutes: each part has a limit of its own.
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
export PYTHONPATH="$here:$here/adapters:$here/asv_benches:$here/tests:$library"
export XLA_PYTHON_CLIENT_PREALLOCATE=false
exec "$python" "$here/tools/gpu_report.py" --out "$out" ${GPU_REPORT_OPTIONS:-}
