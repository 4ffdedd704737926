//! Connecting to upstreams. Every way in takes a [`Permit`].

pub(in crate::proxy) mod http2;
mod stream;

use std::future::Future;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpSocket, TcpStream};

use crate::addr::{OrigDst, UpstreamAddr};
use crate::http::response::UpstreamFault;
use crate::policy::{Denial, DenialReason, Permit, Scheme};
use crate::tls::upstream::Stream;
use crate::tls::{self, Offer, Session};

use super::DataThread;
use super::connection::Connection;
use super::failure::{self, Failure};
use super::pool::{Dialled, Versions};
use stream::UpstreamStream;

/// Where a permitted call goes: over TLS to the address that the client dialled, if it is one of the name's; in the
/// clear to one that the agent resolves itself.
///
/// The upstream must prove the name in either case, but only once the address and the ClientHello have left the host:
/// an address of the client's own choice would be a way out for what is written in them.
///
/// # Errors
/// A denial if the address is not the name's, or private and the rule does not say so; a failure if the name has no
/// address.
pub(super) async fn address(connection: &Connection, permit: &Permit) -> Result<UpstreamAddr, Failure> {
    let (thread, OrigDst(dialled)) = (&connection.thread, connection.original());
    if permit.scheme() == Scheme::Http {
        return Box::pin(resolve(thread, permit)).await;
    }
    let address = allowed(permit, dialled)?;
    let host = &permit.authority().host;
    if !connection.is_named(host) {
        // Boxed: the first call of a connection asks, and all would carry the room for it.
        let given = Box::pin(thread.resolver.gives(permit.workload(), host, dialled.ip())).await;
        if !given.map_err(|error| Failure::upstream(UpstreamFault::Resolve, &error))? {
            return Err(denied(permit, DenialReason::AddressNotOfName));
        }
        connection.name(host);
    }
    Ok(address)
}

/// Opens a connection for HTTP to `address`.
pub(super) async fn dial(
    connection: &Connection,
    permit: &Permit,
    address: UpstreamAddr,
    versions: Versions,
) -> Result<Dialled, Failure> {
    let thread = &connection.thread;
    if permit.scheme() == Scheme::Http {
        // From the agent's own namespace: who has rights in another decides where packets go from there, and here
        // nobody proves who he is.
        return http1(thread, tcp(thread, address).await?).await;
    }
    let secured = match versions {
        Versions::Http1 => secure(connection, permit, address, Offer::Http1).await?,
        Versions::Http2First => secure(connection, permit, address, Offer::Http2AndHttp1).await?,
        Versions::Http1First => match secure(connection, permit, address, Offer::Http1).await? {
            Err(error) if error.is_no_common_protocol() => {
                secure(connection, permit, address, Offer::Http2AndHttp1).await?
            }
            secured => secured,
        },
    };
    let (stream, session) = secured.map_err(|error| failure::of_upstream_tls(&error))?;
    if session.http2 {
        let connected = http2::connect(stream, &thread.shared.limits).await;
        connected
            .map(Dialled::Http2)
            .map_err(|error| Failure::upstream(UpstreamFault::Protocol, &error))
    } else {
        http1(thread, stream).await
    }
}

/// A connection over which the upstream has proven the permit's host, or how the handshake failed.
async fn secure(
    connection: &Connection,
    permit: &Permit,
    address: UpstreamAddr,
    offer: Offer,
) -> Result<Result<(Stream<TcpStream>, Session), tls::Error>, Failure> {
    let stream = tcp_from(connection, permit, address).await?;
    let thread = &connection.thread;
    let connector = thread
        .connector(permit.workload())
        .map_err(|error| failure::of_upstream_tls(&error))?;
    let limit = thread.shared.limits.connect();
    Ok(connector.connect(permit, stream, offer, limit).await)
}

/// Opens a plain TCP connection to the permit's host at an address that the agent resolved.
pub(super) async fn connect_resolved(
    connection: &Connection,
    permit: &Permit,
) -> Result<(TcpStream, UpstreamAddr), Failure> {
    let address = resolve(&connection.thread, permit).await?;
    Ok((tcp_from(connection, permit, address).await?, address))
}

