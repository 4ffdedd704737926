//! Tables and properties of compiling and deciding.

mod compiling;
mod deciding;
mod properties;
mod routing;

use super::*;
use crate::identity::{Cgroup, Executable, Identity, Process, Sha256};

/// Compiles one file that must be good.
fn policy(text: &str) -> Policy {
    Policy::compile(&[Source::new("policy.toml", text)]).unwrap_or_else(|found| panic!("{found:#?}"))
}

/// A caller in the workload `w` of which everything is known.
fn caller() -> Identity {
    Identity {
        workload: WorkloadName::parse("w").unwrap(),
        cgroup: Cgroup {
            id: 7,
            path: Some("/callgate.slice/callgate-w.slice/app.service".into()),
        },
        unit: Some("app.service".into()),
        invocation: None,
        container: None,
        uid: 1000,
        gid: 1000,
        user: Some("app".into()),
        process: Some(Process {
            pid: 42,
            start_time: 1,
            comm: "app".into(),
        }),
        executable: Some(Executable {
            path: Some("/usr/bin/app".into()),
            device: 1,
            inode: 2,
            sha256: Some(Sha256([0xab; 32])),
        }),
        netns_cookie: 1,
    }
}

/// One request in owned parts.
#[derive(Debug)]
struct Request {
    scheme: Scheme,
    authority: Authority,
    method: String,
    path: NormalPath,
    query: String,
    headers: http::HeaderMap,
}

impl Request {
    /// `GET https://host:port/path?query`.
    fn new(method: &str, url: &str) -> Self {
        let (scheme, rest) = url.split_once("://").unwrap();
        let (authority, target) = rest.split_at(rest.find('/').unwrap());
        let scheme = if scheme == "http" {
            Scheme::Http
        } else {
            Scheme::Https
        };
        let default = if scheme == Scheme::Http { 80 } else { 443 };
        let (host, port) = authority
            .split_once(':')
            .map_or((authority, default), |(host, port)| (host, port.parse().unwrap()));
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        Self {
            scheme,
            authority: Authority::new(HostName::parse(host).unwrap(), port),
            method: method.to_owned(),
            path: NormalPath::parse(path).unwrap(),
            query: query.to_owned(),
            headers: http::HeaderMap::new(),
        }
    }

    fn header(mut self, name: &'static str, value: &str) -> Self {
        self.headers.append(name, value.parse().unwrap());
        self
    }

    fn call(&self) -> Call<'_> {
        Call {
            scheme: self.scheme,
            authority: &self.authority,
            method: &self.method,
            path: &self.path,
            query: &self.query,
            headers: &self.headers,
        }
    }
}

/// A decision in one line: `allow RULE CREDENTIAL`, `observe CODE`, `deny CODE RULE`.
fn outcome(policy: &Policy, identity: &Identity, request: &Request) -> String {
    let rule = |rule: Option<&Arc<str>>| rule.map_or("-", |rule| rule).to_owned();
    match decide(policy, identity, &request.call()) {
        Decision::Allow(permit) => match permit.observed() {
            Some(denial) => format!("observe {} {}", denial.reason.code(), rule(denial.rule.as_ref())),
            None => {
                let credential = permit.credential().map_or("-", |name| name.as_str());
                format!("allow {} {credential}", rule(permit.rule()))
            }
        },
        Decision::Deny(denial) => format!("deny {} {}", denial.reason.code(), rule(denial.rule.as_ref())),
    }
}
