"""Drives the measurements for measure.sh (which sets the environment and the sandbox)."""
import argparse, glob, json, os, re, shlex, shutil, signal, socket, statistics as st, subprocess as sp, sys, time

E = os.environ
HERE, RUN, PKI, HOST, TOKEN = E["HERE"], E["RUN"], E["PKI"], E["HOST"], E["TOKEN"]
UP, STATUS, TICK = int(E["UPSTREAM_PORT"]), int(E["STATUS_PORT"]), os.sysconf("SC_CLK_TCK")
AUTH = ["-H", f"Authorization: Bearer {TOKEN}"]
CONNS = 32


def tree(root):
    """pids of root and its descendants"""
    kids = {}
    for p in glob.glob("/proc/[0-9]*/stat"):
        try:
            s = open(p).read()
        except OSError:
            continue
        kids.setdefault(int(s.rsplit(")", 1)[1].split()[1]), []).append(int(p.split("/")[2]))
    out, todo = [], [root]
    while todo:
        p = todo.pop()
        out.append(p)
        todo += kids.get(p, [])
    return out


def cpu(root):
    """CPU seconds of the process tree: utime+stime of the living, plus cutime+cstime of reaped children"""
    t = 0
    for p in tree(root):
        try:
            f = open(f"/proc/{p}/stat").read().rsplit(")", 1)[1].split()
        except OSError:
            continue
        t += sum(map(int, f[11:15]))
    return t / TICK


def rss(root):
    """(sum of VmRSS, sum of Pss) of the process tree in MiB"""
    r = p_ = 0
    for p in tree(root):
        try:
            r += int(re.search(r"VmRSS:\s+(\d+)", open(f"/proc/{p}/status").read())[1])
            p_ += int(re.search(r"Pss:\s+(\d+)", open(f"/proc/{p}/smaps_rollup").read())[1])
        except (OSError, TypeError):
            continue
    return round(r / 1024, 1), round(p_ / 1024, 1)


def accepts():
    """connections that the upstream has accepted on its TLS port so far"""
    with socket.create_connection(("127.0.0.1", STATUS), 5) as c:
        c.sendall(b"GET /status HTTP/1.0\r\n\r\n")
        d = b""
        while b := c.recv(4096):
            d += b
    accepts.own += 1
    return int(d.split(b"requests\n")[1].split()[0]) - accepts.own


accepts.own = 0


def busy(secs=1.0):
    """the share of all CPU time that somebody used over this many seconds, while nothing of ours runs"""
    def read():
        v = list(map(int, open("/proc/stat").readline().split()[1:9]))
        return sum(v), v[3] + v[4]
    a, i = read()
    time.sleep(secs)
    b, j = read()
    return 1 - (j - i) / max(1, b - a)


def settle(limit):
    """waits, that long at most, for others on this machine to leave it four fifths idle; says how busy they kept it"""
    t0 = time.time()
    while (x := busy()) > 0.2 and time.time() - t0 < limit:
        pass
    return x


def sh(cmd, limit):
    """runs a load tool; it gets its own limit, and is killed by pid past it"""
    p = sp.Popen(cmd, stdout=sp.PIPE, stderr=sp.DEVNULL, text=True)
    try:
        return p.communicate(timeout=limit)[0]
    except sp.TimeoutExpired:
        p.kill()
        return p.communicate()[0] or ""


def us(x):
    n, u = re.match(r"([\d.]+)(us|ms|s|m)$", x).groups()
    return float(n) * {"us": 1, "ms": 1e3, "s": 1e6, "m": 6e7}[u]


