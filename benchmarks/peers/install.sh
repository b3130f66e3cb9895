#!/usr/bin/env bash
# Makes the environments of peers: install.sh [-d DIR] [NAME...]
# Each lies beside its worker, or in DIR/NAME with a link beside the worker.
# torch is the build that uellm is tested with: `constraints.txt`.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
python=${PYTHON:-python3}
elsewhere=
if [ "${1:-}" = -d ]; then
    elsewhere=$(mkdir -p "$2" && cd "$2" && pwd)
    shift 2
fi
if [ $# -eq 0 ]; then
    cd "$here"
    set -- */requirements.txt
    set -- "${@%/requirements.txt}"
fi
for name; do
    peer=$here/$name
    if [ ! -f "$peer/requirements.txt" ]; then
        echo "$name: needs no environment of its own, or is no peer" >&2
        exit 2
    fi
    if [ -n "$elsewhere" ]; then
        ln -sfn "$elsewhere/$name" "$peer/.venv"
    fi
    echo "$name: installing into $(readlink -f "$peer/.venv" || echo "$peer/.venv")" >&2
    "$python" -m venv "$(readlink -m "$peer/.venv")"
    "$peer/.venv/bin/pip" install --quiet -c "$here/../../constraints.txt" \
        -r "$peer/requirements.txt"
    # What is not needed here, and breaks beside a torch of another build.
    "$peer/.venv/bin/pip" uninstall --quiet --yes torchvision torchaudio torchcodec
    if [ "$name" = vllm ]; then
        # `vllm/worker.py` looks for it there.
        if compgen -G '/usr/lib/*/libtcmalloc_minimal.so.4' >/dev/null; then
            echo "vllm: tcmalloc is there and will be loaded before it, as its guide asks" >&2
        else
            echo "vllm: runs without tcmalloc, which its guide asks for:" \
                "apt-get install libtcmalloc-minimal4" >&2
        fi
    fi
done
