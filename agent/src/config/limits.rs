//! The keys of `[limits]`: what each may be, what it sets, and what it is for.

use std::time::Duration;

use super::Limits;

/// One key; its value is a whole number.
#[derive(Debug)]
pub(super) struct Limit {
    pub(super) key: &'static str,
    /// The least and the greatest value.
    pub(super) range: (u64, u64),
    /// What the shipped file says of it and of those after it that say nothing.
    pub(super) about: &'static str,
    place: Place,
}

/// Where the number goes, and in which unit it is given.
#[derive(Debug)]
enum Place {
    Seconds(fn(&mut Limits) -> &mut Duration),
    Size(usize, fn(&mut Limits) -> &mut usize),
    Count(fn(&mut Limits) -> &mut u32),
    Percent(fn(&mut Limits) -> &mut u8),
}

use Place::{Count, Percent, Seconds, Size};

const KIB: usize = 1024;
const MIB: usize = 1024 * 1024;

const fn limit(key: &'static str, least: u64, greatest: u64, place: Place, about: &'static str) -> Limit {
    Limit {
        key,
        range: (least, greatest),
        about,
        place,
    }
}

/// In the order of the shipped file.
pub(super) const ALL: &[Limit] = &[
    limit(
        "client_hello_kib",
        4,
        1024,
        Size(KIB, |to| &mut to.client_hello_size),
        "A TLS ClientHello.",
    ),
    limit(
        "client_hello_seconds",
        1,
        600,
        Seconds(|to| &mut to.client_hello_timeout),
        "",
    ),
    limit(
        "headers_kib",
        8,
        1024,
        Size(KIB, |to| &mut to.headers_size),
        "A request's headers.",
    ),
    limit("headers_count", 16, 1000, Size(1, |to| &mut to.headers_count), ""),
    limit(
        "headers_seconds",
        1,
        600,
        Seconds(|to| &mut to.headers_timeout),
        "",
    ),
    limit(
        "idle_seconds",
        1,
        86_400,
        Seconds(|to| &mut to.idle_timeout),
        "A connection on which nothing happens, and a peer that takes no bytes.",
    ),
    limit("write_seconds", 1, 3600, Seconds(|to| &mut to.write_timeout), ""),
    limit(
        "connect_seconds",
        1,
        600,
        Seconds(|to| &mut to.connect_timeout),
        "An upstream: the connection, TLS included; and the head of its answer.",
    ),
    limit(
        "answer_seconds",
        1,
        86_400,
        Seconds(|to| &mut to.answer_timeout),
        "",
    ),
    limit(
        "h2_streams",
        1,
        10_000,
        Count(|to| &mut to.h2_streams),
        "One HTTP/2 connection: streams at once, resets within a time.",
    ),
    limit("h2_resets", 10, 100_000, Count(|to| &mut to.h2_resets), ""),
    limit(
        "h2_resets_window_seconds",
        1,
        600,
        Seconds(|to| &mut to.h2_resets_window),
        "",
    ),
    limit(
        "connections",
        1,
        1_000_000,
        Size(1, |to| &mut to.connections),
        "One workload: connections at once, calls under way, buffers together. A connection and a call under way count\n\
         for 32 KiB of buffers each.",
    ),
    limit("calls", 1, 8192, Count(|to| &mut to.calls), ""),
    limit("buffers_mib", 1, 65_536, Size(MIB, |to| &mut to.buffers_size), ""),
    limit(
        "detect_seconds",
        1,
        600,
        Seconds(|to| &mut to.detect_timeout),
        "The first bytes, which tell TLS from HTTP.",
    ),
    limit(
        "memory_percent",
        10,
        100,
        Percent(|to| &mut to.memory_percent),
        "New connections are refused while the agent takes up more than this share of its unit's MemoryMax.",
    ),
];

impl Limit {
    /// Sets it to a number of its range.
    pub(super) fn set(&self, limits: &mut Limits, number: u64) {
        match self.place {
            Seconds(place) => *place(limits) = Duration::from_secs(number),
            Size(unit, place) => {
                let number = usize::try_from(number).unwrap_or(usize::MAX);
                *place(limits) = number.saturating_mul(unit);
            }
            Count(place) => *place(limits) = u32::try_from(number).unwrap_or(u32::MAX),
            Percent(place) => *place(limits) = u8::try_from(number).unwrap_or(u8::MAX),
        }
    }

    /// The number that stands for what `limits` has.
    pub(super) fn of(&self, limits: &Limits) -> u64 {
        let mut limits = limits.clone();
        match self.place {
            Seconds(place) => place(&mut limits).as_secs(),
            Size(unit, place) => u64::try_from(*place(&mut limits) / unit).unwrap_or(u64::MAX),
            Count(place) => u64::from(*place(&mut limits)),
            Percent(place) => u64::from(*place(&mut limits)),
        }
    }
}
