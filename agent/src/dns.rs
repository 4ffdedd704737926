//! What workloads may ask, and the answers.

pub mod given;
pub mod resolver;
pub mod stream;
pub mod stub;

use std::path::PathBuf;

use crate::addr::HostName;

/// Why there is no address.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The hosts file can't be read.
    #[error("the hosts file {path} can't be read: {source}")]
    Hosts {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// The system names no resolver, or its configuration can't be read.
    #[error("no DNS resolvers: {detail}; name some in `resolvers`, or repair /etc/resolv.conf")]
    Setup {
        /// What the library said.
        detail: String,
    },
    /// The resolvers say that there is no such name, or that it has no address.
    #[error("{host} has no address (asked the hosts file and the resolvers)")]
    NotFound {
        /// The name.
        host: HostName,
    },
    /// The resolvers gave no usable answer.
    #[error("{host} could not be resolved: {detail}")]
    Failed {
        /// The name.
        host: HostName,
        /// What the library said.
        detail: String,
    },
    /// No answer in time.
    #[error("{host} was not resolved within {seconds} s")]
    Timeout {
        /// The name.
        host: HostName,
        /// The limit.
        seconds: u64,
    },
}
