//! Looks for sockets that managed processes hold but that were made elsewhere, and cuts them off.
//!
//! The programs see a socket by the cgroup that made it, so one that came in as a descriptor (inherited, or over a
//! Unix socket) is seen by none. A thread of its own reads the processes' descriptors, so that a host with many
//! keeps nobody's connection waiting; it looks into each workload twice a second, less often where that takes long.

mod board;
mod nursery;
mod orders;
mod spaces;

use std::collections::{HashMap, HashSet};
use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use crate::budget::Lines;
use crate::ebpf::foreign::{self, Holder, Standing};
use crate::ebpf::{Marks, Report};
use crate::identity::members::{self, Member};
use crate::identity::process::HeldProcess;

pub(super) use board::Uncut;

use board::Board;
use nursery::Nursery;
use orders::{Asked, Orders};
use spaces::{Before, Spaces};

pub(super) use spaces::{Seen, elsewhere};

/// Between two looks into a workload, at least.
const PAUSE: Duration = Duration::from_millis(500);
/// And at most.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// Looks into one workload take at most one part in this many of one CPU's time, so that one with a million
/// descriptors is not looked into at the cost of the others.
const SHARE: u32 = 50;
/// Sockets that are remembered to be a workload's own; those beyond are examined at each look.
const REMEMBERED: usize = 65_536;
/// Between two looks just after a cgroup was made, if they cost no more than otherwise.
const RESTLESS_PAUSE: Duration = Duration::from_millis(5);
/// So long is just after: a container's process is in its namespace then.
const RESTLESS: Duration = Duration::from_secs(2);

/// A workload to look into.
#[derive(Clone, Debug)]
pub(super) struct Place {
    /// Its number, which its own sockets are marked with.
    pub(super) number: u32,
    /// Its cgroup's id.
    pub(super) id: u64,
    /// Its cgroup's directory.
    pub(super) directory: PathBuf,
    /// Ports that it may take connections on.
    pub(super) listen: Vec<u16>,
    /// Network namespaces besides the agent's that it is served in, at most.
    pub(super) spaces: usize,
}

/// When to look into a workload next.
struct Turn {
    due: Instant,
    /// Not before, whatever happens: looks would cost too much.
    earliest: Instant,
    /// Until then often.
    restless: Instant,
    place: Place,
}

impl Turn {
    fn hurry(&mut self, now: Instant) {
        self.due = self.due.min(self.earliest.max(now));
    }

    /// It was looked into.
    fn looked(&mut self, start: Instant, end: Instant) {
        let cost = (end - start) * SHARE;
        let is_restless = end < self.restless;
        let least = if is_restless { RESTLESS_PAUSE } else { PAUSE };
        self.earliest = end + cost.min(LONGEST_PAUSE);
        self.due = end + cost.clamp(least, LONGEST_PAUSE);
    }
}

/// The thread that looks, and the one that hurries it.
pub(super) struct Watch {
    orders: Orders,
    board: Board,
    thread: JoinHandle<()>,
    nursery: Option<Nursery>,
    count: u64,
}

impl Watch {
    /// Starts them, with nothing to look into yet.
    ///
    /// # Errors
    /// If there is no room for a thread.
    pub(super) fn start(marks: Marks) -> std::io::Result<Self> {
        match foreign::prepare_to_cut_off() {
            Ok(true) => {}
            Ok(false) => tracing::warn!(
                module = foreign::MODULE,
                "the kernel reads no IPsec policies: a datagram socket of IPv4 that is handed to a managed process can't be cut off; load the module (modprobe xfrm_user)"
            ),
            Err(error) => tracing::warn!(%error, "it can't be told whether sockets can be cut off"),
        }
        let (orders, board) = (Orders::default(), Board::default());
        let (taken, found) = (orders.clone(), board.clone());
        let thread = std::thread::Builder::new()
            .name("foreign-sockets".into())
            .spawn(move || watch(Look::new(marks), &taken, &found))?;
        let nursery = Nursery::start(orders.clone());
        let nursery = nursery.inspect_err(|error| {
            tracing::warn!(%error, "the kernel can't tell of new cgroups: containers are served half a second later");
        });
        Ok(Self {
            orders,
            board,
            thread,
            nursery: nursery.ok(),
            count: 0,
        })
    }

    /// Looks into these from now on, and at once.
    pub(super) fn hold(&self, places: Vec<Place>) {
        if let Some(nursery) = &self.nursery {
            nursery.hold(&places);
        }
        self.order(|asked| asked.places = Some(places));
    }

