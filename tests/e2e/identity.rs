//! Who is calling: the record names the process that the kernel saw, and neither exec, fork, another file at the
//! same path nor a forged name makes one caller pass for another.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result};
use harness::launch::{self, Place};
use harness::{Client, Output, Record, Upstream, World, agent, assert_record, require, wait};

pub(crate) const API: &str = "api.example.test";
const PLAIN: &str = "plain.example.test";
pub(crate) const NOBODY: u32 = 65534;
/// What curl is to print: the status.
pub(crate) const CODE: &str = "%{http_code}\n";

/// A world with the API, the plain upstream and an agent under this policy.
pub(crate) fn start(policy: &str) -> Result<World> {
    let mut world = World::new()?;
    world.upstream(Upstream::new(API))?;
    world.upstream(Upstream::new(PLAIN).plain())?;
    world.policy("identity.toml", policy)?;
    world.start_agent()?;
    Ok(world)
}

/// A workload that may call the API, with these further lines in the workload and in its rule.
pub(crate) fn workload(name: &str, on_workload: &str, on_rule: &str) -> String {
    format!(
        "[[workload]]\nname = {name:?}\n{on_workload}\n[[workload.allow]]\nname = \"calls\"\nhost = {API:?}\nprivate = true\n{on_rule}\n"
    )
}

/// The status that curl got; 0 for none.
pub(crate) fn status(reply: &Output) -> u16 {
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
    let world = start(&policy)?;
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
fn the_group_on_record_is_the_callers_and_not_its_users() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    const MAN: u32 = 12;
    let world = start(&workload("billing", "", ""))?;
    let url = format!("https://{API}/group");
    let ids = [format!("--reuid={NOBODY}"), format!("--regid={MAN}")];
    let curl = ["--clear-groups", "curl", "-sS", "-o", "/dev/null", &url];
    let args = ["setpriv", &ids[0], &ids[1]].into_iter().chain(curl);
    world.workload("billing")?.run(args)?.ok()?;
    assert_record!(world, "path" = "/group", "uid" = NOBODY, "gid" = MAN);
    Ok(())
}

#[test]
fn short_lived_processes_each_have_their_own_record() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let count = wait::fewer(50);
    let world = start(&workload("billing", "", ""))?;
    // Each prints its number and ends with the call.
    let script = r#"i=0; while [ $i -lt $2 ]; do
        sh -c 'echo $$ $1; exec curl -sS -o /dev/null "$2/$1"' - $i "$1"; i=$((i+1)); done"#;
    let args = [&format!("https://{API}"), &count.to_string()];
    let printed = world
        .workload("billing")?
        .run(
            ["sh", "-c", script, "-"]
                .into_iter()
                .chain(args.map(String::as_str)),
        )?
        .ok()?;
    let expected: BTreeSet<_> = printed
        .lines()
        .filter_map(|line| line.split_once(' '))
        .map(|(pid, serial)| (pid.to_owned(), format!("/{serial}")))
        .collect();
    let found: BTreeSet<_> = calls(&world, count)?
        .iter()
        .map(|record| (record.text("pid"), record.text("path")))
        .collect();
    assert_eq!(expected.len(), count);
    assert_eq!(found, expected);
    Ok(())
}

