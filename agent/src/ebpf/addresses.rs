//! This host's own IPv6 addresses, as the kernel programs know them: IPv6 routing sends from any address that a socket is
//! bound to, so the programs must tell whose answers would leave the host.

use std::collections::HashSet;

use callgate_common::names::OWN_ADDRESSES;
use nix::ifaddrs::getifaddrs;

use super::workload::{absent_ok, table};
use super::{Error, Programs};

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

fn read() -> Result<HashSet<[u8; 16]>, Error> {
    let interfaces =
        getifaddrs().map_err(|errno| Error::file("read", "the addresses of this host", errno.into()))?;
    Ok(interfaces
        .filter_map(|interface| Some(interface.address?.as_sockaddr_in6()?.ip().octets()))
        .collect())
}
