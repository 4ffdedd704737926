//! Names to addresses, from the hosts file and then the operator's resolvers, never from a workload's.
//!
//! Names are taken as absolute: a search domain would make a rule's name mean another host. As with
//! nsswitch's `files dns`, a name that the hosts file has is not asked for elsewhere.

#[cfg(test)]
mod tests;

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hickory_resolver::config::{
    ConnectionConfig, LookupIpStrategy, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts,
};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::proto::op::Query;
use hickory_resolver::proto::rr::{Name, RecordType};
use hickory_resolver::{Hosts, TokioResolver};

use crate::addr::HostName;
use crate::identity::WorkloadName;

use super::Error;
use super::given::Given;

/// Where resolvers listen.
const DNS_PORT: u16 = 53;
/// All of one lookup, retries included.
const LIMIT: Duration = Duration::from_secs(10);
/// One question to one resolver.
const ATTEMPT: Duration = Duration::from_secs(3);
/// Answers kept.
const CACHE: u64 = 1024;
/// No answer is kept longer, whatever its TTL.
const MAX_TTL: Duration = Duration::from_secs(3600);

/// The hosts file.
const HOSTS: &str = "/etc/hosts";

/// Where names are looked up.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// Resolvers to ask; none if empty.
    pub resolvers: Vec<SocketAddr>,
    /// The text of the hosts file.
    pub hosts: String,
}

impl Settings {
    /// The operator's resolvers (those of `/etc/resolv.conf` if there are none) and the host's own hosts file.
    ///
    /// # Errors
    /// If the hosts file is there and can't be read. A host without resolvers has its hosts file.
    pub fn of_host(resolvers: &[SocketAddr]) -> Result<Self, Error> {
        let hosts = match std::fs::read_to_string(HOSTS) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(source) => {
                return Err(Error::Hosts {
                    path: HOSTS.into(),
                    source,
                });
            }
        };
        let resolvers = if resolvers.is_empty() {
            of_resolv_conf()
        } else {
            resolvers.to_vec()
        };
        Ok(Self { resolvers, hosts })
    }
}

fn of_resolv_conf() -> Vec<SocketAddr> {
    match hickory_resolver::system_conf::read_system_conf() {
        Ok((config, _options)) => config
            .name_servers()
            .iter()
            .map(|server| SocketAddr::new(server.ip, DNS_PORT))
            .collect(),
        Err(error) => {
            tracing::warn!(%error, "/etc/resolv.conf names no resolver; only the hosts file is used");
            Vec::new()
        }
    }
}

/// What [`Settings`] say, read: for the resolvers of all runtimes, since a hosts file may be long.
#[derive(Clone)]
pub struct Names {
    resolvers: Vec<SocketAddr>,
    hosts: Arc<Hosts>,
}

impl Names {
    /// Reads the text of the hosts file. No file: resolvers live in the sandbox.
    ///
    /// # Errors
    /// If the text makes no sense.
    pub fn new(settings: &Settings) -> Result<Self, Error> {
        let mut hosts = Hosts::default();
        hosts
            .read_hosts_conf(settings.hosts.as_bytes())
            .map_err(|error| Error::Setup {
                detail: error.to_string(),
            })?;
        Ok(Self {
            resolvers: settings.resolvers.clone(),
            hosts: Arc::new(hosts),
        })
    }
}

impl fmt::Debug for Names {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Names(..)")
    }
}

/// Looks names up, and keeps the answers as long as they are good.
///
/// Clones share cache and sockets, whose tasks run on the runtime that first asked: make one for each runtime.
#[derive(Clone)]
pub struct Resolver {
    resolver: Option<TokioResolver>,
    hosts: Arc<Hosts>,
    given: Given,
}

impl fmt::Debug for Resolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Resolver(..)")
    }
}

