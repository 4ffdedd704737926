//! Supervisor and worker stopped by SIGSTOP, one or both: callers are served or refused, and nobody goes out directly.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use harness::launch::wait_for;
use harness::{World, require, wait};
use nix::sys::signal::Signal;

use super::{COULD_NOT_CONNECT, signal, start};
use crate::audit::{call, call_until, worker};
use crate::identity::{API, CODE, status};
use crate::load::{check_records, settled};

/// The kernel refuses when the worker has given no sign of life for 2 s.
const LIVENESS: Duration = Duration::from_secs(2);
/// How a call ended, as [`DIAL`] says it.
const SERVED: &str = "200 0";
const REFUSED: &str = "000 7";
const TIMED_OUT: &str = "000 28";
/// Calls without a pause, each for a second at most, until standard input ends; says the status and curl's exit code of
/// each.
const DIAL: &str = r#"
trap enough=1 TERM
exec 3<&0
(read -r end; kill -TERM $$) <&3 &
turn=0
while [ -z "$enough" ]; do
    turn=$((turn + 1))
    curl -sS -m 1 -o /dev/null -w '%{http_code} %{exitcode}\n' "$0/$turn"
done"#;

#[test]
fn a_stopped_worker_refuses_connections_until_it_goes_on() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let world = start()?;
    assert_eq!(call(&world, "/before")?, 200);
    let stopped = worker(&world)?;
    signal(stopped, Signal::SIGSTOP)?;
    let since = Instant::now();
    let url = format!("https://{API}/meanwhile");
    let client = world.workload("billing")?;
    // Until then connections wait for a worker that may go on.
    let args = ["curl", "-sS", "-m", "1", "-o", "/dev/null", "-w", CODE, &url];
    wait::until("a refused connection", wait::PATIENCE, || {
        let reply = client.run(args).ok()?;
        assert_eq!(status(&reply), 0, "{reply:?}");
        (reply.code() == COULD_NOT_CONNECT).then_some(())
    })?;
    let took = since.elapsed();
    assert!(took < LIVENESS + Duration::from_secs(3), "{took:?}");
    let reply = client.run(args)?;
    assert_eq!(reply.code(), COULD_NOT_CONNECT, "{reply:?}");
    signal(stopped, Signal::SIGCONT)?;
    call_until(&world, "/after/", 200)?;
    assert_eq!(worker(&world)?, stopped);
    Ok(())
}

/// Managed callers that were enrolled before anything was stopped.
pub(crate) struct Dials {
    child: Child,
    said: PathBuf,
}

impl Dials {
    /// Starts them as `command` does with these arguments.
    pub(crate) fn start(world: &World, command: impl FnOnce(&[&str]) -> Command) -> Result<Self> {
        let (said, url) = (world.dir().join("dials"), format!("https://{API}/dial"));
        let child = command(&["sh", "-c", DIAL, &url])
            .stdin(Stdio::piped())
            .stdout(File::create(&said)?)
            .spawn()?;
        let dials = Self { child, said };
        dials.until("served", |line| line == SERVED)?;
        Ok(dials)
    }

    fn lines(&self) -> Result<Vec<String>> {
        let text = fs::read_to_string(&self.said)?;
        let whole = text.rsplit_once('\n').map_or("", |(lines, _)| lines);
        Ok(whole.lines().map(ToOwned::to_owned).collect())
    }

    /// Waits for a further call that ended like this.
    fn until(&self, what: &str, is: impl Fn(&str) -> bool) -> Result<()> {
        let before = self.lines()?.len();
        wait::until(what, wait::PATIENCE, || {
            let lines = self.lines().ok()?;
            lines.iter().skip(before).any(|line| is(line)).then_some(())
        })
    }

    /// Ends them. One that went out directly was answered by the upstream, which wants a token.
    pub(crate) fn end(mut self) -> Result<()> {
        drop(self.child.stdin.take());
        ensure!(wait_for(&mut self.child, wait::PATIENCE)?.success());
        let said = self.lines()?;
        let answered: Vec<_> = said.iter().filter(|line| !line.starts_with("000 ")).collect();
        assert!(answered.iter().all(|line| *line == SERVED), "{answered:?}");
        Ok(())
    }
}

/// Stops these, by `signal`, for longer than the kernel takes a worker without a pulse for alive, and has them go on.
fn stop_for_a_while(
    dials: &Dials,
    signal: impl Fn(u32, Signal) -> Result<()>,
    pids: &[u32],
    meanwhile: &[&str],
) -> Result<()> {
    for pid in pids {
        signal(*pid, Signal::SIGSTOP)?;
    }
    let since = Instant::now();
    let came = wait::until("the time", wait::PATIENCE, || {
        (since.elapsed() > LIVENESS * 2).then_some(())
    })
    .and_then(|()| dials.until("a call meanwhile", |line| meanwhile.contains(&line)));
    for pid in pids {
        signal(*pid, Signal::SIGCONT)?;
    }
    came?;
    dials.until("a call afterwards", |line| line == SERVED)
}

/// Each of them stopped, and both.
pub(crate) fn stop_each(
    dials: &Dials,
    signal: impl Fn(u32, Signal) -> Result<()> + Copy,
    supervisor: u32,
    serving: u32,
) -> Result<()> {
    // What a worker must ask its supervisor for waits for it.
    stop_for_a_while(dials, signal, &[supervisor], &[SERVED, REFUSED, TIMED_OUT])?;
    stop_for_a_while(dials, signal, &[serving], &[REFUSED])?;
    stop_for_a_while(dials, signal, &[supervisor, serving], &[REFUSED])?;
    stop_for_a_while(dials, signal, &[serving, supervisor], &[REFUSED])
}

#[test]
fn whichever_of_supervisor_and_worker_is_stopped_nobody_goes_out_directly() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let world = start()?;
    let client = world.workload("billing")?;
    let dials = Dials::start(&world, |args| client.command(args))?;
    stop_each(&dials, signal, world.agent()?.pid(), worker(&world)?)?;
    dials.end()?;
    let (mut records, arrived) = settled(&world)?;
    // Who gave up before a request was read has said no path.
    records.remove("-");
    check_records(&records, &arrived);
    Ok(())
}
