//! The steps: a real client each, and what must come of it.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use harness::{Client, Output, wait};

use crate::story::{ACCOUNT, API, ELSEWHERE, ELSEWHERE_PORT, Stage};

/// One step; `run` gives what happened and whether that is as expected.
#[derive(Debug)]
pub(crate) struct Step {
    pub(crate) name: &'static str,
    pub(crate) expected: &'static str,
    pub(crate) run: fn(&Stage) -> Result<(String, bool)>,
}

/// Before the agent runs.
pub(crate) const UNMANAGED: Step = Step {
    name: "an unmanaged curl goes out untouched",
    expected: "401 from the API, over the API's own certificate",
    run: |stage| {
        let reply = curl(&stage.world.unmanaged()?, &stage.programs.curl, "/v1/charges")?;
        Ok((reply.summary(), reply.status == 401))
    },
};

/// How many of [`MANAGED`] are HTTP calls.
pub(crate) const CALLS: usize = 5;

/// With the agent.
pub(crate) const MANAGED: [Step; 9] = [
    Step {
        name: "a managed curl makes an allowed call",
        expected: "200 as acme-billing",
        run: |stage| {
            let reply = curl(
                &stage.world.workload("billing")?,
                &stage.programs.curl,
                "/v1/charges",
            )?;
            Ok((reply.summary(), reply.is_from_account()))
        },
    },
    Step {
        name: "a managed Python client does, too",
        expected: "200 as acme-billing",
        run: python,
    },
    Step {
        name: "a path that no rule allows",
        expected: "403, problem+json, call_not_allowed",
        run: |stage| {
            let reply = curl(
                &stage.world.workload("billing")?,
                &stage.programs.curl,
                "/v1/refunds",
            )?;
            Ok((reply.summary(), reply.is_refused("call_not_allowed")))
        },
    },
    Step {
        name: "the same curl under another workload",
        expected: "403, problem+json, call_not_allowed",
        run: |stage| {
            let reply = curl(
                &stage.world.workload("reports")?,
                &stage.programs.curl,
                "/v1/charges",
            )?;
            Ok((reply.summary(), reply.is_refused("call_not_allowed")))
        },
    },
    Step {
        name: "another executable in the same workload",
        expected: "403, problem+json, caller_not_allowed",
        run: |stage| {
            let reply = curl(
                &stage.world.workload("billing")?,
                &stage.programs.stranger,
                "/v1/charges",
            )?;
            Ok((reply.summary(), reply.is_refused("caller_not_allowed")))
        },
    },
    Step {
        name: "a direct connection to another address",
        expected: "refused, nothing arrives",
        run: direct,
    },
    Step {
        name: "a UDP packet",
        expected: "refused, nothing arrives",
        run: |stage| udp(stage, 9999),
    },
    Step {
        name: "a QUIC packet (UDP 443)",
        expected: "refused, nothing arrives",
        run: |stage| udp(stage, 443),
    },
    Step {
        name: "an unmanaged curl is still untouched",
        expected: "401 from the API, over the API's own certificate",
        run: UNMANAGED.run,
    },
];

/// What a client got.
struct Reply {
    status: u16,
    kind: String,
    body: String,
    raw: Output,
}

impl Reply {
    /// Reads the last line, `STATUS CONTENT-TYPE`, and what stands before it.
    fn parse(raw: Output) -> Self {
        let (body, last) = raw
            .stdout
            .trim_end()
            .rsplit_once('\n')
            .unwrap_or(("", raw.stdout.trim_end()));
        let (status, kind) = last.split_once(' ').unwrap_or((last, ""));
        let (status, kind, body) = (status.parse().unwrap_or(0), kind.to_owned(), body.to_owned());
        Self {
            status,
            kind,
            body,
            raw,
        }
    }

    fn is_from_account(&self) -> bool {
        self.status == 200 && self.body.contains(&format!("\"account\":\"{ACCOUNT}\""))
    }

    fn is_refused(&self, reason: &str) -> bool {
        self.status == 403 && self.kind.starts_with("application/problem+json") && self.body.contains(reason)
    }

