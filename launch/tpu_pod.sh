#!/bin/sh
# One run on all hosts of a Cloud TPU slice. Not run here: written from the tools' documentation.
#
#   launch/tpu_pod.sh NAME ZONE WORKDIR [--config=... --config.KEY=VALUE ...]
#
# The slice exists already; WORKDIR is a folder that every host sees at the same path (Filestore, or a bucket
# mounted by gcsfuse): all processes write one checkpoint together. Stopped or preempted, the same command goes
# on from the newest checkpoint.
set -eu

if [ "$#" -lt 3 ]; then
    sed -n 's/^#   /usage: /p' "$0" >&2
    exit 2
fi
NAME=$1 ZONE=$2 WORKDIR=$3
shift 3
[ "$#" -gt 0 ] || set -- --config=configs/arith.py

on_all_hosts() {
    gcloud compute tpus tpu-vm ssh "$NAME" --zone="$ZONE" --worker=all --command="$1"
}

# What git tracks, at HEAD, to every host.
ARCHIVE=$(mktemp)
trap 'rm -f "$ARCHIVE"' EXIT
git archive --format=tar.gz --output="$ARCHIVE" HEAD
gcloud compute tpus tpu-vm scp "$ARCHIVE" "$NAME:gfn_jax.tar.gz" --zone="$ZONE" --worker=all

on_all_hosts 'set -eu
mkdir -p gfn_jax && tar -xzf gfn_jax.tar.gz -C gfn_jax && cd gfn_jax
# Python 3.11 at least: the newest that is there or, where there is none (Ubuntu 22.04, of most slices, has 3.10), one
# that uv brings.
PYTHON=$(for name in python3.13 python3.12 python3.11 python3; do command -v $name || true; done | head -n 1)
if [ ! -x .venv/bin/python ]; then
    if "$PYTHON" -c "import ensurepip, sys; sys.exit(sys.version_info < (3, 11))" 2>/dev/null; then
        "$PYTHON" -m venv .venv
    else
        "$PYTHON" -m pip install --quiet --user uv
        "$PYTHON" -m uv venv --quiet --seed --python 3.12 .venv
    fi
fi
.venv/bin/pip install --quiet -r requirements.txt "jax[tpu]"
.venv/bin/pip install --quiet --no-deps --editable .'

# Each argument is quoted again for the remote shell. --distributed: on a slice jax finds the hosts by itself,
# from the metadata server, which the launcher does not ask unless told to.
ARGUMENTS=
for argument in "$@" "--workdir=$WORKDIR"; do
    ARGUMENTS="$ARGUMENTS '$(printf '%s' "$argument" | sed "s/'/'\\\\''/g")'"
done
on_all_hosts "cd gfn_jax && .venv/bin/python -m gfn_jax.launch --distributed $ARGUMENTS"
