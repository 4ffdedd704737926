//! This host's own IPv6 addresses, as the kernel programs know them: IPv6 routing sends from any address that a socket is
//! bound to, so the programs must tell whose answers would leave the host.

use std::collections::HashSet;
use std::{fs, io};

use callgate_common::names::OWN_ADDRESSES;

use super::workload::{absent_ok, table};
use super::{Error, Programs};

/// Of the thread's namespace; below /proc/PID, the part of /proc that `ProcSubset=pid` leaves.
const FILE: &str = "/proc/thread-self/net/if_inet6";

impl Programs {
    /// Reads the addresses of this process's network namespace anew. To be called about twice a second: a socket that is
    /// bound to an address which came since is refused until then.
    ///
    /// # Errors
    /// If the addresses can't be read, or there are more than the table takes.
    pub fn keep_addresses(&mut self) -> Result<(), Error> {
        write(&mut self.ebpf)
    }
}

/// What is new first, then what is gone.
pub(super) fn write(ebpf: &mut aya::Ebpf) -> Result<(), Error> {
    let present = read()?;
    let mut known = table::<[u8; 16], u8>(ebpf, OWN_ADDRESSES)?;
    let before: HashSet<[u8; 16]> = known
        .keys()
        .collect::<Result<_, _>>()
        .map_err(|source| Error::map(OWN_ADDRESSES, source))?;
    for address in present.difference(&before) {
        known
            .insert(address, 1, 0)
            .map_err(|source| Error::map(OWN_ADDRESSES, source))?;
    }
    for address in before.difference(&present) {
        absent_ok(OWN_ADDRESSES, known.remove(address))?;
    }
    Ok(())
}

/// Those of the calling thread's network namespace. Read as text, so that the agent needs no netlink socket, by which it
/// could change what routes, addresses and packet filters the host has.
fn read() -> Result<HashSet<[u8; 16]>, Error> {
    match fs::read_to_string(FILE) {
        Ok(text) => Ok(text.lines().filter_map(address).collect()),
        // A kernel without IPv6 has none.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(HashSet::new()),
        Err(source) => Err(Error::file("read", FILE, source)),
    }
}

/// The first field of a line, 32 hexadecimal digits (net/ipv6/addrconf.c, `if6_seq_show`).
fn address(line: &str) -> Option<[u8; 16]> {
    let digits = line
        .split_ascii_whitespace()
        .next()
        .filter(|digits| digits.len() == 32)?;
    u128::from_str_radix(digits, 16).ok().map(u128::to_be_bytes)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv6Addr;

    use super::*;

    #[test]
    fn an_address_is_taken_from_the_kernels_line() {
        let line = "fe80000000000000f03c91fffe24b2a1 02 40 20 80     eth0";
        let found = address(line).map(Ipv6Addr::from);
        assert_eq!(found, Some("fe80::f03c:91ff:fe24:b2a1".parse().unwrap()));
        assert_eq!(address(""), None);
    }

    #[test]
    fn this_hosts_addresses_are_those_that_netlink_gives() {
        let told: HashSet<[u8; 16]> = nix::ifaddrs::getifaddrs()
            .unwrap()
            .filter_map(|interface| Some(interface.address?.as_sockaddr_in6()?.ip().octets()))
            .collect();
        assert_eq!(read().unwrap(), told);
    }
}
