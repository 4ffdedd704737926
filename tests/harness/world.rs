//! One test's world: sandbox, upstreams, agent and clients under one name, gone when it is dropped.

use std::fmt::Write as _;
use std::fs::{self, Permissions};
use std::io::Write as _;
use std::net::{SocketAddr, UdpSocket};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

use crate::agent::{self, Agent};
use crate::audit::{self, Expected, Record};
use crate::ca::Ca;
use crate::cgroup::Cgroup;
use crate::keeper::Keeper;
use crate::launch::{Output, Place};
use crate::limit::{Limit, WORLD_LIMIT};
use crate::sandbox::{Room, Sandbox};
use crate::scripted::{self, Scripted};
use crate::upstream::{Files, Server, Upstream};
use crate::workload::Client;

const AUDIT_FILE: &str = "audit/calls.jsonl";

/// Everything that one test set up. The fields are dropped in this order: processes, their cgroup, namespaces,
/// files.
#[derive(Debug)]
pub struct World {
    agent: Option<Agent>,
    keeper: Option<Keeper>,
    upstreams: Vec<Server>,
    addresses: u8,
    _limit: Limit,
    cgroup: Cgroup,
    sandbox: Sandbox,
    ca: Ca,
    settings: String,
    audit_settings: String,
    agent_env: Vec<(String, String)>,
    agent_view: Option<String>,
    dir: TempDir,
}

impl World {
    /// Makes the sandbox and moves the calling thread into it, which a test's runner has named after the test.
    ///
    /// # Errors
    /// Without root or cgroup v2; see [`crate::require!`].
    pub fn new() -> Result<Self> {
        let dir = tempfile::Builder::new()
            .prefix("callgate-")
            .tempdir()
            .context("can't make a directory")?;
        // Managed processes of other users read the trust bundle below it.
        fs::set_permissions(dir.path(), Permissions::from_mode(0o755))
            .context("can't open the directory up")?;
        for part in ["policy.d", "secrets", "state", "run", "audit", "upstream"] {
            fs::create_dir(dir.path().join(part)).with_context(|| format!("can't make {part}"))?;
        }
        let ca = Ca::new(&dir.path().join("upstream"))?;
        let cgroup = Cgroup::new()?;
        for child in ["workloads", "agent", "outside", "clients"] {
            cgroup.child(child)?;
        }
        let mut sandbox = Sandbox::enter(dir.path())?;
        sandbox.trust(ca.certificate())?;
        sandbox.mount_bpffs(&dir.path().join("bpf"))?;
        Ok(Self {
            agent: None,
            keeper: None,
            upstreams: Vec::new(),
            addresses: 0,
            _limit: Limit::new(cgroup.dir().to_owned(), WORLD_LIMIT),
            cgroup,
            sandbox,
            ca,
            settings: String::new(),
            audit_settings: String::new(),
            agent_env: Vec::new(),
            agent_view: None,
            dir,
        })
    }

    /// The world's directory: configuration, policy, secrets, logs.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Starts an upstream at addresses of its own and makes its name known in the sandbox.
    ///
    /// # Errors
    /// If nginx does not start; with what it says.
    pub fn upstream(&mut self, what: Upstream) -> Result<&Server> {
        let addresses = self.next_address()?;
        self.sandbox.add_host(what.host(), addresses.0, addresses.1)?;
        let dir = self.path("upstream").join(what.host());
        fs::create_dir(&dir).context("can't make the upstream's directory (two for one host?)")?;
        let leaf = match what.leaf() {
            Some(leaf) => leaf.clone(),
            None => self.ca.issue_flawed(what.certified(), what.flaw())?,
        };
        let files = Files { dir, leaf };
        let server = Server::start(&what, &files, &self.outside()?, addresses)?;
        self.upstreams.push(server);
        self.server(what.host())
    }

