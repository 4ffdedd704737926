#!/bin/bash
# Measures the agent with many connections, rules, workloads, credentials and hosts; prints the tables.
#   ./scale.sh [--rounds N] [--secs S]
. "$(dirname "$0")/lib.sh"
export BENCH_HOSTS=5000
[[ ${BENCH_SANDBOX:-} ]] || exec "$HERE/sandbox.sh" "$HERE/scale.sh" "$@"
pki
export CACHE RUN PKI HOST UPSTREAM_PORT STATUS_PORT TOKEN HERE PATH
exec python3 "$HERE/scale.py" "$@"