#[test]
fn a_user_condition_asks_for_the_callers_user() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let world = start(&workload("billing", "", "user = \"nobody\""))?;
    let url = format!("https://{API}/");
    let call = |user: &[&str]| {
        let command = ["--", "curl", "-sS", "-o", "/dev/null", "-w", CODE, &url];
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
    fn start() -> Result<Self> {
        let mut world = World::new()?;
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
    let shells = Shells::start()?;
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
    let shells = Shells::start()?;
    let became = format!(r#"{OPEN}call /first; exec "$STRANGER" -c "$HELLO"$'\n''call /became'"#);
    assert_eq!(shells.run(&shells.allowed, &became)?, ["200", "403"]);
    // The child runs the allowed file, but the connection is its parent's.
    let child = format!(r#"{OPEN}"$ALLOWED" -c "$HELLO"$'\n''call /child'; exit 0"#);
    assert_eq!(shells.run(&shells.stranger, &child)?, ["403"]);
    // The maker has ended; nobody can tell any more whose connection it was.
    let orphan = format!(
        r#"{OPEN}"$ALLOWED" -c "$HELLO"$'\n''while [ -d /proc/$0 ]; do read -t 0.01 <> <(:); done; call /orphan' $$ & exit 0"#
    );
    assert_eq!(shells.run(&shells.allowed, &orphan)?, ["403"]);
    for path in ["/became", "/child", "/orphan"] {
        assert_record!(
            shells.world,
            "path" = path,
            "status" = 403,
            "reason" = "caller_not_allowed"
        );
    }
    Ok(())
}

/// A workload that only this file may call from, and the file: a copy of curl.
fn only_by() -> Result<(World, PathBuf)> {
    let mut world = World::new()?;
    world.upstream(Upstream::new(API))?;
    let file = world.dir().join("client");
    copy_of("/usr/bin/curl", &file)?;
    world.policy(
        "identity.toml",
        &workload("billing", "", &format!("exe = {file:?}")),
    )?;
    world.start_agent()?;
    Ok((world, file))
}

#[test]
fn a_replaced_or_deleted_executable_is_not_the_one_that_a_rule_names() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let (world, file) = only_by()?;
    let (itself, aside) = (file.to_str().unwrap_or_default(), world.dir().join("aside"));
    let client = world.workload("billing")?;
    assert_eq!(status(&announced(&client, &file, "/itself")?.0), 200);
    // The process waits for its configuration until the file that it runs is gone, or another is there.
    for (path, replaced) in [("/deleted", false), ("/replaced", true)] {
        let mut command = client.command([
            itself,
            "-sS",
            "-o",
            "/dev/null",
            "-w",
            CODE,
            "-m",
            "10",
            "-K",
            "-",
        ]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn()?;
        wait::until("the client runs", wait::PATIENCE, || {
            let exe = fs::read_link(format!("/proc/{}/exe", child.id())).ok()?;
            (exe == file).then_some(())
        })?;
        fs::remove_file(&file)?;
        if replaced {
            copy_of("/usr/bin/curl", &aside)?;
            fs::rename(&aside, &file)?;
        }
        let mut config = child.stdin.take().context("no standard input")?;
        writeln!(config, "url = \"https://{API}{path}\"")?;
        drop(config);
        let output = child.wait_with_output()?;
        assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "403", "{path}");
        let record = assert_record!(world, "path" = path, "reason" = "caller_not_allowed");
        assert!(
            record.field("exe.inode").is_u64() && record.field("exe.path").is_null(),
            "{record:?}"
        );
        copy_of("/usr/bin/curl", &file)?;
    }
    Ok(())
}

#[test]
fn an_executable_that_is_mounted_over_the_named_one_is_another() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let (world, file) = only_by()?;
    let other = world.dir().join("other");
    copy_of("/usr/bin/curl", &other)?;
    // Root makes the mount outside, in a mount namespace that the managed process inherits.
    let script = r#"mount --bind "$0" "$1" && exec "$2" exec --config "$3" --workload billing -- "$1" -sS -o /dev/null -w '%{http_code}\n' "$4""#;
    let url = format!("https://{API}/mounted");
    let (binary, config) = (agent::binary()?, world.config());
    let fixed: [&OsStr; 5] = ["unshare", "--mount", "sh", "-c", script].map(OsStr::new);
    let arguments = [
        other.as_os_str(),
        file.as_os_str(),
        binary.as_os_str(),
        config.as_os_str(),
        url.as_ref(),
    ];
    let reply = world.unmanaged()?.run(fixed.into_iter().chain(arguments))?;
    assert_eq!(status(&reply), 403, "{reply:?}");
    let record = assert_record!(world, "path" = "/mounted", "reason" = "caller_not_allowed");
    let inode = fs::metadata(&other)?.ino();
    assert_eq!(*record.field("exe.inode"), inode, "{record:?}");
    assert!(record.field("exe.path").is_null(), "{record:?}");
    Ok(())
}

#[test]
fn a_units_name_counts_only_where_pid_1_puts_it() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let policy = workload("billing", "", "units = \"api.service\"");
    let world = start(&policy)?;
    let mount = world.cgroup().parent().context("a cgroup without a mount")?;
    let parent = mount.join(world.workload_parent().trim_start_matches('/'));
    let unit = parent.join("callgate-billing.slice/api.service");
    fs::create_dir(&unit)?;
    // No systemd here, so nobody binds the trust bundle into the unit.
    let url = |path: &str| format!("https://{API}{path}");
    let args = ["curl", "-ksS", "-o", "/dev/null", "-w", CODE, &url("/unit")];
    let genuine = Place::in_cgroup(&unit).run(args)?;
    assert_eq!(status(&genuine), 200, "{genuine:?}");
    assert_record!(world, "path" = "/unit", "unit" = "api.service", "status" = 200);

    // Below the cgroup of a command, which no unit is, somebody makes one of that name.
    let forged = parent.join("callgate-billing.slice/exec-forged/api.service");
    fs::create_dir_all(&forged)?;
    let args = ["curl", "-ksS", "-o", "/dev/null", "-w", CODE, &url("/forged")];
    let forged = Place::in_cgroup(&forged).run(args)?;
    assert_eq!(status(&forged), 403, "{forged:?}");
    let record = assert_record!(world, "path" = "/forged", "reason" = "caller_not_allowed");
    assert!(record.text("cgroup.path").ends_with("/api.service"), "{record:?}");
    assert!(record.field("unit").is_null(), "{record:?}");
    Ok(())
}