    /// Starts a [`Scripted`] upstream for `host`: on port 443 with TLS, by a certificate for `proves`, or on port 80.
    ///
    /// # Errors
    /// If it does not start.
    pub fn scripted(&mut self, host: &str, proves: Option<&str>) -> Result<Scripted> {
        self.scripted_by(scripted::SCRIPT, host, proves)
    }

    /// As [`World::scripted`], with a script that takes the same arguments.
    ///
    /// # Errors
    /// If it does not start.
    pub fn scripted_by(&mut self, script: &str, host: &str, proves: Option<&str>) -> Result<Scripted> {
        let addresses = self.next_address()?;
        self.sandbox.add_host(host, addresses.0, addresses.1)?;
        let dir = self.path("upstream").join(host);
        fs::create_dir(&dir).context("can't make the upstream's directory (two for one host?)")?;
        let leaf = proves.map(|name| self.ca.issue(name)).transpose()?;
        Scripted::start(script, &self.outside()?, &dir, addresses, leaf.as_ref())
    }

    /// Makes a name known at an address outside where nobody answers to it.
    ///
    /// # Errors
    /// If the hosts file can't be written.
    pub fn absent(&mut self, host: &str) -> Result<()> {
        let addresses = self.next_address()?;
        self.sandbox.add_host(host, addresses.0, addresses.1)
    }

    fn next_address(&mut self) -> Result<(std::net::Ipv4Addr, std::net::Ipv6Addr)> {
        let addresses = self.sandbox.outside_address(self.addresses)?;
        self.addresses += 1;
        Ok(addresses)
    }

    /// The upstream of this name.
    ///
    /// # Errors
    /// If none was started.
    pub fn server(&self, host: &str) -> Result<&Server> {
        let found = self.upstreams.iter().find(|server| server.host() == host);
        found.with_context(|| format!("no upstream {host}"))
    }

    /// Where to start other processes outside, beside the upstreams.
    ///
    /// # Errors
    /// If the cgroup can't be made.
    pub fn outside(&self) -> Result<Place> {
        Ok(Place::in_cgroup(self.cgroup.child("outside")?).in_netns(self.sandbox.outside()))
    }

    /// A network namespace beside the host's, with its own way to the outside.
    ///
    /// # Errors
    /// If it can't be made.
    pub fn room(&mut self) -> Result<Room> {
        self.sandbox.add_room()
    }

    /// Lets go of a room.
    ///
    /// # Errors
    /// If it can't be unmounted.
    pub fn drop_room(&mut self, room: &Room) -> Result<()> {
        self.sandbox.drop_room(room)
    }

    /// Whether the kernel still has this room.
    ///
    /// # Errors
    /// If that can't be seen.
    pub fn has_room(&self, room: &Room) -> Result<bool> {
        self.sandbox.has_outside(&room.device)
    }

    /// A UDP socket outside, to see whether a packet gets there. Non-blocking.
    ///
    /// # Errors
    /// If it can't be bound.
    pub fn outside_udp(&self, address: SocketAddr) -> Result<UdpSocket> {
        self.sandbox.outside_udp(address)
    }