class Target:
    def __init__(self, name):
        self.name, self.proc = name, None
        self.meta = dict(PORT=str(UP), LISTEN=str(UP), NAT="no", CA=f"{PKI}/up-ca.pem", INJECT="no", H2="yes", MINT="no",
                         WRAP="", TOOLS="", NOTE="no proxy", VERSION="")
        if name != "direct":
            out = sp.run([f"{HERE}/peer_{name}.sh", "meta"], capture_output=True, text=True, check=True).stdout
            self.meta.update(l.split("=", 1) for l in out.splitlines() if "=" in l)
        m = self.meta
        self.wrap, self.base = shlex.split(m["WRAP"]), f"https://{HOST}:{m['PORT']}".removesuffix(":443")
        self.hdr = [] if m["INJECT"] == "yes" else AUTH

    def tool(self, name):
        """the load tool's command, through this target's prefix and, if it picks processes by name, under its own name"""
        if self.meta["TOOLS"]:
            os.makedirs(f"{RUN}/tools", exist_ok=True)
            own = f"{RUN}/tools/{self.meta['TOOLS']}{name}"
            if not os.path.exists(own):
                shutil.copy(shutil.which(name), own)
            name = own
        return self.wrap + [name]

    def nat(self, op):
        if self.meta["NAT"] == "yes":
            sp.run(["iptables", "-w", "-t", "nat", op, "OUTPUT", "-p", "tcp", "-d", "127.0.0.1", "--dport", self.meta["PORT"],
                    "-m", "owner", "--gid-owner", E.get("CLIENT_GID", "4242"), "-j", "REDIRECT", "--to-ports", self.meta["LISTEN"]],
                   check=True)

    def start(self):
        t0 = time.time()
        if self.name != "direct":
            log = open(f"{RUN}/{self.name}.out", "w")
            self.proc = sp.Popen([f"{HERE}/peer_{self.name}.sh"], stdout=log, stderr=log, stdin=sp.DEVNULL)
            self.nat("-A")
        while True:
            # verified against the CA that this target's clients trust, and the upstream's 401 avoided: it works as asked
            r = sp.run(self.tool("curl") + ["-s", "-m", "4", "-o", "/dev/null", "-w", "%{http_code}", "--cacert", self.meta["CA"]]
                       + self.hdr + [self.base + "/private"], capture_output=True, text=True).stdout
            if r == "200":
                break
            if time.time() - t0 > 25 or (self.proc and self.proc.poll() is not None):
                raise RuntimeError(f"{self.name}: not ready (last status {r}), see {RUN}/{self.name}.out")
            time.sleep(0.1)
        return time.time() - t0

    def stop(self):
        if not self.proc:
            return
        self.nat("-D")
        pids = tree(self.proc.pid)
        self.proc.terminate()
        try:
            self.proc.wait(5)
        except sp.TimeoutExpired:
            pass
        for p in pids:  # what did not go with its parent, each by its own pid
            try:
                if p != self.proc.pid or self.proc.poll() is None:
                    os.kill(p, signal.SIGKILL)
            except ProcessLookupError:
                pass
        self.proc.wait()
        self.proc = None


def wrk(t, conns, secs, path, extra=()):
    o = sh(t.tool("wrk") + ["-t1", f"-c{conns}", f"-d{secs}s", "--timeout", "5s", "--latency", *t.hdr, *extra, t.base + path], secs + 4)
    m = re.search(r"(\d+) requests in ([\d.]+)(m?)s", o)
    if not m:
        return dict(error="no result")
    n, el = int(m[1]), float(m[2])
    bad = sum(map(int, re.findall(r"Non-2xx or 3xx responses: (\d+)", o)))
    se = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", o)
    tr = re.search(r"Transfer/sec:\s+([\d.]+)([KMG]?)B", o)
    lat = {p: us(v) for p, v in re.findall(r"^\s+(50|99)%\s+(\S+)$", o, re.M)}
    return dict(n=n, rate=n / el, p50=lat.get("50"), p99=lat.get("99"), bad=bad,
                sock=sum(map(int, se.groups())) if se else 0,
                MBps=float(tr[1]) * {"": 1, "K": 2**10, "M": 2**20, "G": 2**30}[tr[2]] / 1e6 if tr else None)


def h2(t, secs):
    o = sh(t.tool("h2load") + ["-t1", "-c4", "-m8", f"--duration={secs}", *t.hdr, t.base + "/private"], secs + 4)
    m = re.search(r"finished in ([\d.]+)s, ([\d.]+) req/s", o)
    c = re.search(r"status codes: (\d+) 2xx", o)
    return dict(n=int(c[1]), rate=int(c[1]) / float(m[1]), bad=sum(map(int, re.search(r"2xx, (\d+) 3xx, (\d+) 4xx, (\d+) 5xx", o).groups()))) \
        if m and c and int(c[1]) else dict(error="no result")


