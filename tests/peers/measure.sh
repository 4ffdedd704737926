#!/bin/bash
# Measures direct and every peer that is installed, interleaved, in one sandbox; prints the tables.
#   ./measure.sh [--rounds N] [--secs S] [--settle S] [--peers a,b,c] [--out FILE.json]
# Any peer_<name>.sh beside this file is a peer.
# Needs root (network namespace). Nothing leaves the sandbox's own loopback; it ends by itself.
. "$(dirname "$0")/lib.sh"
[[ ${BENCH_SANDBOX:-} ]] || exec "$HERE/sandbox.sh" "$HERE/measure.sh" "$@"
pki
export CACHE RUN PKI HOST UPSTREAM_PORT STATUS_PORT TOKEN HERE PATH
exec python3 "$HERE/measure.py" "$@"
