#!/bin/bash
# Half a load for an hour, with reloads, new secrets, killed clients and upstreams, replaced workers; prints what grew.
#   ./soak.sh [--minutes N]
. "$(dirname "$0")/lib.sh"
export BENCH_HOSTS=100
[[ ${BENCH_SANDBOX:-} ]] || exec "$HERE/sandbox.sh" "$HERE/soak.sh" "$@"
pki
export CACHE RUN PKI HOST UPSTREAM_PORT STATUS_PORT TOKEN HERE PATH
exec python3 "$HERE/soak.py" "$@"
