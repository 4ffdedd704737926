//! The perimeter behind the connect hooks: what may leave, and what may arrive.
//!
//! Source routing, raw packets, sockets connected before enrolment and device-bound leaks get past connect();
//! they end here.

use callgate_common::{Reason, flow};

use crate::ctx::{self, Family, Packet};
use crate::{event, maps};

const PASS: i32 = 1;
const DROP: i32 = 0;
const SYN: u8 = 0x02;
const ACK: u8 = 0x10;
/// Where headers have the source address (RFC 791, RFC 8200).
const SOURCE4: usize = 12;
const SOURCE6: usize = 8;

/// The headers that the perimeter looks at.
struct Headers {
    source: [u8; 16],
    destination: [u8; 16],
    source_port: u16,
    destination_port: u16,
    protocol: u8,
    flags: u8,
}

/// A packet that leaves. What may leave whoever sends it is most, and comes before the search for the workload.
#[inline(always)]
pub(crate) fn egress(packet: &Packet) -> i32 {
    let Some(headers) = read(packet) else {
        return unread(packet, Reason::Egress);
    };
    // A datagram can name a source of its own, which connect() does not see.
    if packet.on_loopback() && ctx::is_loopback(&headers.destination) && ctx::is_home(&headers.source) {
        return PASS;
    }
    let workload = packet.workload();
    if workload == maps::NO_WORKLOAD {
        return PASS;
    }
    if maps::is_direct(
        workload,
        headers.destination_port,
        headers.protocol,
        headers.destination,
    ) {
        return PASS;
    }
    if is_tcp_answer(&headers) && maps::may_listen(workload, headers.source_port) {
        return PASS;
    }
    drop_packet(packet, workload, Some(&headers), Reason::Egress)
}

/// A packet that leaves a socket of the agent's. From a loopback address to another host it is an answer to a source that
/// somebody made up: what is in it would leave by no rule.
#[inline(always)]
pub(crate) fn agent_egress(packet: &Packet) -> i32 {
    if packet.on_loopback() {
        return PASS;
    }
    let source = match packet.family() {
        Some(Family::V4) => packet.load::<[u8; 4]>(SOURCE4).map(ctx::mapped),
        Some(Family::V6) => packet.load::<[u8; 16]>(SOURCE6),
        None => None,
    };
    if source.is_some_and(|source| !ctx::is_loopback(&source)) {
        return PASS;
    }
    maps::count(Reason::Reflected);
    DROP
}

/// A packet that arrives; as with [`egress`], most may whoever it is for.
#[inline(always)]
pub(crate) fn ingress(packet: &Packet) -> i32 {
    let Some(headers) = read(packet) else {
        return unread(packet, Reason::Ingress);
    };
    if is_tcp_answer(&headers) {
        return PASS;
    }
    let workload = packet.workload();
    if workload == maps::NO_WORKLOAD {
        return PASS;
    }
    if headers.protocol == flow::TCP && maps::may_listen(workload, headers.destination_port) {
        return PASS;
    }
    if headers.protocol == flow::UDP && is_udp_answer(packet, workload, &headers) {
        return PASS;
    }
    drop_packet(packet, workload, Some(&headers), Reason::Ingress)
}

/// Anything but the first packet of a connection.
#[inline(always)]
fn is_tcp_answer(headers: &Headers) -> bool {
    headers.protocol == flow::TCP && headers.flags & (SYN | ACK) != SYN
}

/// From the stub, or from a direct rule's place.
#[inline(always)]
fn is_udp_answer(packet: &Packet, workload: u32, headers: &Headers) -> bool {
    (packet.on_loopback() && ctx::is_loopback(&headers.source))
        || maps::is_direct(workload, headers.source_port, flow::UDP, headers.source)
}

/// A packet of a form that no workload may use.
#[inline(always)]
fn unread(packet: &Packet, reason: Reason) -> i32 {
    match packet.workload() {
        maps::NO_WORKLOAD => PASS,
        workload => drop_packet(packet, workload, None, reason),
    }
}

#[inline(always)]
fn drop_packet(packet: &Packet, workload: u32, headers: Option<&Headers>, reason: Reason) -> i32 {
    let (addr, port, protocol) = match headers {
        Some(headers) => (headers.destination, headers.destination_port, headers.protocol),
        None => ([0; 16], 0, 0),
    };
    event::dropped(packet, workload, (addr, port, protocol), reason);
    DROP
}

/// `None` for all that is neither plain TCP nor plain UDP: IP options, extension headers, ICMP, cut packets.
#[inline(always)]
fn read(packet: &Packet) -> Option<Headers> {
    match packet.family()? {
        Family::V4 => read4(packet),
        Family::V6 => read6(packet),
    }
}

#[inline(always)]
fn read4(packet: &Packet) -> Option<Headers> {
    const HEADER: usize = 20;
    /// Version 4, five words: no options, hence no source route.
    const PLAIN: u8 = 0x45;
    let header = packet.load::<[u8; HEADER]>(0)?;
    if header[0] != PLAIN {
        return None;
    }
    let address = |at: usize| ctx::mapped([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    transport(packet, HEADER, header[9], address(SOURCE4), address(16))
}

#[inline(always)]
fn read6(packet: &Packet) -> Option<Headers> {
    const HEADER: usize = 40;
    /// Next header TCP, eight bytes, option "jumbo payload" of four (RFC 2675 section 2): what the kernel itself
    /// puts before a segment of more than 64 KiB on its way to segmentation (BIG TCP), and nothing else.
    const JUMBO: [u8; 4] = [flow::TCP, 0, 0xc2, 4];
    const JUMBO_SIZE: usize = 8;
    let protocol = packet.load::<u8>(6)?;
    let source = packet.load::<[u8; 16]>(SOURCE6)?;
    let destination = packet.load::<[u8; 16]>(24)?;
    if protocol == 0 && packet.load::<u16>(4)? == 0 && packet.load::<[u8; 4]>(HEADER)? == JUMBO {
        return transport(packet, HEADER + JUMBO_SIZE, flow::TCP, source, destination);
    }
    transport(packet, HEADER, protocol, source, destination)
}

#[inline(always)]
fn transport(
    packet: &Packet,
    at: usize,
    protocol: u8,
    source: [u8; 16],
    destination: [u8; 16],
) -> Option<Headers> {
    /// TCP's header as far as its flags (RFC 9293 section 3.1); UDP's begins with the ports too.
    const TCP: usize = 14;
    const UDP: usize = 4;
    let (ports, flags) = match protocol {
        flow::TCP => {
            let tcp = packet.load::<[u8; TCP]>(at)?;
            ([tcp[0], tcp[1], tcp[2], tcp[3]], tcp[13])
        }
        flow::UDP => (packet.load::<[u8; UDP]>(at)?, 0),
        _ => return None,
    };
    Some(Headers {
        source,
        destination,
        source_port: u16::from_be_bytes([ports[0], ports[1]]),
        destination_port: u16::from_be_bytes([ports[2], ports[3]]),
        protocol,
        flags,
    })
}