def fresh(t, secs):
    """a full TLS handshake (no resumption) and a verified certificate for every request, 8 at a time"""
    n = bad = 0
    t0 = time.time()
    while time.time() - t0 < secs:
        o = sh(t.tool("curl") + ["-Z", "--parallel-max", "8", "-s", "--http1.1", "--no-sessionid", "--cacert", t.meta["CA"], "-m", "4",
                         "-H", "Connection: close", *t.hdr, "-o", "/dev/null", "-w", "%{http_code}\n", t.base + "/private?[1-150]"], 6)
        n += o.count("200")
        bad += 150 - o.count("200")
    return dict(n=n, rate=n / (time.time() - t0), bad=bad)


def h2big(t, secs):
    """10 MB bodies over h2, one connection, one stream at a time"""
    o = sh(t.tool("h2load") + ["-t1", "-c1", "-m1", f"--duration={secs}", *t.hdr, t.base + "/10m"], secs + 4)
    c = re.search(r"status codes: (\d+) 2xx", o)
    m = re.search(r"finished in ([\d.]+)s", o)
    return dict(n=int(c[1]), rate=int(c[1]) / float(m[1]), bad=0) if c and m and int(c[1]) else dict(error="no result")


def kept(t, kind, count, path):
    """what connections that do nothing cost, in KiB each: `idle` ones had an answer, `stalled` ones read nothing"""
    time.sleep(1.5)  # as below: an agent that unmaps what does not run has done so by then
    before = rss(t.proc.pid)[0]
    p = sp.Popen(t.tool("python3") + [f"{HERE}/clients.py", kind, str(count), t.base + path, t.meta["CA"]]
                 + ([] if t.meta["INJECT"] == "yes" else [AUTH[1]]), stdin=sp.PIPE, stdout=sp.PIPE, text=True)
    try:
        if p.stdout.readline().split() != ["ready", str(count)]:
            return dict(error="no result")
        time.sleep(1.5)
        after = rss(t.proc.pid)[0]
    finally:
        p.stdin.close()
        p.wait(10)
    return dict(n=count, rss=after, each=(after - before) * 1024 / count)


def costed(t, f, *a):
    c0, u0, k0 = (cpu(t.proc.pid) if t.proc else 0), cpu(UPSTREAM.pid), accepts()
    r = f(t, *a)
    time.sleep(0.05)
    if r.get("n"):
        r["cpu10k"] = ((cpu(t.proc.pid) - c0) if t.proc else 0) / r["n"] * 1e4
        r["upcpu10k"] = (cpu(UPSTREAM.pid) - u0) / r["n"] * 1e4
        r["upconns"] = accepts() - k0
    return r


METRICS = [("h1c1", wrk, lambda s: (1, s, "/private")), ("h1c32", wrk, lambda s: (CONNS, s, "/private")), ("h2", h2, lambda s: (s,)),
           ("fresh", fresh, lambda s: (s,)), ("resumed", wrk, lambda s: (8, s, "/private", ("-H", "Connection: close"))),
           ("dl", wrk, lambda s: (1, s, "/10m")),
           ("h2dl", lambda t, s: h2big(t, s), lambda s: (s,))]


def one(t, direct, secs, flip):
    """one peer's round: each measurement next to the same one direct, in alternating order"""
    r, d = dict(busy=settle(SETTLE)), {}
    r["start_s"] = t.start()
    time.sleep(0.7)
    r["rss_idle"], r["pss_idle"] = rss(t.proc.pid)
    wrk(t, 8, 1, "/private")
    for m, f, a in METRICS:
        if E.get("ONLY") and m not in E["ONLY"].split(","):
            continue
        if m == "h2" and t.meta["H2"] != "yes":
            continue
        for who in (t,) if E.get("NODIRECT") else (direct, t) if flip else (t, direct):
            (r if who is t else d)[m] = costed(who, f, *a(secs))
        flip = not flip
    r["rss_after"], r["pss_after"] = rss(t.proc.pid)
    if not E.get("ONLY") or "kept" in E["ONLY"]:
        r["idle"] = kept(t, "idle", 400, "/private")
        r["stalled"] = kept(t, "stalled", 64, "/10m")
    return r, d


