//! Who made a connection, taken by the kernel in the caller's own context.

use core::net::{IpAddr, Ipv6Addr, SocketAddr};

/// Bits of [`Origin::present`].
pub mod present {
    /// `tgid` and `tid` hold in the agent's pid namespace.
    pub const PID: u32 = 1;
    /// `start_time` holds.
    pub const START_TIME: u32 = 2;
    /// `exec_id` holds.
    pub const EXEC_ID: u32 = 4;
    /// `exe_dev` and `exe_ino` hold.
    pub const EXE: u32 = 8;
    /// The facts of the caller (uid, gid, comm, cgroup) hold; packets dropped outside a caller have none.
    pub const CALLER: u32 = 16;
}

/// The facts of one connection. Read through the getters: they say what is absent.
#[repr(C)]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Origin {
    #[doc(hidden)]
    pub socket_cookie: u64,
    #[doc(hidden)]
    pub cgroup_id: u64,
    #[doc(hidden)]
    pub netns_cookie: u64,
    #[doc(hidden)]
    pub start_time: u64,
    #[doc(hidden)]
    pub exec_id: u64,
    #[doc(hidden)]
    pub exe_ino: u64,
    #[doc(hidden)]
    pub stamp: u64,
    #[doc(hidden)]
    pub exe_dev: u32,
    #[doc(hidden)]
    pub workload: u32,
    #[doc(hidden)]
    pub tgid: u32,
    #[doc(hidden)]
    pub tid: u32,
    #[doc(hidden)]
    pub uid: u32,
    #[doc(hidden)]
    pub gid: u32,
    #[doc(hidden)]
    pub comm: [u8; 16],
    #[doc(hidden)]
    pub dst_addr: [u8; 16],
    #[doc(hidden)]
    pub dst_port: u16,
    #[doc(hidden)]
    pub protocol: u8,
    #[doc(hidden)]
    pub pad: u8,
    #[doc(hidden)]
    pub present: u32,
}

impl Origin {
    /// All zero: nothing known.
    pub const EMPTY: Self = Self {
        socket_cookie: 0,
        cgroup_id: 0,
        netns_cookie: 0,
        start_time: 0,
        exec_id: 0,
        exe_ino: 0,
        stamp: 0,
        exe_dev: 0,
        workload: 0,
        tgid: 0,
        tid: 0,
        uid: 0,
        gid: 0,
        comm: [0; 16],
        dst_addr: [0; 16],
        dst_port: 0,
        protocol: 0,
        pad: 0,
        present: 0,
    };

    const fn has(&self, fact: u32) -> bool {
        self.present & fact == fact
    }

    /// The kernel's cookie of the client's socket, unique while the host runs.
    #[must_use]
    pub const fn socket_cookie(&self) -> u64 {
        self.socket_cookie
    }

    /// The caller's cgroup id: the inode of its directory.
    #[must_use]
    pub const fn cgroup_id(&self) -> u64 {
        self.cgroup_id
    }

    /// The network namespace's cookie, as `SO_NETNS_COOKIE` gives it.
    #[must_use]
    pub const fn netns_cookie(&self) -> u64 {
        self.netns_cookie
    }

    /// The workload's number, as it was armed.
    #[must_use]
    pub const fn workload(&self) -> u32 {
        self.workload
    }

    /// The process id in the agent's pid namespace.
    #[must_use]
    pub const fn tgid(&self) -> Option<u32> {
        if self.has(present::PID) {
            Some(self.tgid)
        } else {
            None
        }
    }

    /// The thread id in the agent's pid namespace.
    #[must_use]
    pub const fn tid(&self) -> Option<u32> {
        if self.has(present::PID) {
            Some(self.tid)
        } else {
            None
        }
    }

    /// When the process (its group leader) started: ns of CLOCK_BOOTTIME. `/proc/PID/stat` field 22 is this in ticks.
    #[must_use]
    pub const fn start_time(&self) -> Option<u64> {
        if self.has(present::START_TIME) {
            Some(self.start_time)
        } else {
            None
        }
    }

    /// `task_struct.self_exec_id`: grows with each exec of the process.
    #[must_use]
    pub const fn exec_id(&self) -> Option<u64> {
        if self.has(present::EXEC_ID) {
            Some(self.exec_id)
        } else {
            None
        }
    }

    /// Device (as `st_dev` has it) and inode of the executable.
    #[must_use]
    pub const fn exe(&self) -> Option<(u64, u64)> {
        if self.has(present::EXE) {
            Some((st_dev(self.exe_dev), self.exe_ino))
        } else {
            None
        }
    }

    /// The calling thread's user in the initial user namespace.
    #[must_use]
    pub const fn uid(&self) -> u32 {
        self.uid
    }

    /// The calling thread's group in the initial user namespace.
    #[must_use]
    pub const fn gid(&self) -> u32 {
        self.gid
    }

