"""What many connections, rules, workloads and hosts cost the agent; prints the tables. scale.sh sets the sandbox up."""
import argparse, subprocess as sp, sys, time

import measure
from agent import Agent, Client, host, policy, upstream
from measure import cpu, med, row, rss, wrk

WORKLOADS, RULES, CREDENTIALS, HOSTS = 500, 10_000, 1_000, 5_000
IDLE, BUSY = 10_000, 2_000
REST = 130  # idle connections to upstreams are kept for 50 s; memory goes back behind the first quiet minute
SETTINGS = "[limits]\nconnections = 20000\ncalls = 8192\nbuffers_mib = 4096\n"


def told(*words):
    print(*words, file=sys.stderr, flush=True)


def steady(agent, count, secs, idle=0):
    """CPU seconds for 10,000 calls over so many busy connections, beside so many idle ones, once all are there: their handshakes
    don't count"""
    held = lambda s: sum(w["connections"] for w in s["workloads"])
    before = agent.status()
    most = 20 + count // 30
    load = sp.Popen(Client(agent).tool("wrk") + ["-t1", f"-c{count}", f"-d{most + secs}s", "--timeout", "10s", Client(agent).base + "/private"],
                    stdout=sp.DEVNULL, stderr=sp.DEVNULL)
    try:
        for _ in range(most * 5):
            if held(agent.status()) >= idle + count:
                break
            time.sleep(0.2)
        else:
            raise RuntimeError(f"{count} connections do not come about: {held(agent.status())}, {idle} of them idle")
        time.sleep(0.5 + count / 250)  # until there are upstream connections for all, too
        c0, s0 = cpu(agent.proc.pid), agent.status()
        time.sleep(secs)
        c1, s1 = cpu(agent.proc.pid), agent.status()
    finally:
        load.kill()
        load.wait()
    if s1["failed"] != before["failed"] or s1["denied"] != before["denied"]:
        raise RuntimeError(f"{count} connections: calls failed: {s1['failed'] - before['failed']}, denied: {s1['denied'] - before['denied']}")
    for _ in range(100):  # the next measurement begins without them
        if held(agent.status()) <= idle:
            break
        time.sleep(0.1)
    return (c1 - c0) / (s1["calls"] - s0["calls"]) * 1e4


def by_rules(rounds, secs):
    """CPU for 10,000 calls over 32 connections, by the number of rules of the one workload"""
    sizes, costs = (10, 100, 1_000, RULES), {}
    for i in range(rounds):
        for size in sizes[i % len(sizes):] + sizes[:i % len(sizes)]:
            agent = Agent(policy(1, size, 10, min(HOSTS, size)), SETTINGS)
            try:
                wrk(Client(agent), 8, 1, "/private")
                costs.setdefault(size, []).append(steady(agent, 32, secs))
                told(f"round {i + 1}: {size} rules: {costs[size][-1]:.3f} s")
            finally:
                agent.stop()
    return table("rules", costs, sizes)


def by_connections(agent, rounds, secs):
    """the same by the number of busy connections"""
    counts, costs = (1, 8, 32, 256, BUSY), {}
    wrk(Client(agent), 8, 1, "/private")
    for i in range(rounds):
        for count in counts[i % len(counts):] + counts[:i % len(counts)]:
            costs.setdefault(count, []).append(steady(agent, count, secs))
            told(f"round {i + 1}: {count} connections: {costs[count][-1]:.3f} s")
    return table("busy connections", costs, counts)


def table(what, costs, keys, base=None):
    """medians, and the median over rounds of the ratio to `base`"""
    base = base or (32 if 32 in costs else keys[0])
    ratio = lambda k: med([a / b for a, b in zip(costs[k], costs[base])])
    return "\n".join([row([what, *(f"{k:,}" for k in keys)]), "|---" * (len(keys) + 1) + "|",
                      row(["CPU s for 10,000 calls", *(f"{med(costs[k]):.3f}" for k in keys)]),
                      row([f"ratio to {base}", *(f"{ratio(k):.2f}" for k in keys)])])


def hold(agent, count):
    """idle connections of `w0`, each with one answer behind it; their memory in KiB each is told"""
    before = rss(agent.proc.pid)[0]
    c = Client(agent)
    p = sp.Popen(c.tool("python3") + [f"{measure.HERE}/clients.py", "idle", str(count), c.base + "/private", agent.ca],
                 stdin=sp.PIPE, stdout=sp.PIPE, text=True)
    said = p.stdout.readline().split()
    if said != ["ready", str(count)]:
        p.kill()
        raise RuntimeError(f"{count} idle connections: {said}")
    time.sleep(2)
    return p, before, rss(agent.proc.pid)[0]


