"""The agent with as much policy as asked for, in the sandbox that sandbox.sh made; for scale.py and soak.py."""
import json, os, subprocess as sp, time

import measure

E = os.environ
RUN, PKI, TOKEN, CALLGATE = E["RUN"], E["PKI"], E["TOKEN"], E["CALLGATE"]


def host(number):
    return f"h{number}.bench.test"


def policy(workloads, rules, credentials, hosts):
    """files of a policy with this many of each, in all; workload `wN` may call /private of its share of the hosts"""
    share = rules // workloads
    own_hosts = max(1, hosts // workloads)
    own_credentials = max(1, credentials // workloads)
    files, text = {}, []
    for w in range(workloads):
        names = [host((w * own_hosts + i) % hosts) for i in range(own_hosts)]
        calls = min(own_hosts, share // 2 or 1)
        text.append(f'[[workload]]\nname = "w{w}"\n')
        for i in range(share):
            text.append(f'[[workload.allow]]\nname = "w{w}r{i}"\nhost = "{names[i % own_hosts]}"\nmethods = ["GET"]\nprivate = true\n')
            if i < calls:
                text.append(f'paths = ["/private", "/10m"]\ncredential = "w{w}c{i % own_credentials}"\n')
            else:
                text.append(f'paths = ["/v1/r{i}/{{id}}"]\n')
        for c in range(own_credentials):
            served = [name for i, name in enumerate(names[:calls]) if i % own_credentials == c] or names[:1]
            at = ", ".join(f'"{name}:443"' for name in served)
            text.append(f'[credential.w{w}c{c}]\nhosts = [{at}]\nscheme = "bearer"\n'
                        f'source = {{ file = "{RUN}/scale/secrets/token" }}\n')
        if w % 50 == 49 or w == workloads - 1:  # one file may have 4 MiB
            files[f"part{len(files)}.toml"], text = "".join(text), []
    return files


class Agent:
    """a running agent; `proc` and `meta` are what measure.py's functions take from a target"""

    def __init__(self, files, settings=""):
        self.dir = f"{RUN}/scale"
        for name in ("policy.d", "secrets", "state", "run", "audit", "bpf", "cgroup"):
            os.makedirs(f"{self.dir}/{name}", exist_ok=True)
        for name, kind in (("cgroup", "cgroup2"), ("bpf", "bpf")):
            if not os.path.ismount(f"{self.dir}/{name}"):
                sp.run(["mount", "-t", kind, "none", f"{self.dir}/{name}"], check=True)
        self.config = f"{self.dir}/callgate.toml"
        with open(self.config, "w") as f:
            f.write(f"""cgroup_parent = "{os.path.basename(E['BENCH_CGROUP'])}-w"
bpffs_dir = "{self.dir}/bpf"
state_dir = "{self.dir}/state"
runtime_dir = "{self.dir}/run"
policy_dir = "{self.dir}/policy.d"
admin_socket = "{self.dir}/run/admin.sock"
upstream_ca = ["{PKI}/up-ca.pem"]
worker_user = "nobody"
{settings}
[audit]
file = "{self.dir}/audit/calls.jsonl"
max_size_mib = 64
keep = 1
""")
        self.rotate(TOKEN)
        self.write(files)
        self.ca, self.hdr = f"{self.dir}/root.pem", []
        self.meta = dict(CA=self.ca, INJECT="yes", TOOLS="")
        began = time.time()
        log = open(f"{self.dir}/agent.out", "w")
        self.proc = sp.Popen([CALLGATE, "run", "--config", self.config], stdout=log, stderr=log, stdin=sp.DEVNULL)
        while (status := self.status()) is None or not status["worker_pid"]:
            if self.proc.poll() is not None or time.time() - began > 60:
                raise RuntimeError(f"the agent does not start, see {log.name}")
            time.sleep(0.02)
        self.start_s = time.time() - began
        bundle = open(f"{self.dir}/run/trust/ca-bundle.pem").read()
        with open(self.ca, "w") as f:  # its own root alone, the last one: to read 150 costs the clients
            f.write("-----BEGIN" + bundle.rsplit("-----BEGIN", 1)[1])

    def write(self, files):
        for name in os.listdir(f"{self.dir}/policy.d"):
            if name not in files:
                os.remove(f"{self.dir}/policy.d/{name}")
        for name, text in files.items():
            with open(f"{self.dir}/policy.d/{name}", "w") as f:
                f.write(text)

    def rotate(self, value):
        new = f"{self.dir}/secrets/token.new"
        with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as f:
            f.write(value)
        os.rename(new, f"{self.dir}/secrets/token")

    def status(self):
        out = sp.run([CALLGATE, "status", "--json", "--config", self.config], capture_output=True, text=True).stdout
        return json.loads(out) if out.startswith("{") and '"worker_pid"' in out else None

    def reload(self):
        began = time.time()
        sp.run([CALLGATE, "reload", "--config", self.config], check=True, stdout=sp.DEVNULL)
        return time.time() - began

    def inside(self, workload):
        """the prefix that makes a command a process of the workload"""
        return [CALLGATE, "exec", "--config", self.config, "--workload", workload, "--"]

    def stop(self):
        self.proc.terminate()
        try:
            self.proc.wait(40)
        except sp.TimeoutExpired:
            self.proc.kill()
            self.proc.wait()
        sp.run([CALLGATE, "release", "--all", "--config", self.config], stdout=sp.DEVNULL, stderr=sp.DEVNULL)


class Client:
    """a load tool's target: a workload's calls to one host, in the shape that measure.py takes"""

    def __init__(self, agent, workload="w0", number=0):
        self.proc, self.hdr, self.meta = agent.proc, [], agent.meta
        self.wrap, self.base = agent.inside(workload), f"https://{host(number)}"

    def tool(self, name):
        return self.wrap + [name]


def upstream():
    """the upstream, once it answers"""
    process = sp.Popen([f"{E['HERE']}/upstream.sh"], stdin=sp.DEVNULL)
    measure.UPSTREAM = process
    for _ in range(100):
        try:
            measure.accepts()
            return process
        except (OSError, IndexError):
            time.sleep(0.1)
    process.terminate()
    raise RuntimeError("the upstream does not answer")
