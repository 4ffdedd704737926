//! Writes the man pages, the shell completions and the settings file that are shipped: `callgate-manual DIR`, which
//! `cargo xtask manual` runs on `agent`.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Command;
use clap_complete::Shell;
use clap_mangen::Man;

fn main() -> Result<()> {
    let dir = std::env::args_os().nth(1).context("which directory?")?;
    for (name, text) in files()? {
        let path = Path::new(&dir).join(name);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).with_context(|| format!("can't make {}", parent.display()))?;
        }
        fs::write(&path, text).with_context(|| format!("can't write {}", path.display()))?;
    }
    Ok(())
}

/// All files, by their path in the directory.
fn files() -> Result<Vec<(PathBuf, Vec<u8>)>> {
    let mut command = callgate::cli::definition().disable_help_subcommand(true);
    command.build();
    let mut files = Vec::new();
    pages(&command, &mut files)?;
    for (shell, name) in [
        (Shell::Bash, "callgate.bash"),
        (Shell::Zsh, "_callgate"),
        (Shell::Fish, "callgate.fish"),
    ] {
        let mut text = Vec::new();
        clap_complete::generate(shell, &mut callgate::cli::definition(), "callgate", &mut text);
        files.push((Path::new("dist/completions").join(name), text));
    }
    let settings = callgate::config::shipped::text().into_bytes();
    files.push((PathBuf::from("config/default.toml"), settings));
    Ok(files)
}

/// The page of a command and those of its subcommands; `help` and what is hidden have none.
fn pages(command: &Command, files: &mut Vec<(PathBuf, Vec<u8>)>) -> Result<()> {
    let name = command.get_bin_name().unwrap_or_else(|| command.get_name());
    let name = name.replace(' ', "-");
    let page = Man::new(command.clone())
        .title(name.to_uppercase())
        .section("8")
        .date("")
        .source(format!("callgate {}", env!("CARGO_PKG_VERSION")))
        .manual("callgate");
    let mut text = Vec::new();
    page.render(&mut text).context("can't render a page")?;
    files.push((Path::new("dist/man").join(format!("{name}.8")), text));
    let shown = |sub: &&Command| !sub.is_hide_set() && sub.get_name() != "help";
    command
        .get_subcommands()
        .filter(shown)
        .try_for_each(|sub| pages(sub, files))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_checked_in_is_what_the_command_line_says() {
        let agent = Path::new(env!("CARGO_MANIFEST_DIR")).join("../agent");
        let made = files().unwrap();
        for (name, text) in &made {
            let found = fs::read(agent.join(name)).unwrap_or_default();
            assert!(
                found == *text,
                "{} is out of date: cargo xtask manual",
                name.display()
            );
        }
        for dir in ["dist/man", "dist/completions"] {
            for entry in fs::read_dir(agent.join(dir)).unwrap() {
                let name = Path::new(dir).join(entry.unwrap().file_name());
                assert!(
                    made.iter().any(|(known, _)| *known == name),
                    "{} is of no command",
                    name.display()
                );
            }
        }
    }
}
