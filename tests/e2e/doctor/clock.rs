//! What the doctor finds of time: whether the clock is kept, and whether the agent's root is good by it.

use std::fs;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use callgate::tls::ca::{ROOT_LIFE, Root};
use harness::{Output, World, require};

use super::check;

/// Asks the kernel as the doctor does, at other hands: adjtimex(2) with `struct timex` as 64-bit machines have it.
const KEPT: &str = r#"
import ctypes, struct
libc = ctypes.CDLL(None, use_errno=True)
told = ctypes.create_string_buffer(256)
assert libc.adjtimex(told) >= 0, ctypes.get_errno()
modes, offset, frequency, largest, estimated, status = struct.unpack_from("<I4xqqqqi", told.raw)
STA_UNSYNC = 0x40
print("unsynchronised" if status & STA_UNSYNC else "s off" if largest > 5_000_000 else "kept")
"#;

/// "kept", or why this machine's clock is not, in a word of the doctor's.
pub(super) fn kept(world: &World) -> Result<String> {
    let told = world.unmanaged()?.run(["python3", "-c", KEPT])?.ok()?;
    Ok(told.trim().to_owned())
}

/// The doctor's word, in text, where the kernel says that its clock is kept, whatever keeps this machine's, and nothing is
/// swapped out: `struct timex` with STA_NANO and STA_PLL alone (include/uapi/linux/timex.h). Which of the two system calls
/// asks is the C library's choice.
pub(super) fn where_it_is_kept(world: &mut World) -> Result<Output> {
    const TO_STATUS: usize = 40;
    let told = "00".repeat(TO_STATUS) + "01200000";
    let config = world.config();
    let binary = harness::agent::binary()?;
    let asks = [
        "adjtimex:retval=0:poke_exit=@arg1",
        "clock_adjtime:retval=0:poke_exit=@arg2",
    ];
    let injected = asks.map(|call| format!("inject={call}={told}"));
    let [first, second] = &injected;
    let fault = [
        "strace",
        "-qq",
        "-o",
        "/dev/null",
        "-e",
        "trace=adjtimex,clock_adjtime",
        "-e",
        first,
        "-e",
        second,
    ];
    let rest = [
        binary.as_os_str(),
        "doctor".as_ref(),
        "--config".as_ref(),
        config.as_os_str(),
    ];
    world.agent_view("mount --bind /dev/null /proc/swaps");
    world
        .agent_place()?
        .run(fault.iter().map(AsRef::as_ref).chain(rest))
}

#[test]
fn the_doctor_says_of_the_clock_what_the_kernel_knows() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let world = World::new()?;
    world.write_config()?;
    let clock = check(&world.callgate("doctor", &["--json"])?, "clock")?;
    let shown = world.callgate("doctor", &[])?;
    match kept(&world)?.as_str() {
        "kept" => {
            assert_eq!(clock["status"], "pass", "{clock}");
            assert!(shown.stdout.contains("set and synchronised"), "{shown:?}");
        }
        why => {
            assert_eq!(clock["status"], "warn", "{clock}");
            let found = clock["found"].as_str().context("text")?;
            for part in [why, "leaves", "upstreams' certificates", "records"] {
                assert!(found.contains(part), "{part}: {found}");
            }
            assert!(shown.stdout.contains("warn clock"), "{shown:?}");
            assert!(shown.stdout.contains("-> keep it right: "), "{shown:?}");
            assert_ne!(shown.code(), Some(0), "{shown:?}");
        }
    }
    Ok(())
}

/// The doctor's word, in text, where the agent's root was made by a clock that showed this.
fn with_root_of(world: &World, made: SystemTime) -> Result<Output> {
    let file = world.dir().join("state/ca.pem");
    if file.exists() {
        fs::remove_file(&file)?;
    }
    Root::load_or_create(&file, made)?;
    world.callgate("doctor", &[])
}

#[test]
fn a_root_that_is_not_good_now_fails_and_one_that_is_about_to_end_is_warned_about() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    const DAY: Duration = Duration::from_secs(24 * 3600);
    let world = World::new()?;
    world.write_config()?;
    let none = world.callgate("doctor", &["--json"])?;
    assert_eq!(check(&none, "agent's root")?["status"], "pass");
    let now = SystemTime::now();
    for (made, code, said) in [
        (now + 2 * DAY, Some(3), "FAIL agent's root"),
        (now - ROOT_LIFE - DAY, Some(3), "FAIL agent's root"),
        (now - ROOT_LIFE + 10 * DAY, Some(1), "warn agent's root"),
    ] {
        let told = with_root_of(&world, made)?;
        assert!(told.stdout.contains(said), "{told:?}");
        assert!(told.stdout.contains("ca.pem away"), "{told:?}");
        assert_eq!(told.code(), code, "{told:?}");
    }
    let told = with_root_of(&world, now)?;
    assert!(told.stdout.contains("pass agent's root"), "{told:?}");
    assert!(told.code() < Some(3), "{told:?}");
    Ok(())
}
