//! What the kernel's verifier says to each build of the programs, and what they cost it.

use std::fs::{self, File};
use std::io::Write as _;

use anyhow::{Context as _, Result};
use callgate::ebpf::{LoadOptions, Programs};

use super::world::World;

/// A directory of objects beside the embedded one (`release`), each file being a build; and where to write what they cost.
/// `cargo xtask vm` sets both.
const OBJECTS: &str = "CALLGATE_TEST_OBJECTS";
const VERIFIED: &str = "CALLGATE_TEST_VERIFIED";

pub(super) fn the_verifier_accepts_every_program_of_every_build(world: &mut World) -> Result<()> {
    let mut builds = vec![("release".to_owned(), None)];
    if let Some(dir) = std::env::var_os(OBJECTS) {
        for entry in fs::read_dir(&dir).context("the directory of objects")? {
            let entry = entry?;
            let build = entry.file_name().to_string_lossy().into_owned();
            builds.push((build, Some(fs::read(entry.path())?)));
        }
    }
    for (build, object) in builds {
        let options = LoadOptions {
            bpffs_dir: world.options.bpffs_dir.with_file_name(&build),
            object,
            // As the product loads them, whose log shows warnings.
            level: Some(tracing::Level::WARN),
            ..world.options.clone()
        };
        let mut known = load(&options, &format!("{build} known-level"))?;
        // A workload on another level than the others makes the programs search for it.
        let deep = world.cgroup("two").join(&build);
        fs::create_dir(&deep)?;
        let mut plan = world.plan(9, "two");
        plan.cgroup = deep;
        known.arm(&plan)?;
        drop(known);
        drop(load(&options, &format!("{build} any-level"))?);
    }
    Ok(())
}

fn load(options: &LoadOptions, what: &str) -> Result<Programs> {
    let programs = Programs::load(options).with_context(|| what.to_owned())?;
    if let Some(file) = std::env::var_os(VERIFIED) {
        let mut file = File::options().append(true).create(true).open(file)?;
        for (program, count) in programs.verified()? {
            writeln!(file, "{what} {program} {count}")?;
        }
    }
    Ok(programs)
}