def med(xs):
    xs = [x for x in xs if x is not None]
    return st.median(xs) if xs else None


FIGURES = [  # heading, measurement, value of one round, format
    ("HTTP/1.1, 1 conn", "h1c1", lambda m: m["cpu10k"], "{:.2f}"),
    ("HTTP/1.1, 32 conns", "h1c32", lambda m: m["cpu10k"], "{:.2f}"),
    ("h2, 4x8 streams", "h2", lambda m: m["cpu10k"], "{:.2f}"),
    ("full handshake", "fresh", lambda m: m["cpu10k"], "{:.2f}"),
    ("reconnect, resumed", "resumed", lambda m: m["cpu10k"], "{:.2f}"),
    ("GB, h1", "dl", lambda m: m["cpu10k"] / 100, "{:.2f}"),  # 1 GB = 100 bodies of 10 MB
    ("GB, h2", "h2dl", lambda m: m["cpu10k"] / 100, "{:.2f}"),
]


def row(cells):
    return "| " + " | ".join(cells) + " |"


def tables(names, meta, runs, secs):
    peers = [n for n in names if n != "direct"]
    rounds = max(len(runs[n]) for n in peers)

    def per_round(n, m, f):
        return [f(r[m]) if r.get(m, {}).get("n") else None for r in runs[n]]

    def value(n, m, f):
        return med(per_round(n, m, f))

    def num(v, f="{:.2f}"):
        return "-" if v is None else f.format(v)

    def cost(n, m, f, form):
        """median, and the median over rounds of the ratio to HAProxy in the same round"""
        v, base = per_round(n, m, f), per_round("haproxy", m, f) if "haproxy" in names else []
        ratio = med([a / b for a, b in zip(v, base) if a and b])
        return num(med(v), form) + ("" if ratio is None or n == "haproxy" else f" ({ratio:.2f})")

    def added(n):
        """what a peer adds to the median time of a call, in ms, beside a direct one measured right next to it"""
        return med([(r["h1c1"]["p50"] - r["direct"]["h1c1"]["p50"]) / 1e3 for r in runs[n]
                    if r.get("h1c1", {}).get("p50") and r["direct"].get("h1c1", {}).get("p50")])

    o = [f"Medians of {rounds} rounds of {secs} s; in brackets the median over rounds of the ratio to HAProxy in the same round.", "",
         "What the proxy itself used (CPU seconds of all its processes for 10,000 requests or connections, and per GB):", "",
         row(["peer"] + [h for h, *_ in FIGURES]), "|---" * (len(FIGURES) + 1) + "|"]
    o += [row([n] + [cost(n, m, f, form) for _, m, f, form in FIGURES]) for n in peers]
    o += ["", "What clients see, and memory (RSS of all its processes):", "",
          row(["peer", "1 conn: p50 added, ms", "32 conns: req/s", "32 conns: p50 / p99, ms", "h2: req/s", "full handshakes/s", "10 MB bodies: MB/s",
               "MiB idle", "after all", "with 64 stalled readers", "KiB an idle connection", "upstream connections opened: 32 conns", "ready after, s"]), "|---" * 13 + "|"]
    for n in names:
        rate = lambda m, k="rate": num(value(n, m, lambda x: x[k]), "{:,.0f}")
        mem = [num(med([r.get(k) for r in runs[n]]), "{:.0f}") for k in ("rss_idle", "rss_after")]
        held = [num(value(n, "stalled", lambda x: x["rss"]), "{:.0f}"), num(value(n, "idle", lambda x: x["each"]), "{:.0f}")]
        o.append(row([n, "-" if n == "direct" else num(added(n), "{:.3f}"), rate("h1c32"),
                      " / ".join(num(value(n, "h1c32", lambda x, p=p: x[p] / 1e3)) for p in ("p50", "p99")), rate("h2"), rate("fresh"), rate("dl", "MBps"),
                      *mem, *held, num(value(n, "h1c32", lambda x: x["upconns"]), "{:.0f}"), num(med([r.get("start_s") for r in runs[n]]), "{:.1f}")]))
    o += ["", row(["peer", "version", "mode", "injects", "mints leaf", "h2 to client"]), "|---" * 6 + "|"]
    o += [row([n, *(meta[n][k] for k in ("VERSION", "NOTE", "INJECT", "MINT", "H2"))]) for n in peers]
    bad = [f"{n} {m}: {c} bad answers or socket errors" for n in names for m, _, _ in METRICS
           if (c := sum(r[m].get("bad", 0) + r[m].get("sock", 0) for r in runs[n] if m in r))]
    bad += [f"{n} {m}: no result in {k} rounds" for n in names for m in (*(m for m, _, _ in METRICS), "idle", "stalled")
            if (k := sum("error" in r.get(m, {}) for r in runs[n]))]
    o += ["", "Errors seen: " + ("; ".join(bad) if bad else "none") + "."]
    busy_before = [r["busy"] * 100 for n in names for r in runs[n] if "busy" in r]
    o += [f"CPU that others on the machine used just before a peer's turn: median {st.median(busy_before):.0f} %, at most {max(busy_before):.0f} %."]
    return "\n".join(o)


