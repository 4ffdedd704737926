//! The whole way to the command, in a child of the test: this test binary, started again for [`stage`], which
//! becomes the command, which may be this binary once more for [`report`]. Both begin in the one test that is [`OWN`].
//!
//! By root alone: an ordinary user's command needs a user namespace, which the kernel gives to a process with one
//! thread only, and a test's has two.

use std::os::fd::AsRawFd;
use std::process::Output;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use super::*;
use crate::tests::lacks_root;

const OWN: &str = "cli::exec::tests::the_command_has_no_way_around_the_hooks";
const COMMAND: &str = "CALLGATE_TEST_COMMAND";
const USER: &str = "CALLGATE_TEST_USER";
const REPORT: &str = "CALLGATE_TEST_REPORT";

/// Runs `command` (words, separated by blanks) as `callgate exec` would.
fn exec(command: &str, user: Option<&str>) -> Output {
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", "--nocapture", OWN]);
    child.env(COMMAND, command);
    child.envs(user.map(|user| (USER, user)));
    child.output().unwrap()
}

/// The command that is this binary.
fn reporting() -> String {
    let program = std::env::current_exe().unwrap();
    format!("env {REPORT}=1 {} --exact --nocapture {OWN}", program.display())
}

/// Becomes the command.
fn stage(command: &str) {
    let args = Args {
        workload: WorkloadName::parse("w").unwrap(),
        user: std::env::var(USER).ok(),
        shared_tmp: false,
        command: command.split(' ').map(OsString::from).collect(),
    };
    // A descriptor that is inherited over exec unless it is closed.
    let left_open = std::fs::File::open("/dev/null").unwrap();
    nix::fcntl::fcntl(
        &left_open,
        nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty()),
    )
    .unwrap();
    assert!(left_open.as_raw_fd() > 2);
    let env = vec![("SSL_CERT_FILE".to_owned(), "/bundle.pem".to_owned())];
    run(&args, |workload| {
        assert_eq!(workload.as_str(), "w");
        Ok(Enrolled {
            env,
            ..Enrolled::default()
        })
    })
    .unwrap();
}

/// Says what the command can do.
fn report() {
    for family in [AddressFamily::Inet, AddressFamily::Inet6, AddressFamily::Unix] {
        socket(family, SockType::Datagram, SockFlag::empty(), None).unwrap();
    }
    for family in [AddressFamily::Packet, AddressFamily::Vsock, AddressFamily::Alg] {
        let refused = socket(family, SockType::Datagram, SockFlag::empty(), None).map(|_| ());
        println!("\nsocket {family:?} {refused:?}");
    }
    let express = socket2::Socket::new(libc::AF_XDP.into(), socket2::Type::RAW, None);
    let refused = express.map(|_| ()).map_err(|error| error.raw_os_error());
    println!("socket Xdp {refused:?}");
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let words = ["NoNewPrivs:", "Seccomp:", "CapEff:", "CapBnd:"];
    for line in status
        .lines()
        .filter(|line| words.iter().any(|word| line.starts_with(word)))
    {
        println!("{}", line.replace('\t', " "));
    }
    println!("cert {:?}", std::env::var("SSL_CERT_FILE").ok());
    let null = Ok(PathBuf::from("/dev/null"));
    let kept = (3..64).any(|number| {
        std::fs::read_link(format!("/proc/self/fd/{number}")).is_ok_and(|to| Ok::<_, ()>(to) == null)
    });
    println!("kept {kept}");
}

#[test]
fn the_command_has_no_way_around_the_hooks() {
    if std::env::var_os(REPORT).is_some() {
        return report();
    }
    if let Ok(command) = std::env::var(COMMAND) {
        return stage(&command);
    }
    if lacks_root() {
        return;
    }
    let output = exec(&reporting(), None);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(
        output.status.success(),
        "{text}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    for line in [
        "socket Packet Err(EAFNOSUPPORT)",
        "socket Vsock Err(EAFNOSUPPORT)",
        "socket Alg Err(EAFNOSUPPORT)",
        &format!("socket Xdp Err(Some({}))", libc::EAFNOSUPPORT),
        "NoNewPrivs: 1",
        "Seccomp: 2",
        "cert Some(\"/bundle.pem\")",
        "kept false",
    ] {
        assert!(
            text.lines().any(|found| found == line),
            "{line:?} is not in\n{text}"
        );
    }
    let mask = |set: &str| {
        let value = text.lines().find_map(|line| line.strip_prefix(set)).unwrap();
        u64::from_str_radix(value.trim(), 16).unwrap()
    };
    let net_admin_and_raw = (1 << 12) | (1 << 13);
    assert_eq!(mask("CapEff:") & net_admin_and_raw, 0);
    assert_eq!(mask("CapBnd:") & net_admin_and_raw, 0);
}

#[test]
fn the_exit_code_is_the_commands_own() {
    if lacks_root() {
        return;
    }
    assert_eq!(exec("false", None).status.code(), Some(1));
    assert_eq!(exec("true", None).status.code(), Some(0));
}

#[test]
fn root_can_run_the_command_as_another_user() {
    if lacks_root() {
        return;
    }
    let output = exec("id -u", Some("nobody"));
    let text = String::from_utf8(output.stdout).unwrap();
    let nobody = nix::unistd::User::from_name("nobody").unwrap().unwrap().uid;
    assert!(text.lines().any(|line| line == nobody.to_string()), "{text}");
    let caps = exec("grep CapPrm /proc/self/status", Some("nobody"));
    let text = String::from_utf8(caps.stdout).unwrap();
    assert!(text.contains("CapPrm:\t0000000000000000"), "{text}");
}

#[test]
fn users_are_found_by_name_and_number() {
    assert!(confine::User::find("root").is_ok());
    assert!(confine::User::find("0").is_ok());
    let error = confine::User::find("nobody-of-that-name")
        .unwrap_err()
        .to_string();
    assert!(error.contains("no user"), "{error}");
}

#[test]
fn a_command_that_cannot_start_gives_the_shells_codes() {
    assert_eq!(code_of(&io::Error::from_raw_os_error(libc::ENOENT)), 127);
    assert_eq!(code_of(&io::Error::from_raw_os_error(libc::EACCES)), 126);
    assert_eq!(code_of(&io::Error::from_raw_os_error(libc::ENOEXEC)), 126);
}
