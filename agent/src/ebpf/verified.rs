//! What the programs cost the kernel's verifier, which refuses what costs too much.

use super::pins::{AGENT, GUARD, WORKLOAD};
use super::{Error, Programs};

impl Programs {
    /// Each loaded program with the instructions that the verifier went through before it accepted it, over all paths.
    /// The kernel's limit is a million (include/linux/bpf.h, BPF_COMPLEXITY_LIMIT_INSNS).
    ///
    /// # Errors
    /// If the kernel does not say.
    pub fn verified(&self) -> Result<Vec<(&'static str, u32)>, Error> {
        let mut names: Vec<_> = [WORKLOAD, GUARD, AGENT]
            .concat()
            .into_iter()
            .map(|entry| entry.program)
            .collect();
        names.sort_unstable();
        names.dedup();
        names.into_iter().map(|name| self.verified_of(name)).collect()
    }

    fn verified_of(&self, name: &'static str) -> Result<(&'static str, u32), Error> {
        let program = self.ebpf.program(name).ok_or(Error::NoSuch { name })?;
        let info = program.info().map_err(|source| Error::Program {
            program: name,
            source: Box::new(source),
        })?;
        let count = info.verified_instruction_count().ok_or(Error::NoSuch {
            name: "count of verified instructions",
        })?;
        Ok((name, count))
    }
}
