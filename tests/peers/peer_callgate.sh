#!/bin/bash
# callgate as it is installed: capture, identity, a policy of 1,000 rules, injection, every call recorded in the file.
. "$(dirname "$0")/lib.sh"
PEER=callgate PORT=443 CA=$RUN/callgate/root.pem H2=yes MINT=yes NOTE="capture, identity, 1,000 rules, injection, audit"
WRAP="$CALLGATE exec --config $RUN/callgate/callgate.toml --workload bench --"
version() { "$CALLGATE" --version | sed 's/^callgate //'; }
meta_or_start "$@"
[[ ${BENCH_CGROUP:-} ]] || { echo "$0: run it in sandbox.sh" >&2; exit 1; }
mkdir -p "$DIR"/{policy.d,secrets,state,run,audit,bpf,cgroup}
# What the sandbox has at /sys/fs/cgroup is a part of the tree; the agent looks for the whole.
mountpoint -q "$DIR/cgroup" || mount -t cgroup2 none "$DIR/cgroup"
mountpoint -q "$DIR/bpf" || mount -t bpf bpf "$DIR/bpf"
printf %s "$TOKEN" > "$DIR/secrets/token"; chmod 600 "$DIR/secrets/token"
cat > "$DIR/callgate.toml" <<CONF
cgroup_parent = "$(basename "$BENCH_CGROUP")-w"
bpffs_dir = "$DIR/bpf"
state_dir = "$DIR/state"
runtime_dir = "$DIR/run"
policy_dir = "$DIR/policy.d"
admin_socket = "$DIR/run/admin.sock"
upstream_ca = ["$PKI/up-ca.pem"]
worker_user = "nobody"
[audit]
file = "$DIR/audit/calls.jsonl"
CONF
{
  printf '[[workload]]\nname = "bench"\n'
  for ((i = 0; i < ${RULES:-1000} - 1; i++)); do
    printf '[[workload.allow]]\nname = "r%d"\nhost = "h%d.bench.test"\nmethods = ["GET"]\npaths = ["/v1/r%d/{id}"]\nprivate = true\n' \
      "$i" $((i % 100)) "$i"
  done
  printf '[[workload.allow]]\nname = "api"\nhost = "%s"\nmethods = ["GET"]\npaths = ["/private", "/10m"]\ncredential = "token"\nprivate = true\n' "$HOST"
  printf '[credential.token]\nhosts = ["%s:443"]\nscheme = "bearer"\nsource = { file = "%s" }\n' "$HOST" "$DIR/secrets/token"
} > "$DIR/policy.d/bench.toml"
# The clients trust the agent's own root alone: the others' clients trust one root too, and reading a bundle of 150 costs.
rm -f "$DIR/root.pem"
(
  for i in {1..100}; do [[ -s $DIR/run/trust/ca-bundle.pem ]] && break; sleep 0.05; done
  tac "$DIR/run/trust/ca-bundle.pem" | sed '/BEGIN CERT/q' | tac > "$DIR/root.pem"
) &
exec "$CALLGATE" run --config "$DIR/callgate.toml"
