//! What looks brought and the supervisor has not taken yet. Of namespaces that is the last look at each workload, of
//! sockets a few of each workload and the number of the others: a supervisor that is late finds no more than that.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::Seen;
use crate::ebpf::Report;

/// Sockets of one workload that are reported one by one; the last report counts the others.
const REPORTS: usize = 64;

/// Shared by the thread that looks and who takes.
#[derive(Clone, Debug, Default)]
pub(super) struct Board(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    found: Mutex<Found>,
    moved: Arc<Notify>,
}

#[derive(Debug, Default)]
struct Found {
    seen: BTreeMap<u32, Seen>,
    reports: BTreeMap<u32, Vec<Report>>,
    uncut: BTreeMap<u32, Vec<Uncut>>,
}

/// A socket that no program sees and that could not be cut off.
#[derive(Debug)]
pub(in crate::supervisor) struct Uncut {
    /// Who holds it.
    pub(in crate::supervisor) holder: Report,
    /// Why it could not.
    pub(in crate::supervisor) why: String,
}

impl Board {
    /// Told when a workload is where it was not at the look before.
    pub(super) fn moved(&self) -> Arc<Notify> {
        Arc::clone(&self.0.moved)
    }

    /// Where a workload is, instead of what was found before.
    pub(super) fn see(&self, seen: Seen) {
        let is_news = seen.is_news;
        self.lock().seen.insert(seen.number, seen);
        if is_news {
            self.0.moved.notify_one();
        }
    }

    /// A socket that was cut off.
    pub(super) fn report(&self, number: u32, report: Report) {
        let mut found = self.lock();
        let of_it = found.reports.entry(number).or_default();
        if let Some(last) = of_it.get_mut(REPORTS - 1) {
            last.suppressed = last.suppressed.saturating_add(1);
        } else {
            of_it.push(report);
        }
    }

    /// A socket that could not be cut off. Beyond so many of a workload at once the others stand in the agent's log alone.
    pub(super) fn uncut(&self, number: u32, uncut: Uncut) {
        let mut found = self.lock();
        let of_it = found.uncut.entry(number).or_default();
        if of_it.len() < REPORTS {
            of_it.push(uncut);
        }
    }

    /// Takes those.
    pub(super) fn take_uncut(&self) -> impl Iterator<Item = Uncut> + use<> {
        std::mem::take(&mut self.lock().uncut).into_values().flatten()
    }

    /// Takes the sockets.
    pub(super) fn take_reports(&self) -> Vec<Report> {
        let reports = std::mem::take(&mut self.lock().reports);
        reports.into_values().flatten().collect()
    }

    /// Takes the namespaces.
    pub(super) fn take_seen(&self) -> impl Iterator<Item = Seen> + use<> {
        std::mem::take(&mut self.lock().seen).into_values()
    }

    fn lock(&self) -> MutexGuard<'_, Found> {
        self.0.found.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::ebpf::{Origin, Reason};

    #[test]
    fn who_is_late_finds_the_last_look_and_so_many_sockets_with_the_number_of_the_rest() {
        let board = Board::default();
        for inode in 0..1000 {
            let file = std::fs::File::open("/proc/self/ns/net").unwrap();
            board.see(Seen {
                number: 7,
                began: Instant::now(),
                is_news: true,
                is_crowded: false,
                present: BTreeMap::from([(inode, file.into())]),
            });
            let report = Report {
                reason: Reason::HandedSocket,
                origin: Origin::EMPTY,
                suppressed: 0,
            };
            board.report(7, report);
        }
        let seen: Vec<Seen> = board.take_seen().collect();
        assert_eq!(seen.len(), 1);
        assert!(seen[0].present.contains_key(&999));
        let reports = board.take_reports();
        assert_eq!(reports.len(), REPORTS);
        assert_eq!(reports.iter().map(|one| one.suppressed + 1).sum::<u32>(), 1000);
        assert!(board.take_seen().next().is_none() && board.take_reports().is_empty());
    }
}