async fn resolve(thread: &DataThread, permit: &Permit) -> Result<UpstreamAddr, Failure> {
    let authority = permit.authority();
    let addresses = thread
        .resolver
        .addresses(permit.workload(), &authority.host)
        .await
        .map_err(|error| Failure::upstream(UpstreamFault::Resolve, &error))?;
    // Every address has to be allowed: a name that also points inside is a name that is being rebound.
    let mut first = None;
    for address in addresses {
        let address = allowed(permit, SocketAddr::new(address, authority.port))?;
        first.get_or_insert(address);
    }
    first.ok_or_else(|| Failure::upstream(UpstreamFault::Resolve, &"the name has no address"))
}

fn allowed(permit: &Permit, address: SocketAddr) -> Result<UpstreamAddr, Failure> {
    if permit.private() || is_public(address.ip()) {
        return Ok(UpstreamAddr(address));
    }
    Err(denied(permit, DenialReason::PrivateAddress))
}

fn denied(permit: &Permit, reason: DenialReason) -> Failure {
    Failure::Denied(Denial {
        reason,
        rule: permit.rule().cloned(),
    })
}

/// Azure's platform as each of its machines sees it: DHCP, DNS, and the host's own server, which gives out certificates
/// and settings. Its number is a public one only so that it collides with no customer's network.
const AZURE_PLATFORM: Ipv4Addr = Ipv4Addr::new(168, 63, 129, 16);

/// Whether an address is one of the public internet (IANA special-purpose registries, RFC 6890). The other clouds'
/// metadata services live in special-purpose space: link-local (169.254.169.254), unique-local (fd00:ec2::254), shared
/// (100.100.100.200) and that of protocols (192.0.0.192).
pub(super) fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            let [a, b, c, _] = v4.octets();
            let shared = a == 100 && (64..128).contains(&b);
            let protocol = a == 192 && b == 0 && c == 0;
            let benchmark = a == 198 && (b == 18 || b == 19);
            !(v4.is_private()
                || v4.is_loopback()
                || v4.is_link_local()
                || v4.is_multicast()
                || v4.is_documentation()
                || a == 0
                || a >= 240
                || shared
                || v4 == AZURE_PLATFORM
                || protocol
                || benchmark)
        }
        IpAddr::V6(v6) => {
            if let Some(v4) = v6.to_ipv4_mapped() {
                return is_public(IpAddr::V4(v4));
            }
            let [first, second, ..] = v6.segments();
            let nat64 = first == 0x64 && second == 0xff9b;
            // 2000::/3 is all that is allocated for global unicast; documentation, 6to4 and the space of protocols,
            // Teredo's and that of benchmarks among them, lie in it.
            let global = (0x2000..0x4000).contains(&first);
            let documentation = (first == 0x2001 && second == 0xdb8) || (first == 0x3fff && second < 0x1000);
            let protocol = first == 0x2001 && second < 0x200;
            let tunnelled = first == 0x2002;
            global && !documentation && !protocol && !tunnelled && !nat64
        }
    }
}

/// From the network namespace that the client is in. In another than the agent's only the supervisor can make a socket.
async fn tcp_from(
    connection: &Connection,
    permit: &Permit,
    address: UpstreamAddr,
) -> Result<TcpStream, Failure> {
    let thread = &connection.thread;
    if connection.is_at_home() {
        return tcp(thread, address).await;
    }
    let origin = connection.origin.to_bytes();
    let asked = thread
        .shared
        .supervisor
        .socket(permit.workload(), &origin, address.0.is_ipv6())
        .await;
    let socket = asked.map_err(|error| failure::of_question("namespace", &error))?;
    in_time(thread, TcpSocket::from_std_stream(socket).connect(address.0)).await
}

async fn tcp(thread: &DataThread, UpstreamAddr(address): UpstreamAddr) -> Result<TcpStream, Failure> {
    in_time(thread, TcpStream::connect(address)).await
}

