//! What the kernel counted instead of reporting it: events past a workload's budget, or for which there was no room.

use std::os::fd::AsFd as _;

use aya::maps::MapError;
use callgate_common::flow::SuppressedKey;
use callgate_common::names::{SUPPRESSED, SUPPRESSED_DIRECT};
use callgate_common::{Origin, Reason};

use super::workload::table;
use super::{Error, Programs, Report, sys};

impl Programs {
    /// Takes out what was counted since the last call: one report for each reason of each workload, and for each
    /// destination of direct connections. To be called about once a second. What another CPU adds to an entry in the
    /// moment when it is taken out is lost; `event_suppressed` has it still.
    ///
    /// # Errors
    /// If a map can't be read; what was not taken out is there at the next call, and what was is in `reports`.
    pub fn take_suppressed(&mut self, reports: &mut Vec<Report>) -> Result<(), Error> {
        for name in [SUPPRESSED, SUPPRESSED_DIRECT] {
            let keys: Vec<SuppressedKey> = table::<SuppressedKey, u64>(&mut self.ebpf, name)?
                .keys()
                .collect::<Result<_, MapError>>()
                .map_err(|source| Error::map(name, source))?;
            if keys.is_empty() {
                continue;
            }
            let map = self.pins.map(name)?;
            for key in keys {
                let taken = sys::take(map.as_fd(), &key);
                let count = taken.map_err(|source| Error::file("read the map", name, source))?;
                reports.extend(count.and_then(|count| report(&key, count)));
            }
        }
        Ok(())
    }
}

fn report(key: &SuppressedKey, count: u64) -> Option<Report> {
    let more = count.checked_sub(1)?;
    Some(Report {
        reason: Reason::from_number(key.reason)?,
        origin: Origin {
            workload: key.workload,
            dst_addr: key.addr,
            dst_port: key.port,
            protocol: key.protocol,
            ..Origin::EMPTY
        },
        suppressed: u32::try_from(more).unwrap_or(u32::MAX),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_count_is_one_report_of_so_many() {
        let key = SuppressedKey {
            workload: 7,
            reason: Reason::Direct as u32,
            addr: [0; 16],
            port: 443,
            protocol: 6,
            pad: 0,
        };
        let of_many = report(&key, 12).unwrap();
        assert_eq!((of_many.reason, of_many.suppressed), (Reason::Direct, 11));
        assert_eq!(of_many.origin.destination().port(), 443);
        assert!(!of_many.origin.has_caller());
        assert!(report(&key, 0).is_none());
    }
}