#[test]
fn a_setuid_program_calls_as_the_user_who_started_it() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let world = start(&workload("billing", "", "user = \"root\""))?;
    let program = world.dir().join("run/setuid-curl");
    copy_of("/usr/bin/curl", &program)?;
    fs::set_permissions(&program, fs::Permissions::from_mode(0o4755))?;
    let program = program.to_str().context("a path")?;
    let inside = world.cgroup().join("workloads/callgate-billing.slice/service");
    fs::create_dir(&inside)?;
    let call = |user: u32, path: &str| {
        let url = format!("https://{API}{path}");
        let args = [program, "-ksS", "-o", "/dev/null", "-w", CODE, &url];
        Place::in_cgroup(&inside).as_user(user).run(args)
    };
    let root = call(0, "/by-root")?;
    assert_eq!(status(&root), 200, "{root:?}");
    let nobody = call(NOBODY, "/by-nobody")?;
    assert_eq!(status(&nobody), 403, "{nobody:?}");
    assert_record!(
        world,
        "path" = "/by-nobody",
        "uid" = NOBODY,
        "reason" = "caller_not_allowed"
    );
    Ok(())
}

#[test]
fn two_workloads_at_once_are_not_mixed_up() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    const PROCESSES: usize = 5;
    let each = wait::fewer(50);
    let mut world = World::new()?;
    let names = ["alpha", "beta"];
    let mut policy = String::new();
    for name in names {
        let host = format!("{name}.example.test");
        world.upstream(Upstream::new(&host).http1())?;
        policy += &workload(name, "", "").replace(API, &host);
    }
    world.policy("identity.toml", &policy)?;
    world.start_agent()?;
    // Each path begins with the caller's process id; each call has a connection of its own. Unverified, because
    // curl would read all roots for each.
    let script = r#"exec curl -ksS --http1.1 -H 'Connection: close' -o /dev/null -Z --parallel-max 20 "https://$0.example.test/$$/[1-$1]""#;
    let mut running = Vec::new();
    for name in names {
        let client = world.workload(name)?;
        for _ in 0..PROCESSES {
            running.push(
                client
                    .command(["sh", "-c", script, name, &each.to_string()])
                    .stderr(Stdio::null())
                    .spawn()?,
            );
        }
    }
    for mut child in running {
        assert!(launch::wait_for(&mut child, launch::CLIENT_LIMIT)?.success());
    }
    let all = PROCESSES * each * names.len();
    let records = calls(&world, all)?;
    assert_eq!(records.len(), all);
    for record in &records {
        let pid = record
            .text("path")
            .split('/')
            .nth(1)
            .unwrap_or_default()
            .to_owned();
        assert_eq!(record.text("pid"), pid, "{record:?}");
        let host = format!("{}.example.test", record.text("workload"));
        assert!(record.text("authority").starts_with(&host), "{record:?}");
        assert_eq!(record.text("sni"), host, "{record:?}");
        assert_eq!(*record.field("status"), 200, "{record:?}");
    }
    let distinct = |field: &str| {
        records
            .iter()
            .map(|record| record.text(field))
            .collect::<BTreeSet<_>>()
            .len()
    };
    assert_eq!((distinct("connection"), distinct("path")), (all, all));
    assert_eq!(distinct("pid"), PROCESSES * names.len());
    Ok(())
}