async fn in_time(
    thread: &DataThread,
    connecting: impl Future<Output = std::io::Result<TcpStream>>,
) -> Result<TcpStream, Failure> {
    let stream = match tokio::time::timeout(thread.shared.limits.connect(), connecting).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return Err(Failure::upstream(UpstreamFault::Connect, &error)),
        Err(_elapsed) => {
            return Err(Failure::upstream(
                UpstreamFault::Timeout,
                &"no connection in time",
            ));
        }
    };
    stream
        .set_nodelay(true)
        .map_err(|error| Failure::upstream(UpstreamFault::Connect, &error))?;
    Ok(stream)
}

async fn http1<S>(thread: &DataThread, stream: S) -> Result<Dialled, Failure>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let stream = UpstreamStream::new(stream, thread.shared.limits.write_stall());
    let (sender, connection) = http1::Builder::new()
        .max_buf_size(thread.shared.limits.http1_upstream_buffer())
        .handshake(TokioIo::new(stream))
        .await
        .map_err(|error| Failure::upstream(UpstreamFault::Protocol, &error))?;
    tokio::task::spawn_local(async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%error, "an upstream connection ended");
        }
    });
    Ok(Dialled::Http1(sender))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_of_the_public_internet_are_public() {
        for public in [
            "8.8.8.8",
            "1.1.1.1",
            "100.63.0.1",
            "172.32.0.1",
            "2606:4700::1111",
            "::ffff:8.8.8.8",
        ] {
            assert!(is_public(public.parse().unwrap()), "{public}");
        }
        for private in [
            "0.0.0.0",
            "10.0.0.1",
            "100.64.0.1",
            "127.0.0.1",
            "169.254.169.254",
            "172.16.0.1",
            "192.0.0.8",
            "192.0.2.1",
            "192.168.1.1",
            "198.18.0.1",
            "224.0.0.1",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::ffff:10.0.0.1",
            "::7f00:1",
            "64:ff9b::a00:1",
            "fe80::1",
            "fc00::1",
            "fd00:ec2::254",
            "ff02::1",
            "2001:db8::1",
            "2002:a00:1::",
            "2001::1",
            "2001:2::1",
            "2001:1ff::1",
        ] {
            assert!(!is_public(private.parse().unwrap()), "{private}");
        }
    }

    #[test]
    fn no_clouds_own_services_are_public_in_any_spelling() {
        for (cloud, v4) in [
            ("most", "169.254.169.254"),
            ("AWS, tasks", "169.254.170.2"),
            ("AWS, names", "169.254.169.253"),
            ("Alibaba", "100.100.100.200"),
            ("Azure", "168.63.129.16"),
            ("Oracle, once", "192.0.0.192"),
            ("Scaleway", "169.254.42.42"),
            ("Tencent", "169.254.0.23"),
        ] {
            let v4: Ipv4Addr = v4.parse().unwrap();
            let [a, b, c, d] = v4.octets().map(u16::from);
            let (high, low) = (a << 8 | b, c << 8 | d);
            for spelling in [
                IpAddr::V4(v4),
                v4.to_ipv6_mapped().into(),
                v4.to_ipv6_compatible().into(),
                // NAT64 (RFC 6052, 8215), 6to4, Teredo.
                [0x64, 0xff9b, 0, 0, 0, 0, high, low].into(),
                [0x64, 0xff9b, 1, 0, 0, 0, high, low].into(),
                [0x2002, high, low, 0, 0, 0, 0, 1].into(),
                [0x2001, 0, 0, 0, 0, 0, !high, !low].into(),
            ] {
                assert!(!is_public(spelling), "{cloud}: {spelling}");
            }
        }
        for v6 in [
            "fd00:ec2::254",
            "fd00:ec2::253",
            "fd20:ce::254",
            "fd00:c1::a9fe:a9fe",
            "fd00:42::42",
            "fe80::a9fe:a9fe",
        ] {
            assert!(!is_public(v6.parse().unwrap()), "{v6}");
        }
        for beside in ["168.63.129.15", "168.63.129.17"] {
            assert!(is_public(beside.parse().unwrap()), "{beside}");
        }
    }
}
