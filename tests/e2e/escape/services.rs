//! Programs outside that act for whoever asks: a command, whoever starts it, can't reach those that its user's session has,
//! in `/tmp` above all.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixListener;
use std::process::Child;

use anyhow::{Context, Result};
use harness::{Bed, Output, World, agent, require, wait};

use super::start;
use crate::identity::{NOBODY, workload};
use crate::units::prepare_ways_out;

/// A directory of a session in `/tmp` and what else a test made there, gone afterwards.
struct Session {
    made: Vec<std::path::PathBuf>,
    server: Option<Child>,
}

impl Drop for Session {
    fn drop(&mut self) {
        if let Some(server) = &mut self.server {
            server.kill().ok();
            server.wait().ok();
        }
        for path in &self.made {
            fs::remove_dir_all(path).or_else(|_| fs::remove_file(path)).ok();
        }
    }
}

/// Who starts a command of nobody's.
#[derive(Clone, Copy, Debug)]
enum Starter {
    Root,
    Itself,
}

const STARTERS: [Starter; 2] = [Starter::Root, Starter::Itself];

/// `callgate exec OPTIONS -- sh -c SCRIPT`, run as nobody.
fn exec(world: &World, starter: Starter, options: &[&str], script: &str) -> Result<Output> {
    exec_through(world, &[], starter, options, script)
}

/// The same, started by a command of root's that runs its further arguments.
fn exec_through(
    world: &World,
    command: &[&str],
    starter: Starter,
    options: &[&str],
    script: &str,
) -> Result<Output> {
    let (binary, config) = (agent::binary()?, world.config());
    let paths = [binary.to_str(), config.to_str()].map(Option::unwrap_or_default);
    let head = [paths[0], "exec", "--config", paths[1], "--workload", "poor"];
    let (itself, user): (&[_], &[_]) = match starter {
        Starter::Root => (&[], &["--user", "nobody"]),
        Starter::Itself => (
            &["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"],
            &[],
        ),
    };
    let script = ["--", "sh", "-c", script];
    world
        .unmanaged()?
        .run([command, itself, &head, user, options, &script].concat())
}

#[test]
fn a_command_can_not_ask_the_users_terminal_to_run_something() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let world = start()?;
    // A directory as tmux makes it, and one with a name that says nothing.
    for name in ["tmux-session", "session"] {
        let dir = tempfile::Builder::new().prefix(&format!("{name}-")).tempdir()?;
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777))?;
        let place = dir.path().to_str().context("a path")?;
        let socket = format!("{place}/default");
        let terminal = world
            .unmanaged()?
            .user(NOBODY)
            .env("HOME", "/nonexistent")
            // Without it tmux takes the shell of the user, and that of nobody runs nothing.
            .env("SHELL", "/bin/sh")
            .command(["tmux", "-D", "-S", &socket, "-f", "/dev/null"])
            .spawn()?;
        let pid = terminal.id();
        let _session = Session {
            made: Vec::new(),
            server: Some(terminal),
        };
        wait::until("the terminal server", wait::PATIENCE, || {
            fs::metadata(&socket).ok()
        })?;
        let ask = |socket: &str, marker: &str| {
            format!("tmux -N -S {socket} new-session -d 'touch {place}/{marker}; sleep 30'")
        };
        for starter in STARTERS {
            // In the directory, and in it as the terminal's server sees it.
            for way in [&socket, &format!("/proc/{pid}/root{socket}")] {
                let inside = exec(&world, starter, &[], &ask(way, "inside"))?;
                assert!(inside.code() != Some(0), "{name} {starter:?} {way}: {inside:?}");
                assert!(!fs::exists(format!("{place}/inside"))?, "{way}");
            }
            // The same does run where the directory is shared.
            let marker = format!("shared-{starter:?}");
            let shared = exec(&world, starter, &["--shared-tmp"], &ask(&socket, &marker))?;
            assert_eq!(shared.code(), Some(0), "{name} {starter:?}: {shared:?}");
            wait::until("the escaped command", wait::PATIENCE, || {
                fs::exists(format!("{place}/{marker}")).ok()?.then_some(())
            })?;
        }
    }
    Ok(())
}

