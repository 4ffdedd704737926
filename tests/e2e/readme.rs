//! The README, followed literally on a fresh Debian: its first policy and its commands.

use std::fs::{self, File};

use anyhow::{Context, Result, ensure};
use harness::launch::{Output, finish};
use harness::{Bed, Upstream, World, agent, bed, require};

const README: &str = include_str!("../../README.md");
const HOST: &str = "api.stripe.com";
const TOKEN: &str = "tok_readme_1";

/// The blocks that stand under a heading, without their indentation.
fn blocks(heading: &str) -> Result<Vec<String>> {
    const INDENT: &str = "       ";
    let (_, section) = README.split_once(heading).context("no such heading")?;
    let section = section.split("\n## ").next().unwrap_or(section);
    let mut blocks = vec![String::new()];
    for line in section.lines() {
        match (line.strip_prefix(INDENT), line.is_empty()) {
            (Some(line), _) => *blocks.last_mut().context("a block")? += &format!("{line}\n"),
            (None, true) => *blocks.last_mut().context("a block")? += "\n",
            (None, false) => blocks.push(String::new()),
        }
    }
    blocks.retain(|block| !block.trim().is_empty());
    Ok(blocks)
}

/// Runs one line of the README as root's shell would, with this on its standard input.
fn typed(bed: &Bed, line: &str, input: &str) -> Result<Output> {
    let mut command = bed.command(["sh", "-c", line]);
    let file = bed.world().dir().join("typed");
    fs::write(&file, input)?;
    command.stdin(File::open(&file)?);
    finish(command).with_context(|| line.to_owned())
}

#[test]
fn the_first_policy_works_as_it_is_written() -> Result<()> {
    require!(Root, CgroupV2, Btf, Bed);
    let mut world = World::new()?;
    world.upstream(Upstream::new(HOST).bearer(TOKEN, "acme"))?;
    let bed = Bed::boot(world)?;
    let blocks = blocks("## A first policy in two minutes")?;
    let [build, secret, policy, commands] = blocks.as_slice() else {
        anyhow::bail!("the README has other blocks: {blocks:#?}");
    };
    // What builds it can't run in here; the tests' runner has built such a package and named it.
    let package = bed::package()?;
    let name = package
        .file_name()
        .and_then(|name| name.to_str())
        .context("a name")?;
    ensure!(
        build.contains(&format!(
            "cargo xtask dist\napt install ./target/dist/release/{name}"
        )),
        "{build}"
    );
    bed.install(&package)?;
    for line in secret.lines().filter(|line| !line.is_empty()) {
        typed(&bed, line, TOKEN)?.ok()?;
    }
    // The sandbox's upstream has a documentation address, as no real one has.
    let private = policy.replace(
        "  credential = \"stripe\"",
        "  credential = \"stripe\"\n  private = true",
    );
    assert_ne!(private, *policy);
    bed.write("/etc/callgate/policy.d/billing.toml", &private)?;
    let mut said = Vec::new();
    for line in commands.lines().filter(|line| !line.is_empty()) {
        said.push((line, typed(&bed, line, "")?.ok()?));
    }
    let told = |start: &str| -> Result<&str> {
        let found = said.iter().find(|(line, _)| line.starts_with(start));
        let found = found.map(|(_, told)| told.as_str());
        found.with_context(|| start.to_owned())
    };
    assert!(told("callgate check")?.starts_with("good: 1 workloads, 2 rules, 1 credentials"));
    assert!(told("callgate explain")?.starts_with("allow"));
    assert!(told("callgate status")?.contains("billing"));
    assert!(told("callgate exec")?.contains("acme"));
    assert!(
        told("callgate audit tail")?.contains("/v1/charges -> 200"),
        "{said:#?}"
    );
    Ok(())
}

#[test]
fn every_command_of_the_table_is_there() -> Result<()> {
    require!(Agent);
    let (_, section) = README.split_once("## Commands").context("no table")?;
    let section = section.split("\n## ").next().unwrap_or(section);
    let commands = section
        .split('`')
        .filter_map(|piece| piece.strip_prefix("callgate "));
    let mut seen = 0;
    for command in commands {
        let verbs = command
            .split(' ')
            .take_while(|word| word.chars().all(|c| c.is_ascii_lowercase()));
        let help = std::process::Command::new(agent::binary()?)
            .args(verbs)
            .arg("--help")
            .output()?;
        assert!(help.status.success(), "{command}");
        seen += 1;
    }
    assert!(seen > 6, "{seen}");
    Ok(())
}
