"""Half a load for long, with everything that happens to an agent in its life; prints what grew. soak.sh sets the sandbox up."""
import argparse, glob, json, os, random, signal, subprocess as sp, sys, threading, time

import measure
from agent import Agent, Client, policy, upstream
from measure import TOKEN, cpu, row, rss, tree, wrk

E = os.environ
WORKLOADS, EVERY = 4, 10
REST = 75  # idle connections to upstreams are kept for 50 s


def told(*words):
    print(*words, file=sys.stderr, flush=True)


class Facts:
    """what must not grow"""

    def __init__(self, agent):
        pids = tree(agent.proc.pid)
        count = lambda kind: sum(len(os.listdir(f"/proc/{p}/{kind}")) for p in pids)
        self.rss, self.fds, self.tasks, self.processes = rss(agent.proc.pid)[0], count("fd"), count("task"), len(pids)
        self.entries = entries(f"{agent.dir}/bpf")
        status = agent.status() or {}
        self.connections = sum(w["connections"] for w in status.get("workloads", []))
        self.calls, self.failed, self.draining = (status.get(k, 0) for k in ("calls", "failed", "draining"))


def entries(bpf):
    """entries of each pinned hash map"""
    found = {}
    for pin in sorted(glob.glob(f"{bpf}/**/maps/*", recursive=True)):
        about = json.loads(sp.run(["bpftool", "-j", "map", "show", "pinned", pin], capture_output=True, text=True).stdout or "{}")
        if "hash" in about.get("type", "") or about.get("type") == "lpm_trie":
            out = sp.run(["bpftool", "-j", "map", "dump", "pinned", pin], capture_output=True, text=True).stdout
            found[os.path.basename(pin)] = len(json.loads(out or "[]"))
    return found


class Load:
    """clients that come back after each end, until told to stop"""

    def __init__(self):
        self.stopping, self.threads, self.children, self.counts = threading.Event(), [], set(), {}

    def again(self, name, run):
        def loop():
            while not self.stopping.is_set():
                self.counts[name] = self.counts.get(name, 0) + (run() or 0)
        thread = threading.Thread(target=loop, daemon=True)
        thread.start()
        self.threads.append(thread)

    def tool(self, command, limit):
        """runs it to its end, within the limit; its output"""
        p = sp.Popen(command, stdout=sp.PIPE, stderr=sp.DEVNULL, text=True, start_new_session=True)
        self.children.add(p.pid)
        try:
            return p.communicate(timeout=limit)[0] or ""
        except sp.TimeoutExpired:
            p.kill()
            return p.communicate()[0] or ""
        finally:
            self.children.discard(p.pid)

    def kill_one(self):
        if victims := list(self.children):
            victim = random.choice(victims)
            try:
                os.kill(victim, signal.SIGKILL)
            except ProcessLookupError:
                pass

    def stop(self):
        self.stopping.set()
        for thread in self.threads:
            thread.join(90)


def start_load(agent, rate):
    """a steady rate over HTTP/1.1 and over h2, new connections, bodies, and clients that leave in the middle"""
    load = Load()
    def steady(workload, *how):
        c = Client(agent, workload, int(workload[1:]) * 10)
        def run():
            out = load.tool(c.tool("h2load") + ["-t1", *how, "--duration=20", c.base + "/private"], 40)
            return int((out.split("status codes: ")[-1].split(" 2xx")[0] if " 2xx" in out else "0") or 0)
        load.again(f"{workload} {'h1' if '--h1' in how else 'h2'}", run)
    steady("w0", "--h1", "-c8", f"--rps={max(1, rate // 16)}")
    steady("w1", "-c4", "-m8", f"--rps={max(1, rate // 8)}")
    def fresh():
        c = Client(agent, "w2", 20)
        out = load.tool(c.tool("curl") + ["-s", "--cacert", agent.ca, "-m", "5", "-H", "Connection: close", "-o", "/dev/null", "-w", "%{http_code}\\n",
                                          c.base + "/private?[1-100]"], 30)
        time.sleep(0.5)
        return out.count("200")
    load.again("w2 new connections", fresh)
    def leaves():
        c = Client(agent, "w3", 30)
        out = load.tool(c.tool("curl") + ["-s", "--cacert", agent.ca, "-m", "2", "--limit-rate", "2M", "-o", "/dev/null", "-w", "%{http_code}\\n", c.base + "/10m"], 10)
        return out.count("200")
    load.again("w3 bodies broken off", leaves)
    return load


