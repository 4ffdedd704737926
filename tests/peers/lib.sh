# Shared by every script here (source it). Everything lives below $CACHE and $RUN, which `cargo xtask bench peers` sets.
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
PATH=$PATH:/usr/sbin:/sbin
CACHE=${BENCH_CACHE:?} # installed peers
RUN=${BENCH_RUN:?}     # configs, keys, logs
PKI=$RUN/pki
WWW=$RUN/www
HOST=api.bench.test                                               # name the clients ask for
UPSTREAM_PORT=${UPSTREAM_PORT:-443}
STATUS_PORT=${STATUS_PORT:-8099}                                  # upstream's stub_status, plain HTTP
CLIENT_GID=${CLIENT_GID:-4242}                                    # gid whose connections NAT redirects
TOKEN=s3cret
mkdir -p "$RUN"

# Test PKI, EC P-256 throughout.
#  up-ca: what the proxies must verify the upstream against.
#  ca:    the local interception CA (mints leaves in squid; signs the static leaf of
#         nginx, HAProxy, Envoy).
pki() {
  [[ -s $PKI/made && -z $(find "$PKI/made" -mtime +20) ]] && return
  rm -rf "$PKI" "$RUN/squid/ssl_db"; mkdir -p "$PKI"; chmod 755 "$RUN" "$PKI"
  (
    cd "$PKI" || exit 1
    eckey() { openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out "$1" 2>/dev/null; }
    mkca() {
      eckey "$1.key"
      openssl req -x509 -new -key "$1.key" -sha256 -days 30 -subj "$2" \
        -addext basicConstraints=critical,CA:TRUE \
        -addext keyUsage=critical,digitalSignature,keyCertSign,cRLSign -out "$1.pem"
    }
    leaf() { # name, issuing CA
      eckey "$1.key"
      openssl req -new -key "$1.key" -subj "/CN=$HOST" -out "$1.csr"
      openssl x509 -req -in "$1.csr" -CA "$2.pem" -CAkey "$2.key" -CAcreateserial -sha256 -days 30 \
        -extfile <(printf 'subjectAltName=DNS:%s,DNS:*.bench.test,DNS:localhost,IP:127.0.0.1\nextendedKeyUsage=serverAuth\nbasicConstraints=CA:FALSE\n' "$HOST") \
        -out "$1.pem" 2>/dev/null
      cat "$1.pem" "$1.key" > "$1.both.pem"
    }
    mkca up-ca "/O=proxy bench/CN=proxy bench upstream CA"
    mkca ca "/O=proxy bench/CN=proxy bench interception CA"
    leaf upstream up-ca
    leaf static ca
    cat ca.pem ca.key > ca.both.pem
    chmod 644 ./*.pem ./*.key
    echo ok > made
  )
}

# Each peer_<name>.sh sets these, then calls `meta_or_start "$@"`, then execs the peer.
#  PORT  the port the load tool connects to     NAT   yes: clients (gid $CLIENT_GID) are
#  LISTEN the port the peer listens on                redirected PORT -> LISTEN by netfilter
#  CA    what the client verifies against       INJECT yes: the peer adds Authorization
#  H2    yes: HTTP/2 to the client              MINT  yes: leaf minted at run time from a CA
#  WRAP  command prefix for the load tool (how a client becomes a managed process)
#  TOOLS prefix of the load tools' file names (for peers that choose processes by name)
meta_or_start() {
  if [[ ${1:-start} == meta ]]; then
    printf '%s=%s\n' PORT "$PORT" LISTEN "${LISTEN:-$PORT}" NAT "${NAT:-no}" CA "$CA" INJECT "${INJECT:-yes}" \
      H2 "${H2:-no}" MINT "${MINT:-no}" WRAP "${WRAP:-}" TOOLS "${TOOLS:-}" NOTE "${NOTE:-}" VERSION "$(version 2>/dev/null | head -1)"
    exit 0
  fi
  pki
  DIR=$RUN/$PEER; mkdir -p "$DIR"; chmod 755 "$RUN" "$DIR"
}
