//! Who is calling: the record names the process that the kernel saw, and neither exec, fork, another file at the
//! same path nor a forged name makes one caller pass for another.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use harness::{Client, Output, Record, Upstream, World, assert_record, require, wait};

const API: &str = "api.example.test";
const PLAIN: &str = "plain.example.test";
const NOBODY: u32 = 65534;

/// A world with the API, the plain upstream and an agent under this policy.
fn start(name: &str, policy: &str) -> Result<World> {
    let mut world = World::new(name)?;
    world.upstream(Upstream::new(API))?;
    world.upstream(Upstream::new(PLAIN).plain())?;
    world.policy("identity.toml", policy)?;
    world.start_agent()?;
    Ok(world)
}

/// A workload that may call the API, with these further lines in the workload and in its rule.
fn workload(name: &str, on_workload: &str, on_rule: &str) -> String {
    format!(
        "[[workload]]\nname = {name:?}\n{on_workload}\n[[workload.allow]]\nname = \"calls\"\nhost = {API:?}\nprivate = true\n{on_rule}\n"
    )
}

/// The status that curl got; 0 for none.
fn status(reply: &Output) -> u16 {
    let last = reply.stdout.trim_end().rsplit('\n').next().unwrap_or_default();
    last.parse().unwrap_or(0)
}

/// `sh` prints its process id and cgroup and becomes `program`, a curl.
fn announced(client: &Client, program: &Path, path: &str) -> Result<(Output, u32, String)> {
    let script = r#"echo $$; cat /proc/self/cgroup; exec "$0" -sS -o /dev/null -w '%{http_code}\n' "$1""#;
    let program = program.to_str().context("a path that is not UTF-8")?;
    let reply = client.run(["sh", "-c", script, program, &format!("https://{API}{path}")])?;
    let mut lines = reply.stdout.lines();
    let pid = lines
        .next()
        .unwrap_or_default()
        .parse()
        .with_context(|| format!("{reply:?}"))?;
    let cgroup = lines
        .find_map(|line| line.strip_prefix("0::"))
        .unwrap_or_default()
        .to_owned();
    Ok((reply, pid, cgroup))
}

fn curl() -> Result<PathBuf> {
    fs::canonicalize("/usr/bin/curl").context("curl is missing (package curl)")
}

fn copy_of(program: &str, to: &Path) -> Result<()> {
    fs::copy(fs::canonicalize(program)?, to).with_context(|| format!("can't copy {program}"))?;
    fs::set_permissions(to, fs::Permissions::from_mode(0o755)).context("can't make it executable")
}

/// The records of calls, once there are `count`.
fn calls(world: &World, count: usize) -> Result<Vec<Record>> {
    wait::until("a record of each call", wait::PATIENCE, || {
        let records = world.records().ok()?;
        let calls: Vec<_> = records
            .into_iter()
            .filter(|record| record.text("kind") == "call")
            .collect();
        (calls.len() >= count).then_some(calls)
    })
}

#[test]
fn the_record_names_process_user_cgroup_and_executable() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let curl = curl()?;
    let policy = workload(
        "billing",
        "exec_by = { users = [\"nobody\"] }",
        &format!("exe = {curl:?}"),
    );
    let world = start("the_record_names_process_user_cgroup_and_executable", &policy)?;
    let client = world.workload("billing")?.user(NOBODY);
    let (reply, pid, cgroup) = announced(&client, &curl, "/who")?;
    assert_eq!(status(&reply), 200, "{reply:?}");
    let record = assert_record!(
        world,
        "path" = "/who",
        "workload" = "billing",
        "pid" = pid,
        "uid" = NOBODY,
        "gid" = NOBODY,
        "user" = "nobody",
        "comm" = "curl",
        "cgroup.path" = cgroup.as_str(),
        "exe.path" = curl.to_str(),
        "rule" = "calls",
        "outcome" = "completed",
    );
    assert!(record.field("unit").is_null(), "{record:?}");
    assert!(cgroup.starts_with(&world.workload_parent()), "{cgroup}");
    Ok(())
}

#[test]
fn short_lived_processes_each_have_their_own_record() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    const COUNT: usize = 50;
    let world = start(
        "short_lived_processes_each_have_their_own_record",
        &workload("billing", "", ""),
    )?;
    // Each prints its number and ends with the call.
    let script = r#"i=0; while [ $i -lt 50 ]; do
        sh -c 'echo $$ $1; exec curl -sS -o /dev/null "$2/$1"' - $i "$1"; i=$((i+1)); done"#;
    let printed = world
        .workload("billing")?
        .run(["sh", "-c", script, "-", &format!("https://{API}")])?
        .ok()?;
    let expected: BTreeSet<_> = printed
        .lines()
        .filter_map(|line| line.split_once(' '))
        .map(|(pid, serial)| (pid.to_owned(), format!("/{serial}")))
        .collect();
    let found: BTreeSet<_> = calls(&world, COUNT)?
        .iter()
        .map(|record| (record.text("pid"), record.text("path")))
        .collect();
    assert_eq!(expected.len(), COUNT);
    assert_eq!(found, expected);
    Ok(())
}