impl Resolver {
    /// Looks up in `names`, and notes its answers in `given`.
    ///
    /// # Errors
    /// If a resolver's address makes no sense.
    pub fn new(names: &Names, given: Given) -> Result<Self, Error> {
        let resolver = if names.resolvers.is_empty() {
            None
        } else {
            Some(asking(&names.resolvers)?)
        };
        Ok(Self {
            resolver,
            hosts: Arc::clone(&names.hosts),
            given,
        })
    }

    /// The name's addresses for this workload, at least one, v4 and v6 as they come.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Failed`], [`Error::Timeout`].
    pub async fn addresses(&self, workload: &WorkloadName, host: &HostName) -> Result<Vec<IpAddr>, Error> {
        let addresses = self.find(host).await?;
        self.given.note(workload, host, &addresses);
        Ok(addresses)
    }

    /// Whether the address is one of the name's: one that anybody was given for it of late, or this workload is now.
    ///
    /// # Errors
    /// As [`Resolver::addresses`].
    pub async fn gives(
        &self,
        workload: &WorkloadName,
        host: &HostName,
        address: IpAddr,
    ) -> Result<bool, Error> {
        if self.given.has(workload, host, address) {
            return Ok(true);
        }
        let addresses = self.addresses(workload, host).await?;
        Ok(addresses
            .iter()
            .any(|given| given.to_canonical() == address.to_canonical()))
    }

    async fn find(&self, host: &HostName) -> Result<Vec<IpAddr>, Error> {
        let failed = |detail: String| Error::Failed {
            host: host.clone(),
            detail,
        };
        let mut name = Name::from_ascii(host.as_str()).map_err(|error| failed(error.to_string()))?;
        name.set_fqdn(true);
        let listed = self.listed(&name);
        if !listed.is_empty() {
            return Ok(listed);
        }
        let Some(resolver) = &self.resolver else {
            return Err(Error::NotFound { host: host.clone() });
        };
        let found = match tokio::time::timeout(LIMIT, resolver.lookup_ip(name)).await {
            Ok(Ok(found)) => found,
            Ok(Err(error)) if error.is_no_records_found() => {
                return Err(Error::NotFound { host: host.clone() });
            }
            Ok(Err(error)) => return Err(failed(error.to_string())),
            Err(_elapsed) => {
                return Err(Error::Timeout {
                    host: host.clone(),
                    seconds: LIMIT.as_secs(),
                });
            }
        };
        let addresses: Vec<IpAddr> = found.iter().collect();
        if addresses.is_empty() {
            Err(Error::NotFound { host: host.clone() })
        } else {
            Ok(addresses)
        }
    }

    /// What the hosts file has.
    fn listed(&self, name: &Name) -> Vec<IpAddr> {
        [RecordType::A, RecordType::AAAA]
            .into_iter()
            .filter_map(|kind| self.hosts.lookup_static_host(&Query::query(name.clone(), kind)))
            .flat_map(|lookup| {
                lookup
                    .answers()
                    .iter()
                    .filter_map(|record| record.data.ip_addr())
                    .collect::<Vec<_>>()
            })
            .collect()
    }
}

fn asking(resolvers: &[SocketAddr]) -> Result<TokioResolver, Error> {
    let servers = resolvers.iter().map(server).collect();
    let config = ResolverConfig::from_name_servers(servers);
    let mut builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
    set_options(builder.options_mut());
    builder.build().map_err(|error| Error::Setup {
        detail: error.to_string(),
    })
}

fn server(address: &SocketAddr) -> NameServerConfig {
    let connections = [ConnectionConfig::udp(), ConnectionConfig::tcp()].map(|mut connection| {
        connection.port = address.port();
        connection
    });
    NameServerConfig::new(address.ip(), true, connections.into())
}

fn set_options(options: &mut ResolverOpts) {
    options.timeout = ATTEMPT;
    options.attempts = 2;
    options.edns0 = true;
    options.ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
    // Read by ourselves: the library would still ask the resolvers for the other address family.
    options.use_hosts_file = ResolveHosts::Never;
    options.cache_size = CACHE;
    options.positive_max_ttl = Some(MAX_TTL);
    options.negative_max_ttl = Some(MAX_TTL);
}
