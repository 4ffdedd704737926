//! What the kernel knows about one workload: written whole, replaced without a gap.

use std::collections::HashSet;
use std::hash::Hash;
use std::path::PathBuf;

use aya::Ebpf;
use aya::Pod;
use aya::maps::lpm_trie::Key;
use aya::maps::{HashMap, LpmTrie, MapData, MapError};
use callgate_common::flow::{BudgetKey, EventBudget, FlowShare, FlowUse, TCP, UDP};
use callgate_common::names::{
    DIAL_PORTS, DIRECT, EVENT_BUDGETS, FLOW_SHARES, FLOW_USE, FLOWS, LISTEN_PORTS, LISTENERS, MAX_FLOW_SHARE,
    WORKLOADS,
};
use callgate_common::verdict::CLASSES;
use callgate_common::{DialKey, DirectKey, FlowKey, Listener, ListenerKey, Origin};
use ipnet::IpNet;

use super::Error;

/// What a direct rule carries.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// A destination that passes in the kernel.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Direct {
    /// The addresses.
    pub net: IpNet,
    /// The port; `None` for all.
    pub port: Option<u16>,
    /// The protocol.
    pub transport: Transport,
}

/// Everything that arms one workload.
#[derive(Clone, Debug)]
pub struct WorkloadPlan {
    /// The number in every origin and event; stable while the host runs, never 0.
    pub number: u32,
    /// The workload's cgroup directory, below the parent.
    pub cgroup: PathBuf,
    /// TCP ports that some rule names; all other connects are refused at once.
    pub dial_ports: Vec<u16>,
    /// What passes in the kernel.
    pub direct: Vec<Direct>,
    /// TCP ports that it may accept connections on.
    pub listen_ports: Vec<u16>,
}

/// Writes a plan's tables: what is new first, then what is gone, so that no allowed call is refused in between.
pub(super) fn write(ebpf: &mut Ebpf, plan: &WorkloadPlan) -> Result<(), Error> {
    add_counts(ebpf, plan.number)?;
    let ports = |ports: &[u16]| {
        ports
            .iter()
            .map(|port| DialKey {
                workload: plan.number,
                port: *port,
                pad: 0,
            })
            .collect()
    };
    replace(ebpf, DIAL_PORTS, plan.number, ports(&plan.dial_ports))?;
    replace(ebpf, LISTEN_PORTS, plan.number, ports(&plan.listen_ports))?;
    let direct = plan
        .direct
        .iter()
        .map(|direct| direct_key(plan.number, direct))
        .collect();
    replace_direct(ebpf, plan.number, &direct)
}

/// Removes all that a workload may do, and its listeners.
pub(super) fn withdraw(ebpf: &mut Ebpf, number: u32) -> Result<(), Error> {
    replace(ebpf, DIAL_PORTS, number, HashSet::new())?;
    replace(ebpf, LISTEN_PORTS, number, HashSet::new())?;
    replace_direct(ebpf, number, &HashSet::new())?;
    unlisten(ebpf, |key| key.workload == number)
}

/// Removes these listeners.
pub(super) fn unlisten(ebpf: &mut Ebpf, which: impl Fn(&ListenerKey) -> bool) -> Result<(), Error> {
    let mut listeners = table::<ListenerKey, Listener>(ebpf, LISTENERS)?;
    for key in keys(&listeners, LISTENERS)? {
        if which(&key) {
            absent_ok(LISTENERS, listeners.remove(&key))?;
        }
    }
    Ok(())
}

/// Removes every entry of a workload.
pub(super) fn clear(ebpf: &mut Ebpf, number: u32) -> Result<(), Error> {
    withdraw(ebpf, number)?;
    let mut flows = table::<FlowKey, Origin>(ebpf, FLOWS)?;
    let own = flows.iter().filter_map(Result::ok);
    let own: Vec<FlowKey> = own
        .filter(|(_, origin)| origin.workload() == number)
        .map(|(key, _)| key)
        .collect();
    for key in own {
        absent_ok(FLOWS, flows.remove(&key))?;
    }
    absent_ok(FLOW_USE, table::<u32, FlowUse>(ebpf, FLOW_USE)?.remove(&number))?;
    absent_ok(
        FLOW_SHARES,
        table::<u32, FlowShare>(ebpf, FLOW_SHARES)?.remove(&number),
    )?;
    for key in budgets(number) {
        absent_ok(
            EVENT_BUDGETS,
            table::<BudgetKey, EventBudget>(ebpf, EVENT_BUDGETS)?.remove(&key),
        )?;
    }
    Ok(())
}

fn budgets(number: u32) -> impl Iterator<Item = BudgetKey> {
    (0..CLASSES).map(move |class| BudgetKey {
        workload: number,
        class,
    })
}

/// Makes the event budgets of a workload, where they aren't there; 0 stands for what can't be attributed.
pub(super) fn add_budgets(ebpf: &mut Ebpf, number: u32) -> Result<(), Error> {
    budgets(number).try_for_each(|key| add(ebpf, EVENT_BUDGETS, key, EventBudget::default()))
}

/// Makes what the kernel counts for a workload, where it isn't there.
pub(super) fn add_counts(ebpf: &mut Ebpf, number: u32) -> Result<(), Error> {
    add_budgets(ebpf, number)?;
    add(ebpf, FLOW_USE, number, FlowUse::default())
}

fn add<K: Pod, V: Pod>(ebpf: &mut Ebpf, name: &'static str, key: K, value: V) -> Result<(), Error> {
    const NO_EXIST: u64 = 1;
    match table(ebpf, name)?.insert(key, value, NO_EXIST) {
        Err(MapError::SyscallError(error)) if error.io_error.raw_os_error() == Some(libc::EEXIST) => Ok(()),
        other => other.map_err(|source| Error::map(name, source)),
    }
}