    /// Looks into this workload as soon as it may: something in it is where it is not served, or has just entered.
    pub(super) fn hurry(&self, number: u32) {
        self.order(|asked| {
            asked.hurried.insert(number);
        });
    }

    /// The workload was met in the namespace with this inode, seen or not: the next look confirms it.
    pub(super) fn know(&self, number: u32, inode: u64) {
        self.order(|asked| {
            asked.known.insert((number, inode));
        });
    }

    fn order(&self, order: impl FnOnce(&mut Asked)) {
        if self.thread.is_finished() {
            tracing::error!(
                "nobody looks for sockets that were made outside of the workloads any more; restart the agent"
            );
            return;
        }
        self.orders.give(order);
    }

    /// What was cut off since the last call.
    pub(super) fn reports(&mut self) -> Vec<Report> {
        let reports = self.board.take_reports();
        let cut = reports.iter().map(|report| u64::from(report.suppressed) + 1);
        self.count += cut.sum::<u64>();
        reports
    }

    /// What could not be cut off, since the last call.
    pub(super) fn uncut(&self) -> impl Iterator<Item = Uncut> + use<> {
        self.board.take_uncut()
    }

    /// Which network namespaces the workloads that were looked into since the last call are in.
    pub(super) fn seen(&self) -> impl Iterator<Item = Seen> + use<> {
        self.board.take_seen()
    }

    /// Told when a workload was seen where it was not before.
    pub(super) fn moved(&self) -> Arc<Notify> {
        self.board.moved()
    }

    /// How many sockets were cut off since the start.
    pub(super) fn count(&self) -> u64 {
        self.count
    }
}

fn watch(mut look: Look, orders: &Orders, board: &Board) {
    let mut turns: Vec<Turn> = Vec::new();
    loop {
        let next = turns.iter().map(|turn| turn.due).min();
        let pause = next.map_or(LONGEST_PAUSE, |due| due.saturating_duration_since(Instant::now()));
        obey(orders.take(pause), &mut look, &mut turns);
        for turn in &mut turns {
            let start = Instant::now();
            if turn.due > start {
                continue;
            }
            look.tell_of(&turn.place, board);
            turn.looked(start, Instant::now());
        }
    }
}

fn obey(asked: Asked, look: &mut Look, turns: &mut Vec<Turn>) {
    let now = Instant::now();
    if let Some(places) = asked.places {
        look.forget(&places);
        let turn = |place| Turn {
            due: now,
            earliest: now,
            restless: now,
            place,
        };
        *turns = places.into_iter().map(turn).collect();
    }
    for (number, inode) in asked.known {
        look.before.know(number, inode);
    }
    for turn in turns {
        if asked.restless.contains(&turn.place.number) {
            turn.restless = now + RESTLESS;
            turn.hurry(now);
        }
        if asked.hurried.contains(&turn.place.number) {
            turn.hurry(now);
        }
    }
}

/// One look after another.
struct Look {
    marks: Marks,
    /// Sockets that the last look saw to be the workload's own, by its number. Only while each look meets them again:
    /// the kernel gives the inode number of a closed socket to another some time.
    own: HashMap<u32, HashSet<u64>>,
    /// Sockets that could not be cut off, so that each is said once.
    failed: HashSet<u64>,
    /// Whether a process could not be looked into; said once.
    blind: bool,
    /// Which sockets there are is in the workload's hands, and in its accomplices'.
    lines: Lines<u32>,
    before: Before,
}

impl Look {
    fn new(marks: Marks) -> Self {
        Self {
            marks,
            own: HashMap::new(),
            failed: HashSet::new(),
            blind: false,
            lines: Lines::default(),
            before: Before::new(),
        }
    }

    /// Drops what is remembered of workloads that are no more.
    fn forget(&mut self, places: &[Place]) {
        self.own
            .retain(|number, _| places.iter().any(|place| place.number == *number));
        self.before
            .forget(|number| places.iter().any(|place| place.number == number));
    }

    /// Looks once.
    fn tell_of(&mut self, place: &Place, board: &Board) {
        let mut spaces = Spaces::new();
        self.see_place(place, &mut spaces, board);
        if let Some(seen) = self.before.seen(place.number, spaces) {
            board.see(seen);
        }
    }

    fn see_place(&mut self, place: &Place, spaces: &mut Spaces, board: &Board) {
        let known = self.own.remove(&place.number).unwrap_or_default();
        let mut own = HashSet::new();
        for pid in members::processes(&place.directory) {
            let seen = self.see_process(place, pid, (spaces, board), (&known, &mut own));
            for report in seen.unwrap_or_default() {
                board.report(place.number, report);
            }
        }
        self.own.insert(place.number, own);
    }