def happenings(agent, server, load, turn):
    """what happens every ten seconds: a reload with another policy, sometimes a new secret, a killed client, a killed upstream, a replaced worker"""
    agent.write(policy(WORKLOADS + turn % 2, (WORKLOADS + turn % 2) * (200 + turn % 3), 8, (WORKLOADS + turn % 2) * 10))
    agent.reload()
    load.kill_one()
    if turn % 3 == 0:
        agent.rotate(f"{TOKEN}-{turn}")
    if turn % 4 == 1:
        workers = [p for p in tree(server.pid) if p != server.pid]
        if workers:
            os.kill(random.choice(workers), signal.SIGKILL)
    if turn % 18 == 17:
        agent.proc.send_signal(signal.SIGUSR2)


def rest(agent):
    time.sleep(REST)
    return Facts(agent)


def soak(agent, server, minutes):
    rate = wrk(Client(agent), 32, 5, "/private")["rate"] / 2
    told(f"half a load: {rate:.0f} calls a second")
    warm = start_load(agent, int(rate))
    for turn in range(6):
        time.sleep(EVERY)
        happenings(agent, server, warm, turn)
    warm.stop()
    agent.write(policy(WORKLOADS, WORKLOADS * 200, 8, WORKLOADS * 10))
    agent.reload()
    before, c0 = rest(agent), cpu(agent.proc.pid)
    told(f"before: {vars(before)}")
    load, began, turn, peak = start_load(agent, int(rate)), time.time(), 0, 0
    while time.time() - began < minutes * 60:
        time.sleep(max(0, began + (turn + 1) * EVERY - time.time()))
        happenings(agent, server, load, turn)
        peak, turn = max(peak, rss(agent.proc.pid)[0]), turn + 1
        if turn % 6 == 0:
            now = Facts(agent)
            told(f"{turn // 6} min: {now.rss} MiB, {now.fds} descriptors, {now.tasks} tasks, {now.connections} connections, {now.calls} calls, {now.failed} failed")
    load.stop()
    used = cpu(agent.proc.pid) - c0
    agent.write(policy(WORKLOADS, WORKLOADS * 200, 8, WORKLOADS * 10))
    agent.reload()
    after = rest(agent)
    told(f"after: {vars(after)}")
    rows = [(what, getattr(before, key), getattr(after, key)) for what, key in (
        ("MiB of both processes", "rss"), ("descriptors", "fds"), ("tasks (threads)", "tasks"), ("processes", "processes"),
        ("connections", "connections"))]
    rows += [(f"entries of {name}", before.entries.get(name, 0), after.entries.get(name, 0)) for name in sorted({*before.entries, *after.entries})]
    times = lambda every, at: sum(t % every == at for t in range(turn))
    answered = ", ".join(f"{name}: {count:,}" for name, count in sorted(load.counts.items()))
    print(f"{minutes} minutes at {rate:,.0f} calls a second; {turn} reloads, {times(3, 0)} new values of the credential, {times(18, 17)} workers replaced, {times(4, 1)} "
          f"workers of the upstream and {turn} clients killed. Answered 200: {answered}. CPU {used:.0f} s; at most {peak:.0f} MiB.\n")
    print("\n".join([row(["", "before", "after"]), "|---|---|---|", *(row([w, str(b), str(a)]) for w, b, a in rows)]))
    grown = [w for w, b, a in rows if (a > b if w != "MiB of both processes" else a > b * 1.15 + 2)]
    if grown:
        sys.exit("grew: " + ", ".join(grown))


def main():
    a = argparse.ArgumentParser()
    a.add_argument("--minutes", type=int, default=60)
    a = a.parse_args()
    random.seed(1)
    server = upstream()
    agent = None
    try:
        agent = Agent(policy(WORKLOADS, WORKLOADS * 200, 8, WORKLOADS * 10))
        soak(agent, server, a.minutes)
    finally:
        if agent:
            agent.stop()
        server.terminate()
        server.wait()


if __name__ == "__main__":
    main()
