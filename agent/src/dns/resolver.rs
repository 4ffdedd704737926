//! Names to addresses, from the hosts file and then the operator's resolvers, never from a workload's.
//!
//! Names are taken as absolute: a search domain would make a rule's name mean another host. As with
//! nsswitch's `files dns`, a name that the hosts file has is not asked for elsewhere.

#[cfg(test)]
mod tests;

use std::fmt;
use std::fs::File;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hickory_resolver::config::{
    ConnectionConfig, LookupIpStrategy, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts,
};
use hickory_resolver::net::NetError;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::proto::op::Query;
use hickory_resolver::proto::rr::{Name, RecordType};
use hickory_resolver::{Hosts, TokioResolver};

use crate::addr::HostName;

use super::Error;

/// All of one lookup, retries included.
const LIMIT: Duration = Duration::from_secs(10);
/// One question to one resolver.
const ATTEMPT: Duration = Duration::from_secs(3);
/// Answers kept.
const CACHE: u64 = 1024;
/// No answer is kept longer, whatever its TTL.
const MAX_TTL: Duration = Duration::from_secs(3600);

/// Where names are looked up.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Resolvers to ask; if empty, those of `/etc/resolv.conf`.
    pub resolvers: Vec<SocketAddr>,
    /// The hosts file; `None` to use none.
    pub hosts: Option<PathBuf>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            resolvers: Vec::new(),
            hosts: Some("/etc/hosts".into()),
        }
    }
}

/// Looks names up, and keeps the answers as long as they are good.
///
/// Its files are read when it is made (before the sandbox closes): make a new one after they change. Clones
/// share cache and sockets, whose tasks run on the runtime that first asked: make one for each runtime.
#[derive(Clone)]
pub struct Resolver {
    resolver: TokioResolver,
    hosts: Arc<Hosts>,
}

impl fmt::Debug for Resolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Resolver(..)")
    }
}

impl Resolver {
    /// Reads the system's files as far as `settings` say so.
    ///
    /// # Errors
    /// [`Error::Hosts`], [`Error::Setup`]. A hosts file that does not exist counts as empty.
    pub fn new(settings: &Settings) -> Result<Self, Error> {
        let hosts = settings
            .hosts
            .as_deref()
            .map_or_else(|| Ok(Hosts::default()), read_hosts)?;
        let setup = |error: NetError| Error::Setup {
            detail: error.to_string(),
        };
        let provider = TokioRuntimeProvider::default();
        let mut builder = if settings.resolvers.is_empty() {
            TokioResolver::builder(provider).map_err(setup)?
        } else {
            let servers = settings.resolvers.iter().map(server).collect();
            TokioResolver::builder_with_config(ResolverConfig::from_name_servers(servers), provider)
        };
        set_options(builder.options_mut());
        Ok(Self {
            resolver: builder.build().map_err(setup)?,
            hosts: Arc::new(hosts),
        })
    }

    /// The name's addresses, at least one, v4 and v6 as they come.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Failed`], [`Error::Timeout`].
    pub async fn addresses(&self, host: &HostName) -> Result<Vec<IpAddr>, Error> {
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
        let found = match tokio::time::timeout(LIMIT, self.resolver.lookup_ip(name)).await {
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

fn read_hosts(path: &Path) -> Result<Hosts, Error> {
    let failed = |source| Error::Hosts {
        path: path.into(),
        source,
    };
    let mut hosts = Hosts::default();
    match File::open(path) {
        Ok(file) => hosts
            .read_hosts_conf(file)
            .map_err(|error| failed(std::io::Error::other(error)))?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(error)),
    }
    Ok(hosts)
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
