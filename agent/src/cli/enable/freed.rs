//! What of a service that is managed no more is still where it was as a workload, and how it gets back. systemd moves nothing
//! that runs, and what a socket unit made stays where it was made.

use super::host;
use crate::identity::WorkloadName;

/// A service without its drop-in.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Freed {
    /// Its name.
    pub unit: String,
    running: bool,
    sockets: Vec<String>,
}

impl Freed {
    /// Looks where it and its socket units are.
    ///
    /// # Errors
    /// If systemd can't be asked.
    pub(super) fn look(unit: String, sockets: Vec<String>) -> anyhow::Result<Self> {
        let mut listening = Vec::new();
        for socket in sockets {
            if is_in_workload(&socket)? {
                listening.push(socket);
            }
        }
        Ok(Self {
            running: is_in_workload(&unit)?,
            unit,
            sockets: listening,
        })
    }

    /// What brings it back, if it is not.
    #[must_use]
    pub fn back(&self) -> Option<String> {
        let (unit, sockets) = (host::pattern(&self.unit), self.sockets.join(" "));
        match (sockets.is_empty(), self.running) {
            (false, _) => Some(format!(
                "{sockets}: listens on in the slice of its workload until: systemctl stop {unit} {sockets}; systemctl start {sockets}"
            )),
            (true, true) => Some(format!(
                "{unit} runs on in the slice of its workload until: systemctl try-restart {unit}"
            )),
            (true, false) => None,
        }
    }
}

fn is_in_workload(unit: &str) -> anyhow::Result<bool> {
    let is_slice = |part: &str| WorkloadName::of_slice(part).is_some();
    let running = host::running(unit)?;
    Ok(running.iter().any(|(_, cgroup)| cgroup.split('/').any(is_slice)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stays_is_brought_back_by_the_command_that_is_given() {
        let back = |running, sockets: &[&str]| {
            let freed = Freed {
                unit: "a@.service".into(),
                running,
                sockets: sockets.iter().copied().map(str::to_owned).collect(),
            };
            freed.back()
        };
        assert_eq!(back(false, &[]), None);
        let restarted = back(true, &[]).unwrap();
        assert!(
            restarted.ends_with("systemctl try-restart a@*.service"),
            "{restarted}"
        );
        let made_anew = back(true, &["a.socket"]).unwrap();
        let command = "systemctl stop a@*.service a.socket; systemctl start a.socket";
        assert!(made_anew.ends_with(command), "{made_anew}");
    }
}