#[test]
fn programs_of_the_host_that_act_for_others_are_out_of_a_commands_reach() -> Result<()> {
    require!(Root, CgroupV2, Btf, Bed);
    let bed = Bed::installed(World::new()?)?;
    bed.policy(&workload("poor", "exec_by = { users = [\"nobody\"] }", ""))?;
    prepare_ways_out(&bed)?;
    let all = ["docker", "systemd-run", "setuid", "bus", "manager"];
    let exec = ["callgate", "exec", "--workload", "poor"];
    let nobody = ["setpriv", "--reuid=nobody", "--clear-groups"];
    let commands = [
        exec.to_vec(),
        [&exec[..], &["--user", "nobody"]].concat(),
        [&nobody[..], &exec].concat(),
    ];
    for command in commands {
        let tried = ["--", "python3", "/opt/ways_out.py"].iter().chain(&all);
        let said = bed.run(command.iter().chain(tried))?.ok()?;
        assert!(said.contains("all tried"), "{command:?}: {said}");
        assert!(!said.contains("OPEN"), "{command:?}: {said}");
    }
    Ok(())
}

#[test]
fn temporary_files_of_before_can_be_used_and_sockets_can_not() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let world = start()?;
    let dir = tempfile::Builder::new().prefix("project-").tempdir()?;
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777))?;
    let project = dir.path().to_str().context("a path")?;
    let name = dir
        .path()
        .file_name()
        .and_then(|name| name.to_str())
        .context("a name")?;
    let (file, link, socket, late) = (
        format!("/tmp/{name}.txt"),
        format!("/tmp/{name}.link"),
        format!("/tmp/{name}.sock"),
        format!("/tmp/{name}.late"),
    );
    fs::write(&file, "before\n")?;
    std::os::unix::fs::symlink(&file, &link)?;
    let _listener = UnixListener::bind(&socket)?;
    let made = [&file, &link, &socket, &late].map(Into::into).into();
    let _made = Session { made, server: None };
    let script = format!(
        "cat {file} {link} && echo kept >{project}/result && test ! -e {socket} && cd {project} && \
        echo new >{late} && chmod 700 {late} && cat {late} && stat -c %a /tmp /var/tmp"
    );
    for starter in STARTERS {
        let reply = exec(&world, starter, &[], &script)?.ok()?;
        assert_eq!(reply, "before\nbefore\nnew\n1777\n1777\n", "{starter:?}");
        let result = dir.path().join("result");
        assert_eq!(fs::read_to_string(&result)?, "kept\n", "{starter:?}");
        fs::remove_file(result)?;
        assert!(!fs::exists(&late)?, "what it puts there is its own");
    }
    Ok(())
}

#[test]
fn a_directory_of_the_hosts_is_no_standard_stream_of_a_command() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let world = start()?;
    for starter in STARTERS {
        let from_directory = ["sh", "-c", "exec \"$@\" </run", "sh"];
        let refused = exec_through(&world, &from_directory, starter, &[], "echo ran")?;
        assert_ne!(refused.code(), Some(0), "{starter:?}: {refused:?}");
        assert_eq!(refused.stdout, "");
        assert!(
            refused.stderr.contains("standard input is a directory"),
            "{refused:?}"
        );
    }
    Ok(())
}

#[test]
fn what_others_may_not_look_at_does_not_keep_a_command_from_starting() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let world = start()?;
    let dir = tempfile::Builder::new().prefix("mounted-").tempdir()?;
    let dir = dir.path().to_str().context("a path")?;
    let mount_fuse = [
        "unshare",
        "--mount",
        "/usr/bin/python3",
        "-c",
        include_str!("fuse.py"),
        dir,
    ];
    let unlisted = "mount -t tmpfs -o mode=1733 none /var/tmp && exec \"$@\"";
    let unlisted = ["unshare", "--mount", "sh", "-c", unlisted, "sh"];
    let use_it = "echo mine >/var/tmp/mine && cat /var/tmp/mine";
    for starter in STARTERS {
        let script = format!("test ! -e {dir} && echo left out");
        let reply = exec_through(&world, &mount_fuse, starter, &[], &script)?.ok()?;
        assert_eq!(reply, "left out\n", "{starter:?}");
        let reply = exec_through(&world, &unlisted, starter, &[], use_it)?.ok()?;
        assert_eq!(reply, "mine\n", "{starter:?}");
    }
    Ok(())
}

#[test]
fn nothing_runs_from_temporary_files_where_the_host_forbids_it() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let world = start()?;
    let script =
        "printf '#!/bin/sh\\necho ran\\n' >/var/tmp/mine && chmod 755 /var/tmp/mine && /var/tmp/mine";
    for (option, code) in [("exec", 0), ("noexec", 126)] {
        let mounted = format!("mount -t tmpfs -o mode=1777,{option} none /var/tmp && exec \"$@\"");
        let mounted = ["unshare", "--mount", "sh", "-c", &mounted, "sh"];
        for starter in STARTERS {
            let said = exec_through(&world, &mounted, starter, &[], script)?;
            assert_eq!(said.code(), Some(code), "{option} {starter:?}: {said:?}");
        }
    }
    Ok(())
}

