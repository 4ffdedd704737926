//! A child of the test confines itself and reports; the parent reads /proc. As root only: that is what the
//! worker starts as.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Stdio};

use super::*;
use crate::tests::lacks_root;

const ROLE: &str = "CALLGATE_TEST_SANDBOX";
const NOBODY: Unprivileged = Unprivileged {
    uid: 65534,
    gid: 65534,
};

/// What the child does once it is confined.
fn act(role: &str, channel: OwnedFd) {
    let mut channel = UnixStream::from(channel);
    match role {
        "report" => {
            let line = format!("{}\n", nix::unistd::gettid());
            channel.write_all(line.as_bytes()).unwrap();
            assert_eq!(channel.read(&mut [0]).unwrap(), 0);
        }
        "serve" => serve(&mut channel),
        "exec" => drop(Command::new("/bin/true").status()),
        "raw" => drop(socket2::Socket::new(
            socket2::Domain::IPV4,
            socket2::Type::RAW,
            Some(socket2::Protocol::ICMPV4),
        )),
        "listen" => drop(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))),
        "open" => {
            let error = File::open("/etc/passwd").unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
            channel.write_all(b"refused\n").unwrap();
        }
        other => panic!("no such role: {other}"),
    }
}

/// What the worker does all day: runtimes on several threads, connections, timers.
fn serve(channel: &mut UnixStream) {
    let mut port = [0; 2];
    channel.read_exact(&mut port).unwrap();
    let port = u16::from_be_bytes(port);
    let threads: Vec<_> = (0..3)
        .map(|_| {
            std::thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()
                    .unwrap();
                runtime.block_on(async move {
                    use tokio::io::AsyncWriteExt;
                    let connect = tokio::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port));
                    let mut stream = tokio::time::timeout(std::time::Duration::from_secs(10), connect)
                        .await
                        .unwrap()
                        .unwrap();
                    stream.set_nodelay(true).unwrap();
                    stream.write_all(b"x").await.unwrap();
                });
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
    channel.write_all(b"served\n").unwrap();
}

/// Not a test by itself: the child that the tests below start.
#[test]
fn child() {
    let Ok(role) = std::env::var(ROLE) else { return };
    let channel = take_channel().unwrap();
    // The test harness has a thread of its own, which `enter` would refuse; this one is the one that counts.
    confine(NOBODY, &channel).unwrap();
    act(&role, channel);
}

fn start(role: &str) -> (Child, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let child = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "supervisor::sandbox::tests::child",
            "--nocapture",
            "--test-threads=1",
        ])
        .env(ROLE, role)
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    (child, ours)
}

fn line(stream: &UnixStream) -> String {
    let mut text = String::new();
    BufReader::new(stream).read_line(&mut text).unwrap();
    text
}

#[test]
fn a_confined_process_shows_no_capability_and_a_filter_in_proc() {
    if lacks_root() {
        return;
    }
    let (mut child, channel) = start("report");
    let thread = line(&channel);
    let read = |file: &str| {
        std::fs::read_to_string(format!("/proc/{}/task/{}/{file}", child.id(), thread.trim())).unwrap()
    };
    let (status, limits) = (read("status"), read("limits"));
    let field = |name: &str| {
        let found = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        found
            .trim_start_matches(':')
            .split_whitespace()
            .collect::<Vec<_>>()
            .join(" ")
    };
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(field(set), "0000000000000000", "{set}");
    }
    assert_eq!(field("NoNewPrivs"), "1");
    assert_eq!(field("Seccomp"), "2");
    assert_eq!(field("Uid"), "65534 65534 65534 65534");
    assert_eq!(field("Gid"), "65534 65534 65534 65534");
    assert_eq!(field("Groups"), "");
    let cores = limits
        .lines()
        .find(|line| line.starts_with("Max core file size"))
        .unwrap();
    assert_eq!(
        cores.split_whitespace().skip(4).take(2).collect::<Vec<_>>(),
        ["0", "0"]
    );
    drop(channel);
    assert!(child.wait().unwrap().success());
}

#[test]
fn a_confined_process_can_still_serve_on_several_threads() {
    if lacks_root() {
        return;
    }
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let (mut child, mut channel) = start("serve");
    channel
        .write_all(&listener.local_addr().unwrap().port().to_be_bytes())
        .unwrap();
    // The backlog takes the connections; a child that dies closes the channel.
    assert_eq!(line(&channel), "served\n");
    assert!(child.wait().unwrap().success());
}

#[test]
fn what_is_not_on_the_list_kills_the_process() {
    if lacks_root() {
        return;
    }
    for role in ["exec", "raw", "listen"] {
        let (mut child, _channel) = start(role);
        let status = child.wait().unwrap();
        assert_eq!(status.signal(), Some(libc::SIGSYS), "{role}: {status}");
    }
}

#[test]
fn opening_a_file_is_an_error_that_a_library_can_live_with() {
    if lacks_root() {
        return;
    }
    let (mut child, channel) = start("open");
    assert_eq!(line(&channel), "refused\n");
    assert!(child.wait().unwrap().success());
}

#[test]
fn root_is_no_user_for_the_worker() {
    let null: OwnedFd = File::open("/dev/null").unwrap().into();
    let error = enter(Unprivileged { uid: 0, gid: 1 }, &null).unwrap_err();
    assert!(matches!(error, Error::Root));
}