    fn summary(&self) -> String {
        match self.status {
            0 => format!("{}: {}", self.raw.status, self.raw.stderr.trim()),
            status => format!("{status} {}", self.body.trim()),
        }
    }
}

/// The same command line for every client, managed or not.
fn curl(client: &Client, program: &std::path::Path, path: &str) -> Result<Reply> {
    let url = format!("https://{API}{path}");
    let args = [
        "-sS",
        "--max-time",
        "15",
        "-w",
        "\n%{http_code} %{content_type}",
        &url,
    ];
    let program = program.to_str().context("a program's path that is not UTF-8")?;
    Ok(Reply::parse(client.run(std::iter::once(program).chain(args))?))
}

const PYTHON_GET: &str = "
import sys, urllib.error, urllib.request
try:
    reply = urllib.request.urlopen(sys.argv[1], timeout=15)
except urllib.error.HTTPError as error:
    reply = error
print(reply.read().decode())
print(reply.status, reply.headers.get('content-type'))
";

fn python(stage: &Stage) -> Result<(String, bool)> {
    let url = format!("https://{API}/v1/charges/ch_1");
    let program = stage
        .programs
        .python
        .to_str()
        .context("a program's path that is not UTF-8")?;
    let reply = Reply::parse(
        stage
            .world
            .workload("billing")?
            .run([program, "-c", PYTHON_GET, &url])?,
    );
    Ok((reply.summary(), reply.is_from_account()))
}

/// The managed client must fail to connect; the same command outside any workload shows that the server is there.
fn direct(stage: &Stage) -> Result<(String, bool)> {
    const COULD_NOT_CONNECT: Option<i32> = Some(7);
    let server = stage.world.server(ELSEWHERE)?;
    let url = format!("http://{}:{ELSEWHERE_PORT}/", server.v4().ip());
    let args = ["/usr/bin/curl", "-sS", "--max-time", "15", &url];
    let managed = stage.world.workload("billing")?.run(args)?;
    let arrived = server.log()?.len();
    stage
        .world
        .unmanaged()?
        .run(args)?
        .ok()
        .context("the server does not answer anybody")?;
    let got = format!("{} ({arrived} arrived)", managed.stderr.trim());
    Ok((got, managed.code() == COULD_NOT_CONNECT && arrived == 0))
}

const PYTHON_UDP: &str = "
import errno, socket, sys
sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
try:
    sender.sendto(sys.argv[3].encode(), (sys.argv[1], int(sys.argv[2])))
    print('sent')
except OSError as error:
    print(errno.errorcode.get(error.errno, error.errno))
";

/// The first packet to arrive must be the one from outside any workload.
fn udp(stage: &Stage, port: u16) -> Result<(String, bool)> {
    let to = SocketAddr::new(stage.world.server(ELSEWHERE)?.v4().ip(), port);
    let receiver = stage.world.outside_udp(to)?;
    let python = stage
        .programs
        .python
        .to_str()
        .context("a program's path that is not UTF-8")?;
    let (ip, port) = (to.ip().to_string(), to.port().to_string());
    let send = |client: Client, text: &str| client.run([python, "-c", PYTHON_UDP, &ip, &port, text]);
    let managed = send(stage.world.workload("billing")?, "managed")?;
    send(stage.world.unmanaged()?, "unmanaged")?.ok()?;
    let first = first_packet(&receiver)?;
    let got = format!(
        "{}{} (first to arrive: {first})",
        managed.stdout.trim(),
        managed.stderr.trim()
    );
    let refused = ["EPERM", "EACCES", "ECONNREFUSED"].contains(&managed.stdout.trim());
    Ok((got, refused && first == "unmanaged"))
}

fn first_packet(receiver: &std::net::UdpSocket) -> Result<String> {
    let mut buffer = [0; 64];
    let packet = wait::until(
        "the packet from outside any workload",
        Duration::from_secs(5),
        || match receiver.recv(&mut buffer) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
            other => Some(other),
        },
    )?;
    match packet {
        Ok(length) => Ok(String::from_utf8_lossy(&buffer[..length]).into_owned()),
        Err(error) => bail!("can't receive: {error}"),
    }
}