    /// The calling thread's name, up to the first NUL. The process chooses it: for show only.
    #[must_use]
    pub fn comm(&self) -> &[u8] {
        self.comm.split(|byte| *byte == 0).next().unwrap_or_default()
    }

    /// When connect() was called: ns of CLOCK_BOOTTIME.
    #[must_use]
    pub const fn stamp(&self) -> u64 {
        self.stamp
    }

    /// Where the process meant to connect; a v4-mapped address is given as IPv4.
    #[must_use]
    pub const fn destination(&self) -> SocketAddr {
        SocketAddr::new(address(self.dst_addr), self.dst_port)
    }

    /// IANA protocol number: 6 for TCP, 17 for UDP.
    #[must_use]
    pub const fn protocol(&self) -> u8 {
        self.protocol
    }

    /// Whether the facts were taken in the caller's context.
    #[must_use]
    pub const fn has_caller(&self) -> bool {
        self.has(present::CALLER)
    }
}

/// Reads integers off a byte string, in this host's order.
struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, tail) = self.0.split_first_chunk::<N>()?;
        self.0 = tail;
        Some(*head)
    }

    fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_ne_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_ne_bytes)
    }
}

impl Origin {
    /// Bytes of an origin.
    pub const SIZE: usize = size_of::<Self>();

    /// Reads what the kernel wrote (or [`Self::to_bytes`]); `None` if it is too short. Field order is the layout.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let mut from = Reader(bytes);
        Some(Self {
            socket_cookie: from.u64()?,
            cgroup_id: from.u64()?,
            netns_cookie: from.u64()?,
            start_time: from.u64()?,
            exec_id: from.u64()?,
            exe_ino: from.u64()?,
            stamp: from.u64()?,
            exe_dev: from.u32()?,
            workload: from.u32()?,
            tgid: from.u32()?,
            tid: from.u32()?,
            uid: from.u32()?,
            gid: from.u32()?,
            comm: from.take()?,
            dst_addr: from.take()?,
            dst_port: from.take().map(u16::from_ne_bytes)?,
            protocol: from.take::<1>()?[0],
            pad: from.take::<1>()?[0],
            present: from.u32()?,
        })
    }

    /// The same bytes as in kernel memory, for handing an origin to another process of this host.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; Self::SIZE] {
        let mut bytes = [0; Self::SIZE];
        let mut rest = bytes.as_mut_slice();
        let words = [
            self.socket_cookie,
            self.cgroup_id,
            self.netns_cookie,
            self.start_time,
            self.exec_id,
            self.exe_ino,
            self.stamp,
        ];
        for word in words {
            rest = put(rest, &word.to_ne_bytes());
        }
        for half in [
            self.exe_dev,
            self.workload,
            self.tgid,
            self.tid,
            self.uid,
            self.gid,
        ] {
            rest = put(rest, &half.to_ne_bytes());
        }
        rest = put(rest, &self.comm);
        rest = put(rest, &self.dst_addr);
        rest = put(rest, &self.dst_port.to_ne_bytes());
        rest = put(rest, &[self.protocol, self.pad]);
        put(rest, &self.present.to_ne_bytes());
        bytes
    }
}

/// Copies `part` to the front and gives what follows; the layout's asserts say that it fits.
fn put<'a>(to: &'a mut [u8], part: &[u8]) -> &'a mut [u8] {
    match to.split_at_mut_checked(part.len()) {
        Some((head, tail)) => {
            head.copy_from_slice(part);
            tail
        }
        None => &mut [],
    }
}

/// The address in its own family.
#[must_use]
pub const fn address(bytes: [u8; 16]) -> IpAddr {
    Ipv6Addr::from_octets(bytes).to_canonical()
}

/// From the kernel's `dev_t` (12 bits major, 20 bits minor) to `stat`'s (include/linux/kdev_t.h, new_encode_dev).
const fn st_dev(dev: u32) -> u64 {
    let (major, minor) = ((dev >> 20) as u64, (dev & 0xf_ffff) as u64);
    (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_survives_the_way_through_bytes() {
        let mut origin = Origin::EMPTY;
        origin.socket_cookie = 1;
        origin.exe_ino = u64::MAX - 1;
        origin.gid = 7;
        origin.comm[0] = b'c';
        origin.dst_addr[15] = 9;
        origin.dst_port = 443;
        origin.protocol = 6;
        origin.present = 31;
        assert_eq!(Origin::from_bytes(&origin.to_bytes()), Some(origin));
        assert_eq!(Origin::from_bytes(&origin.to_bytes()[1..]), None);
    }

    #[test]
    fn kernel_devices_become_those_of_stat() {
        assert_eq!(st_dev((254 << 20) | 1), 0xfe01);
        assert_eq!(st_dev((8 << 20) | 0x123), 0x10_0823);
    }

    #[test]
    fn a_mapped_destination_is_an_ipv4_one() {
        let mut origin = Origin::EMPTY;
        origin.dst_addr = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 192, 0, 2, 1];
        assert!(origin.destination().is_ipv4());
    }
}