#[test]
fn a_user_condition_asks_for_the_callers_user() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let world = start(
        "a_user_condition_asks_for_the_callers_user",
        &workload("billing", "", "user = \"nobody\""),
    )?;
    let url = format!("https://{API}/");
    let call = |user: &[&str]| {
        let command = ["--", "curl", "-sS", "-o", "/dev/null", "-w", "%{http_code}", &url];
        let args: Vec<_> = ["--workload", "billing"]
            .iter()
            .chain(user)
            .chain(&command)
            .copied()
            .collect();
        world.agent()?.command("exec", &args)
    };
    let nobody = call(&["--user", "nobody"])?;
    assert_eq!(status(&nobody), 200, "{nobody:?}");
    assert_record!(world, "uid" = NOBODY, "status" = 200);
    let root = call(&[])?;
    assert_eq!(status(&root), 403, "{root:?}");
    assert_record!(world, "uid" = 0, "status" = 403, "reason" = "caller_not_allowed");
    Ok(())
}

/// Two copies of a shell that speaks TCP; a rule allows the plain upstream to one of them alone.
struct Shells {
    world: World,
    allowed: String,
    stranger: String,
}

impl Shells {
    fn start(name: &str) -> Result<Self> {
        let mut world = World::new(name)?;
        world.upstream(Upstream::new(PLAIN).plain())?;
        let (allowed, stranger) = (world.dir().join("allowed"), world.dir().join("stranger"));
        copy_of("/bin/bash", &allowed)?;
        copy_of("/bin/bash", &stranger)?;
        let policy = format!(
            "[[workload]]\nname = \"shells\"\n[[workload.allow]]\nname = \"calls\"\nhost = {PLAIN:?}\nscheme = \"http\"\nprivate = true\nexe = {allowed:?}\n"
        );
        world.policy("identity.toml", &policy)?;
        world.start_agent()?;
        let text = |path: PathBuf| {
            path.to_str()
                .map(ToOwned::to_owned)
                .context("a path that is not UTF-8")
        };
        Ok(Self {
            allowed: text(allowed)?,
            stranger: text(stranger)?,
            world,
        })
    }

    /// `program` runs `script`, in which `$HELLO` defines `call PATH`: a call over descriptor 9 that prints the
    /// status; every other program is a builtin.
    fn run(&self, program: &str, script: &str) -> Result<Vec<String>> {
        let client = self.world.workload("shells")?;
        let client = client.env("HELLO", CALL).env("HOST", PLAIN);
        let client = client
            .env("ALLOWED", &self.allowed)
            .env("STRANGER", &self.stranger);
        let reply = client.run([program, "-c", &format!("{CALL}\n{script}")])?;
        let printed = reply.clone().ok()?;
        assert!(!printed.is_empty(), "{reply:?}");
        Ok(printed.lines().map(ToOwned::to_owned).collect())
    }
}

const OPEN: &str = "exec 9<>/dev/tcp/$HOST/80\n";

/// Reads the body by its length, so that the connection can be used again.
const CALL: &str = r#"call() {
    printf 'GET %s HTTP/1.1\r\nHost: %s\r\n\r\n' "$1" "$HOST" >&9
    read -r -t 10 _ status _ <&9; length=0
    while read -r -t 10 name value <&9; do
        value=${value%$'\r'}; name=${name%$'\r'}
        [ -z "$name" ] && break
        case ${name,,} in content-length:) length=$value;; esac
    done
    read -r -t 10 -N "$length" body <&9; echo "$status"
}"#;

#[test]
fn connecting_and_then_becoming_the_allowed_program_is_refused() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let shells = Shells::start("connecting_and_then_becoming_the_allowed_program_is_refused")?;
    let itself = shells.run(&shells.allowed, &format!("{OPEN}call /itself"))?;
    assert_eq!(itself, ["200"]);
    let became = format!(r#"{OPEN}exec "$ALLOWED" -c "$HELLO"$'\n''call /became'"#);
    assert_eq!(shells.run(&shells.stranger, &became)?, ["403"]);
    assert_record!(
        shells.world,
        "path" = "/itself",
        "status" = 200,
        "exe.path" = shells.allowed.as_str()
    );
    assert_record!(
        shells.world,
        "path" = "/became",
        "status" = 403,
        "reason" = "caller_not_allowed"
    );
    assert_eq!(shells.world.server(PLAIN)?.log()?.len(), 1);
    Ok(())
}

#[test]
fn a_kept_connection_is_no_ones_but_its_makers() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let shells = Shells::start("a_kept_connection_is_no_ones_but_its_makers")?;
    let became = format!(r#"{OPEN}call /first; exec "$STRANGER" -c "$HELLO"$'\n''call /became'"#);
    assert_eq!(shells.run(&shells.allowed, &became)?, ["200", "403"]);
    // The child runs the allowed file, but the connection is its parent's.
    let child = format!(r#"{OPEN}"$ALLOWED" -c "$HELLO"$'\n''call /child'; exit 0"#);
    assert_eq!(shells.run(&shells.stranger, &child)?, ["403"]);
    for path in ["/became", "/child"] {
        assert_record!(
            shells.world,
            "path" = path,
            "status" = 403,
            "reason" = "caller_not_allowed"
        );
    }
    Ok(())
}