#[test]
fn a_command_that_can_not_start_where_it_was_is_told() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let world = start()?;
    let elsewhere = "cd $(mktemp -d) && rmdir $(pwd) && exec \"$@\"";
    for starter in STARTERS {
        let told = exec_through(&world, &["sh", "-c", elsewhere, "sh"], starter, &[], "pwd")?;
        assert_eq!(told.stdout, "/\n", "{starter:?}: {told:?}");
        assert!(told.stderr.contains("working directory"), "{starter:?}: {told:?}");
    }
    Ok(())
}

#[test]
fn an_ordinary_users_command_is_that_user_without_rights() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let world = start()?;
    let script = format!(
        "id -u; id -g; grep -E '^(Cap|NoNewPrivs)' /proc/self/status; cat /proc/self/uid_map; \
        echo >>{} && echo written; touch /sys/x && echo made; mount -t tmpfs none /tmp && echo mounted; exit 0",
        world.config().display()
    );
    let told = exec(&world, Starter::Itself, &[], &script)?;
    let words: Vec<_> = told.stdout.split_whitespace().collect();
    let nothing = "0000000000000000";
    let id = NOBODY.to_string();
    let caps = ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"].map(|set| [set, nothing]);
    let mut expected = vec![id.as_str(), id.as_str()];
    expected.extend(caps.iter().flatten());
    expected.extend(["NoNewPrivs:", "1", &id, &id, "1"]);
    assert_eq!(words, expected, "{told:?}");
    for refusal in ["Permission denied", "Read-only file system", "must be superuser"] {
        assert!(told.stderr.contains(refusal), "{refusal}: {told:?}");
    }
    Ok(())
}

#[test]
fn without_user_namespaces_an_ordinary_users_command_is_refused_and_doctor_foretells_it() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let world = start()?;
    let (binary, config) = (agent::binary()?, world.config());
    // The kernel makes none for a process in another root (create_user_ns).
    let root = world.dir().join("root");
    fs::create_dir(&root)?;
    let in_another_root = |words: &str| {
        let script = format!(
            "mount --rbind / {0} && exec unshare --root={0} {words}",
            root.display()
        );
        world
            .unmanaged()?
            .run(["unshare", "--mount", "sh", "-c", &script])
    };
    let (binary, config) = (binary.display(), config.display());
    let refused = in_another_root(&format!(
        "setpriv --reuid {NOBODY} --regid {NOBODY} --clear-groups {binary} exec --config {config} --workload poor -- echo ran"
    ))?;
    assert_ne!(refused.code(), Some(0), "{refused:?}");
    assert_eq!(refused.stdout, "");
    for words in [
        "can't make a user namespace: EPERM",
        "user.max_user_namespaces",
        "--user",
    ] {
        assert!(refused.stderr.contains(words), "{words}: {refused:?}");
    }
    let line = |said: &Output| {
        let lines = said.stdout.lines();
        let mut of_check = lines.skip_while(|line| !line[4..].starts_with(" user namespaces"));
        of_check
            .next()
            .map(ToOwned::to_owned)
            .context("no line of the check")
    };
    let forbidden = line(&in_another_root(&format!("{binary} doctor --config {config}"))?)?;
    assert!(forbidden.starts_with("warn"), "{forbidden}");
    assert!(
        forbidden.ends_with("can't make a user namespace: EPERM: Operation not permitted"),
        "{forbidden}"
    );
    let open = line(&world.callgate("doctor", &[])?)?;
    assert!(
        open.starts_with("pass") && open.contains("can start commands"),
        "{open}"
    );
    Ok(())
}

#[test]
fn variables_of_the_session_do_not_reach_the_command() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let world = start()?;
    let client = world
        .workload("poor")?
        .env("TMUX", "/x,1,0")
        .env("SSH_AUTH_SOCK", "/x");
    let client = client
        .env("DBUS_SESSION_BUS_ADDRESS", "unix:path=/x")
        .env("KEPT", "yes");
    for client in [client.clone(), client.user(NOBODY)] {
        let script = "echo \"$TMUX|$SSH_AUTH_SOCK|$DBUS_SESSION_BUS_ADDRESS|$KEPT\"";
        assert_eq!(client.run(["sh", "-c", script])?.ok()?, "|||yes\n");
    }
    Ok(())
}
