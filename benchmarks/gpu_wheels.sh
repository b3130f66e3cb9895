#!/usr/bin/env bash
# Wheels for Python 3.12 on Linux x86-64 of what uellm needs and a GPU image with torch and
# transformers may lack: benchmarks/gpu_wheels.sh DIR
set -euo pipefail
platforms=()
for tag in manylinux_2_{39,35,34,31,28,27,24,17} manylinux2014 manylinux1; do
    platforms+=(--platform "${tag}_x86_64")
done
"${PYTHON:-python3}" -m pip download -q --only-binary=:all: --python-version 3.12 \
    --implementation cp "${platforms[@]}" -d "${1:?where to}" "${@:2}" \
    'msgspec>=0.19' 'llguidance>=1.8' 'pydantic>=2.9'