    /// `None` if the process has ended, is not the workload's (any more), or is not yet.
    fn see_process(
        &mut self,
        place: &Place,
        pid: u32,
        (spaces, board): (&mut Spaces, &Board),
        (known, own): (&HashSet<u64>, &mut HashSet<u64>),
    ) -> Option<Vec<Report>> {
        let member = Member::open(pid, place.directory.file_name()?)?;
        let process = member.process();
        self.before.see(spaces, place, process);
        let mut reports = Vec::new();
        for (number, inode) in member.sockets() {
            if own.contains(&inode) || (known.contains(&inode) && own.len() < REMEMBERED) {
                own.insert(inode);
                continue;
            }
            let socket = match member.descriptor(number) {
                Ok(socket) => socket,
                Err(rustix::io::Errno::PERM) => {
                    self.say_blind();
                    continue;
                }
                // Closed meanwhile, or the process has ended.
                Err(_) => continue,
            };
            match self.marks.standing(&socket, place.number, &place.listen) {
                Ok(Standing::Own) if own.len() < REMEMBERED => {
                    own.insert(inode);
                }
                Ok(Standing::Own | Standing::Harmless) => {}
                // Its holder keeps it only if it can't be led elsewhere.
                Ok(Standing::LetIn) if foreign::keep_from_dialling(&socket).is_ok() => {}
                Ok(Standing::LetIn | Standing::Foreign) => {
                    reports.extend(self.cut_off((place, process), &socket, inode, board));
                }
                Err(error) => {
                    if let Some(left_out) = self.lines.next(&place.number) {
                        tracing::warn!(%error, pid, left_out, "a socket can't be examined");
                    }
                }
            }
        }
        Some(reports)
    }

    /// What came of it, unless its holder has ended. That it can't be done is said once.
    fn cut_off(
        &mut self,
        (place, process): (&Place, &HeldProcess),
        socket: &OwnedFd,
        inode: u64,
        board: &Board,
    ) -> Option<Report> {
        let peer = foreign::peer(socket);
        let report = || Some(Report::handed_socket(&holder(place, process)?, peer, socket));
        if let Err(error) = foreign::cut_off(socket) {
            // Said again rather than remembered without bound.
            if self.failed.len() >= REMEMBERED {
                self.failed.clear();
            }
            if self.failed.insert(inode) {
                if let Some(left_out) = self.lines.next(&place.number) {
                    tracing::error!(
                        %error,
                        pid = process.pid(),
                        left_out,
                        "a managed process holds a socket that no program sees, and it can't be cut off: end the process"
                    );
                }
                let (holder, why) = (report()?, error.to_string());
                board.uncut(place.number, Uncut { holder, why });
            }
            return None;
        }
        if let Some(left_out) = self.lines.next(&place.number) {
            tracing::warn!(
                pid = process.pid(),
                ?peer,
                left_out,
                "a managed process held a socket that was made outside of its workload; it is cut off"
            );
        }
        report()
    }

    fn say_blind(&mut self) {
        if !std::mem::replace(&mut self.blind, true) {
            tracing::error!(
                "the agent may not look at managed processes' sockets (it needs CAP_SYS_PTRACE): sockets that are handed in from outside go unnoticed"
            );
        }
    }
}

/// The facts that the kernel would have taken; `None` if the process has ended.
fn holder(place: &Place, process: &HeldProcess) -> Option<Holder> {
    let mut comm = [0; 16];
    let name = process.read("comm").ok()?;
    for (to, byte) in comm.iter_mut().zip(name.trim_end().bytes()) {
        *to = byte;
    }
    let exe = process.executable().ok();
    let exe = exe.and_then(|file| nix::sys::stat::fstat(file).ok());
    Some(Holder {
        workload: place.number,
        cgroup: cgroup_id(process, place).unwrap_or(place.id),
        pid: process.pid(),
        start_time: process.start_time().ok()?,
        ids: process.ids().ok()?,
        comm,
        exe: exe.map(|stat| (stat.st_dev, stat.st_ino)),
    })
}

/// The id of the process's own cgroup, the workload's or one below it.
fn cgroup_id(process: &HeldProcess, place: &Place) -> Option<u64> {
    let shown = process.cgroup().ok()??;
    let slice = place.directory.file_name()?;
    let below = Path::new(&shown)
        .components()
        .skip_while(|part| part.as_os_str() != slice)
        .skip(1);
    let directory = place.directory.join(below.collect::<PathBuf>());
    fs::metadata(directory).ok().map(|found| found.ino())
}