def main():
    global UPSTREAM, SETTLE
    a = argparse.ArgumentParser()
    a.add_argument("--rounds", type=int, default=5)
    a.add_argument("--secs", type=int, default=4)
    a.add_argument("--settle", type=int, default=20, help="seconds to wait at most for the machine to be idle before each peer's turn")
    a.add_argument("--peers", default="")
    a.add_argument("--out", default=f"{RUN}/results.json")
    a.add_argument("--table", default="", help="only print the tables of this earlier --out file")
    a = a.parse_args()
    if a.table:
        d = json.load(open(a.table))
        return print(tables(d["names"], d["meta"], d["runs"], d["secs"]))
    secs, SETTLE = min(a.secs, 8), a.settle
    have = [os.path.basename(p)[5:-3] for p in sorted(glob.glob(f"{HERE}/peer_*.sh"))]
    want = a.peers.split(",") if a.peers else have
    UPSTREAM = sp.Popen([f"{HERE}/upstream.sh"], stdin=sp.DEVNULL)
    targets = [Target("direct")]
    for n in want:
        t = Target(n)
        if t.meta["VERSION"]:
            targets.append(t)
        else:
            print(f"{n}: not installed, left out", file=sys.stderr)
    direct, peers = targets[0], targets[1:]
    names = [t.name for t in targets]
    meta = {t.name: {k: v for k, v in t.meta.items() if k != "CA"} for t in targets}
    def save():
        json.dump(dict(date=time.strftime("%F %T"), secs=secs, names=names, meta=meta, runs=runs), open(a.out, "w"))
    runs = {t.name: [] for t in targets}
    try:
        direct.start()  # the upstream answers
        wrk(direct, 8, 1, "/private")
        for i in range(a.rounds):
            k = i * 2 % len(peers)
            for t in peers[k:] + peers[:k]:
                try:
                    r, d = one(t, direct, secs, i % 2 == 0)
                except (RuntimeError, OSError) as e:
                    print(f"round {i + 1} {e}", file=sys.stderr, flush=True)
                    continue
                finally:
                    t.stop()
                r["direct"] = d
                runs[t.name].append(r)
                runs["direct"].append(d)
                save()
                print(f"round {i + 1} {t.name:15}", *(f"{m}={r[m].get('rate', 0):,.0f}/{d.get(m, {}).get('rate', 0):,.0f}" for m, _, _ in METRICS if m in r),
                      f"others={r['busy'] * 100:.0f}%", file=sys.stderr, flush=True)
                time.sleep(0.5)
    finally:
        UPSTREAM.terminate()
        UPSTREAM.wait()
    print(tables(names, meta, runs, secs))


if __name__ == "__main__":
    main()