def all_hosts(agent):
    """one call to each host by the workload that may; CPU seconds of both processes for 10,000, and how many failed"""
    before, bad, each = cpu(agent.proc.pid), 0, HOSTS // WORKLOADS
    for w in range(WORKLOADS):
        urls = [f"https://{host(w * each + i)}/private" for i in range(each)]
        outs = [a for _ in urls for a in ("-o", "/dev/null")]
        out = sp.run(agent.inside(f"w{w}") + ["curl", "-s", "-m", "10", "--cacert", agent.ca, "-w", "%{http_code}\n", *outs, *urls],
                     capture_output=True, text=True).stdout
        bad += each - out.count("200")
    return (cpu(agent.proc.pid) - before) / HOSTS * 1e4, bad


def large(rounds, secs):
    """everything at once"""
    agent = Agent(policy(WORKLOADS, RULES, CREDENTIALS, HOSTS), SETTINGS)
    try:
        start = rss(agent.proc.pid)[0]
        told(f"started in {agent.start_s:.1f} s with {start} MiB")
        reload = agent.reload()
        connections = by_connections(agent, rounds, secs)
        first, bad_first = all_hosts(agent)
        second, bad_second = all_hosts(agent)
        hosts = rss(agent.proc.pid)[0]
        time.sleep(REST)
        rested = rss(agent.proc.pid)[0]
        told(f"hosts: {first:.1f} s, then {second:.1f} s; {hosts} MiB, then {rested} MiB; failed {bad_first}, {bad_second}")
        alone, beside = [], []
        for _ in range(rounds):
            alone.append(steady(agent, 32, secs))
        holder, before, after = hold(agent, IDLE)
        try:
            told(f"{IDLE} idle: {before} -> {after} MiB")
            for _ in range(rounds):
                beside.append(steady(agent, 32, secs, IDLE))
            both = steady(agent, BUSY, secs, IDLE)
            peak = rss(agent.proc.pid)[0]
        finally:
            holder.stdin.close()
            holder.wait(60)
        if bad_first or bad_second:
            raise RuntimeError(f"calls failed: {bad_first}, {bad_second}")
        facts = [("start, until ready", f"{agent.start_s:.1f} s"), ("reload", f"{reload:.1f} s"),
                 ("both processes when started", f"{start:.0f} MiB"),
                 (f"first call to each of {HOSTS:,} hosts: leaf minted, upstream dialled; CPU s for 10,000", f"{first:.1f}"),
                 ("second call to each, on a new connection", f"{second:.1f}"),
                 ("both processes after that, with the connections to the hosts still kept", f"{hosts:.0f} MiB"),
                 (f"{REST} s later, without them", f"{rested:.0f} MiB"),
                 (f"{IDLE:,} idle connections with TLS: each", f"{(after - before) * 1024 / IDLE:.1f} KiB"),
                 ("CPU for a call over 32 connections beside them, as a ratio to without", f"{med(beside) / med(alone):.2f}"),
                 (f"the same over {BUSY:,} connections beside them", f"{both / med(alone):.2f}"),
                 (f"both processes with {IDLE:,} idle and {BUSY:,} busy connections", f"{peak:.0f} MiB")]
    finally:
        agent.stop()
    return connections, "\n".join([row(["", ""]), "|---|---|", *(row(f) for f in facts)])


def main():
    a = argparse.ArgumentParser()
    a.add_argument("--rounds", type=int, default=5)
    a.add_argument("--secs", type=int, default=3)
    a = a.parse_args()
    server = upstream()
    try:
        rules = by_rules(a.rounds, a.secs)
        connections, facts = large(a.rounds, a.secs)
    finally:
        server.terminate()
        server.wait()
    print(f"Medians of {a.rounds} rounds of {a.secs} s, HTTP/1.1. One workload, by the number of its rules:\n\n{rules}\n\n"
          f"{WORKLOADS:,} workloads, {RULES:,} rules, {CREDENTIALS:,} credentials, {HOSTS:,} hosts; calls of one workload to one host, by "
          f"the number of its connections:\n\n{connections}\n\nThe same agent:\n\n{facts}")


if __name__ == "__main__":
    main()