/// Divides the table of handshakes: the shares together are no more than the table, so that nobody's
/// connections keep another's out.
pub(super) fn share_out(ebpf: &mut Ebpf, numbers: &[u32], max_flows: u32) -> Result<(), Error> {
    let count = u32::try_from(numbers.len()).unwrap_or(u32::MAX).max(1);
    let limit = (max_flows / count).clamp(1, MAX_FLOW_SHARE);
    for number in numbers {
        change_share(ebpf, *number, |share| share.limit = limit)?;
    }
    Ok(())
}

/// Says how many of a workload's handshakes were cleared away.
pub(super) fn count_swept(ebpf: &mut Ebpf, number: u32, swept: u64) -> Result<(), Error> {
    change_share(ebpf, number, |share| {
        share.swept = share.swept.wrapping_add(swept)
    })
}

fn change_share(ebpf: &mut Ebpf, number: u32, change: impl FnOnce(&mut FlowShare)) -> Result<(), Error> {
    let mut shares = table::<u32, FlowShare>(ebpf, FLOW_SHARES)?;
    let mut share = shares.get(&number, 0).unwrap_or_default();
    change(&mut share);
    shares
        .insert(number, share, 0)
        .map_err(|source| Error::map(FLOW_SHARES, source))
}

/// Cgroup ids and numbers of the workloads that the kernel knows.
pub(super) fn armed(ebpf: &mut Ebpf) -> Result<Vec<(u64, u32)>, Error> {
    let workloads = table::<u64, u32>(ebpf, WORKLOADS)?;
    workloads
        .iter()
        .collect::<Result<_, _>>()
        .map_err(|source| Error::map(WORKLOADS, source))
}

/// A map of the loaded object, as a table.
pub(super) fn table<'a, K: Pod, V: Pod>(
    ebpf: &'a mut Ebpf,
    name: &'static str,
) -> Result<HashMap<&'a mut MapData, K, V>, Error> {
    let map = ebpf.map_mut(name).ok_or(Error::NoSuch { name })?;
    HashMap::try_from(map).map_err(|source| Error::map(name, source))
}

/// Success also when there was nothing to remove.
pub(super) fn absent_ok(name: &'static str, result: Result<(), MapError>) -> Result<(), Error> {
    match result {
        Ok(()) | Err(MapError::KeyNotFound | MapError::ElementNotFound) => Ok(()),
        Err(MapError::SyscallError(error)) if error.io_error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        Err(source) => Err(Error::map(name, source)),
    }
}

fn keys<K: Pod, V: Pod>(table: &HashMap<&mut MapData, K, V>, name: &'static str) -> Result<Vec<K>, Error> {
    table
        .keys()
        .collect::<Result<_, _>>()
        .map_err(|source| Error::map(name, source))
}

fn replace(ebpf: &mut Ebpf, name: &'static str, number: u32, wanted: HashSet<DialKey>) -> Result<(), Error> {
    let mut table = table::<DialKey, u8>(ebpf, name)?;
    for key in &wanted {
        table
            .insert(key, 1, 0)
            .map_err(|source| Error::map(name, source))?;
    }
    for key in keys(&table, name)? {
        if key.workload == number && !wanted.contains(&key) {
            absent_ok(name, table.remove(&key))?;
        }
    }
    Ok(())
}

fn replace_direct(ebpf: &mut Ebpf, number: u32, wanted: &HashSet<(u32, DirectKey)>) -> Result<(), Error> {
    let map = ebpf.map_mut(DIRECT).ok_or(Error::NoSuch { name: DIRECT })?;
    let mut trie = LpmTrie::<_, DirectKey, u8>::try_from(map).map_err(|source| Error::map(DIRECT, source))?;
    for (bits, key) in wanted {
        trie.insert(&Key::new(*bits, *key), 1, 0)
            .map_err(|source| Error::map(DIRECT, source))?;
    }
    let present = trie
        .keys()
        .collect::<Result<Vec<_>, _>>()
        .map_err(|source| Error::map(DIRECT, source))?;
    for key in present {
        if key.data().workload == number && !wanted.contains(&(key.prefix_len(), key.data())) {
            absent_ok(DIRECT, trie.remove(&key))?;
        }
    }
    Ok(())
}

fn direct_key(workload: u32, direct: &Direct) -> (u32, DirectKey) {
    let (addr, bits) = match direct.net.trunc() {
        IpNet::V4(net) => (net.addr().to_ipv6_mapped(), 96 + u32::from(net.prefix_len())),
        IpNet::V6(net) => (net.addr(), u32::from(net.prefix_len())),
    };
    let protocol = match direct.transport {
        Transport::Tcp => TCP,
        Transport::Udp => UDP,
    };
    let key = DirectKey {
        workload,
        port: direct.port.unwrap_or(0),
        protocol,
        pad: 0,
        addr: addr.octets(),
    };
    (DirectKey::FIXED_BITS + bits, key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ipv4_range_is_a_longer_prefix_of_its_mapped_form() {
        let direct = Direct {
            net: "10.1.2.3/8".parse().unwrap(),
            port: None,
            transport: Transport::Udp,
        };
        let (bits, key) = direct_key(3, &direct);
        assert_eq!(bits, DirectKey::FIXED_BITS + 104);
        assert_eq!((key.workload, key.port, key.protocol), (3, 0, 17));
        assert_eq!(key.addr, [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 0, 0, 0]);
    }
}