    /// Writes a secret file, 0600, and returns its path.
    ///
    /// # Errors
    /// If it can't be written.
    pub fn secret(&self, name: &str, value: &str) -> Result<PathBuf> {
        let path = self.path("secrets").join(name);
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&path)?;
        file.write_all(value.as_bytes())
            .with_context(|| format!("can't write {}", path.display()))?;
        Ok(path)
    }

    /// Writes a policy file; [`World::reload`] makes a running agent see it.
    ///
    /// # Errors
    /// If it can't be written.
    pub fn policy(&self, file: &str, text: &str) -> Result<()> {
        let path = self.path("policy.d").join(file);
        fs::write(&path, text).with_context(|| format!("can't write {}", path.display()))
    }

    /// Top-level settings or tables to append to the agent's configuration, for the next start or reload.
    pub fn settings(&mut self, toml: &str) {
        self.settings.push_str(toml);
        self.settings.push('\n');
    }

    /// Keys for the `[audit]` table, as [`World::settings`].
    pub fn audit_settings(&mut self, toml: &str) {
        self.audit_settings.push_str(toml);
        self.audit_settings.push('\n');
    }

    /// Puts the audit file on a file system of its own that takes no more than this. Before the agent starts.
    ///
    /// # Errors
    /// If it can't be mounted.
    pub fn small_audit_disk(&mut self, bytes: usize) -> Result<()> {
        let dir = self.path("audit");
        self.sandbox.mount_disk(&dir, bytes)
    }

    /// A variable for the agent's environment, from its next start on.
    pub fn agent_env(&mut self, key: &str, value: &str) {
        self.agent_env.push((key.to_owned(), value.to_owned()));
    }

    /// Lets the agent run in a mount namespace of its own that this shell script prepares, from its next start on.
    pub fn agent_view(&mut self, script: impl Into<String>) {
        self.agent_view = Some(script.into());
    }

    /// Starts the agent and waits until it is ready.
    ///
    /// # Errors
    /// If it doesn't become ready; with its log.
    pub fn start_agent(&mut self) -> Result<()> {
        if self.agent.is_some() {
            bail!("the agent runs already");
        }
        self.write_config()?;
        let keeper = self.keeper.as_ref();
        self.agent = Some(Agent::start(
            &self.agent_place()?,
            &self.config(),
            self.dir(),
            keeper,
        )?);
        Ok(())
    }

    /// Keeps the agent's sockets from run to run, from its next start on, as a service manager would.
    ///
    /// # Errors
    /// If that can't be done.
    pub fn keep_sockets(&mut self) -> Result<()> {
        self.keeper = Some(Keeper::start(&self.path("upstream").join("keeper"))?);
        Ok(())
    }

    /// What [`World::keep_sockets`] started.
    ///
    /// # Errors
    /// If it was not.
    pub fn keeper(&self) -> Result<&Keeper> {
        self.keeper.as_ref().context("sockets are not kept")
    }

    /// Where the agent runs, or would.
    ///
    /// # Errors
    /// If the cgroup can't be made.
    pub fn agent_place(&self) -> Result<Place> {
        let place = Place::in_cgroup(self.cgroup.child("agent")?);
        let with = |place: Place, (key, value): &(String, String)| place.with_env(key, value);
        let place = self.agent_env.iter().fold(place, with);
        Ok(match &self.agent_view {
            Some(script) => place.with_view(script),
            None => place,
        })
    }

    /// Runs `callgate VERB --config FILE ARGS` to its end, whether or not an agent runs. [`World::write_config`]
    /// makes the file.
    ///
    /// # Errors
    /// If it can't be started or takes too long; not if it fails.
    pub fn callgate(&self, verb: &str, args: &[&str]) -> Result<Output> {
        agent::command(&self.agent_place()?, &self.config(), verb, args)
    }

    /// The running agent.
    ///
    /// # Errors
    /// If there is none.
    pub fn agent(&self) -> Result<&Agent> {
        self.agent.as_ref().context("the agent has not been started")
    }

    /// Writes the configuration anew and asks the agent to read it and the policy.
    ///
    /// # Errors
    /// If the agent refuses, with its reason.
    pub fn reload(&self) -> Result<()> {
        self.write_config()?;
        self.agent()?.reload()
    }

    /// Stops the agent gently.
    ///
    /// # Errors
    /// If there is none or it doesn't end well.
    pub fn stop_agent(&mut self) -> Result<()> {
        self.agent
            .take()
            .context("the agent has not been started")?
            .stop()
    }

    /// Kills the supervisor.
    ///
    /// # Errors
    /// If there is none.
    pub fn kill_agent(&mut self) -> Result<()> {
        self.agent
            .take()
            .context("the agent has not been started")?
            .kill()
    }

    /// Gives the world another limit of time, from now on, than [`WORLD_LIMIT`]: for a test that does the same many times.
    pub fn may_last(&mut self, limit: Duration) {
        self._limit = Limit::new(self.cgroup.dir().to_owned(), limit);
    }

    /// Clients under this workload.
    ///
    /// # Errors
    /// If the agent's binary is not known.
    pub fn workload(&self, name: &str) -> Result<Client> {
        Client::managed(
            Place::in_cgroup(self.cgroup.child("clients")?),
            &self.config(),
            name,
        )
    }

    /// Clients that no workload has.
    ///
    /// # Errors
    /// If the cgroup can't be made.
    pub fn unmanaged(&self) -> Result<Client> {
        Ok(Client::unmanaged(Place::in_cgroup(self.cgroup.child("clients")?)))
    }

    /// All audit records so far.
    ///
    /// # Errors
    /// If the file can't be read or holds something else.
    pub fn records(&self) -> Result<Vec<Record>> {
        audit::read(&self.audit_file())
    }

    /// Waits until there is a record with these fields. See [`crate::assert_record!`].
    ///
    /// # Errors
    /// If there is none in time, with the closest misses; or if there are several.
    pub fn expect_record(&self, expected: &[Expected<'_>]) -> Result<Record> {
        audit::expect(|| self.records(), expected)
    }

    /// The certificate of the authority that upstreams are certified by (PEM file).
    #[must_use]
    pub fn authority(&self) -> &Path {
        self.ca.certificate()
    }

    /// The agent's configuration file.
    #[must_use]
    pub fn config(&self) -> PathBuf {
        self.path("callgate.toml")
    }

    /// The file that the agent writes its records to.
    #[must_use]
    pub fn audit_file(&self) -> PathBuf {
        self.path(AUDIT_FILE)
    }

    /// The cgroup directory of everything in this world; killing it ends every process.
    #[must_use]
    pub fn cgroup(&self) -> &Path {
        self.cgroup.dir()
    }

    /// The cgroup that the workloads' cgroups are made below, as the kernel names it.
    #[must_use]
    pub fn workload_parent(&self) -> String {
        self.cgroup.kernel_path("workloads")
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Writes the agent's configuration as a start would.
    ///
    /// # Errors
    /// If it can't be written.
    pub fn write_config(&self) -> Result<()> {
        let text = config(
            self.dir(),
            &self.workload_parent(),
            self.ca.certificate(),
            &self.settings,
        )? + &self.audit_settings;
        fs::write(self.config(), text).context("can't write callgate.toml")
    }
}

/// The agent's configuration: everything in the world's directory, and nothing of the host's.
fn config(dir: &Path, cgroup_parent: &str, upstream_ca: &Path, settings: &str) -> Result<String> {
    let mut text = String::new();
    writeln!(text, "cgroup_parent = {cgroup_parent:?}")?;
    for (key, name) in [
        ("bpffs_dir", "bpf"),
        ("state_dir", "state"),
        ("runtime_dir", "run"),
        ("policy_dir", "policy.d"),
    ] {
        writeln!(text, "{key} = {:?}", dir.join(name))?;
    }
    writeln!(text, "admin_socket = {:?}", dir.join("run/admin.sock"))?;
    writeln!(text, "upstream_ca = [{upstream_ca:?}]\nworker_user = \"nobody\"")?;
    // Top-level keys of the test come before the first table.
    writeln!(text, "{settings}\n[audit]\nfile = {:?}", dir.join(AUDIT_FILE))?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use callgate::config::Config;
    use callgate::policy::Source;

    use super::*;

    #[test]
    fn the_configuration_is_one() {
        let text = config(
            Path::new("/tmp/w"),
            "/a/workloads",
            Path::new("/tmp/w/ca.pem"),
            "threads = 2",
        )
        .unwrap();
        let config = Config::parse(&Source::new("callgate.toml", &text)).unwrap();
        assert_eq!(config.cgroup_parent, "a/workloads");
        assert_eq!(config.threads, 2);
    }
}
