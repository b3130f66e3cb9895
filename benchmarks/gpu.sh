#!/usr/bin/env bash
# Correctness and speed on one GPU without internet, in under nine minutes; the table comes last.
#
#   [WHEELS=DIR] [LENGTHS=FILE.csv] [OUT=DIR] [PYTHON=python3] [TINY=1] benchmarks/gpu.sh
#
# Python is the image's own, with its torch and transformers; WHEELS has what it lacks
# (gpu_wheels.sh). Each part has a limit of its own. TINY=1 runs every part on a CPU at sizes that
# say nothing, to test this script. Each engine is measured as often as its part's seconds allow, and
# the table has the medians. In OUT are: log.txt, tests.txt, results.jsonl, profile-*.txt.
set -uo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
OUT=${OUT:-/tmp/uellm-gpu}
SIZES=${TINY:+--tiny --dtype float32}
mkdir -p "$OUT"
rm -f "$OUT"/*.jsonl "$OUT"/*.txt "$OUT"/rates-*.json
export PYTHONPATH=$PWD PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
if [[ -n ${WHEELS:-} ]]; then
    site=$(mktemp -d)
    "$PYTHON" -m pip install -q --no-index --no-deps --no-compile --target "$site" "$WHEELS"/*.whl \
        || exit 1
    export PYTHONPATH=$PWD:$site
fi

part() { # NAME SECONDS COMMAND...
    local name=$1 limit=$2 began=$SECONDS
    shift 2
    echo "== $name" >>"$OUT/log.txt"
    timeout -k 5 "$limit" "$@" >>"$OUT/log.txt" 2>&1
    local code=$?
    echo "$name: $([[ $code == 0 ]] && echo done || echo "FAILED ($code)") in $((SECONDS - began)) s"
}
speed() { # SECONDS MODEL ENGINE REQUESTS...
    # As many rounds as there is time for; what is left over is for torch to be loaded.
    part "${*:2}" "$1" "$PYTHON" -m benchmarks.gpu speed --model "$2" --engine "$3" \
        --requests "${@:4}" --seconds "$(($1 - 15))" --out "$OUT" ${LENGTHS:+--lengths "$LENGTHS"} $SIZES
}
profile() { # SECONDS MODEL
    part "profile $2" "$1" "$PYTHON" -m benchmarks.gpu profile --model "$2" --out "$OUT" $SIZES
}
tests() { # NAME SECONDS ARGUMENT...
    part "$1" "$2" bash -c 'set -o pipefail; "$@" 2>&1 | tee -a "$0"' "$OUT/tests.txt" \
        "$PYTHON" -m pytest -q -p no:cacheprovider "${@:3}"
    tail -n 1 "$OUT/tests.txt"
}

tests kernels 60 tests/unit/test_inflight_cuda.py -k "attention or parts or arrays"
tests engine 90 -m gpu tests/integration/test_gpu.py
speed 60 1b uellm 512 128
speed 90 8b uellm 512 128
profile 30 1b
profile 35 8b
speed 60 1b transformers_cb 128
speed 75 8b transformers_cb 128
# What is left of nine minutes.
[[ $SECONDS -gt 450 ]] || speed 45 1b uellm-neither 512
[[ $SECONDS -gt 450 ]] || speed 45 1b uellm-no-graphs 512
[[ $SECONDS -gt 450 ]] || speed 45 1b uellm-no-lookahead 512
[[ $SECONDS -gt 460 ]] || speed 50 1b transformers_static 128
echo
grep -h -E '^(note|E  |FAILED|ERROR)|Error:' "$OUT/log.txt" | sort | uniq -c | sort -rn | head -n 30
for model in 1b 8b; do
    head -n 24 "$OUT/profile-$model.txt" 2>/dev/null | cut -c1-72,160-260
done
"$PYTHON" -m benchmarks.gpu table --out "$OUT"
