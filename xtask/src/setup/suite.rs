//! Debian suites other than the machine's own: asked, downloaded and installed from, while the machine's lists stay
//! as they are. Their indexes are kept below `target/vm/apt` and fetched anew once a day.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::apt;
use crate::cmd;

/// How old an index may be; past it a package's file may be gone from the mirror.
const FRESH: Duration = Duration::from_hours(24);
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// One suite of the mirror that the machine itself uses, with the machine's own sources beside it or not.
#[derive(Debug)]
pub(crate) struct Suite {
    name: String,
    dir: PathBuf,
}

impl Suite {
    /// The suite alone.
    pub(crate) fn alone(name: &str) -> Result<Self> {
        Self::open(name, name)
    }

    /// The suite beside the machine's own, for packages that depend on those.
    pub(crate) fn beside_own(name: &str) -> Result<Self> {
        let suite = Self::open(name, &format!("own+{name}"))?;
        let lists = fs::read_dir("/etc/apt/sources.list.d").context("can't list apt's sources")?;
        let main = PathBuf::from("/etc/apt/sources.list");
        for path in lists.flatten().map(|entry| entry.path()).chain([main]) {
            let is_source = path
                .extension()
                .is_some_and(|kind| kind == "list" || kind == "sources");
            if is_source && path.is_file() {
                let file = suite.dir.join("parts").join(path.file_name().unwrap_or_default());
                fs::copy(&path, &file).with_context(|| format!("can't copy {}", path.display()))?;
            }
        }
        Ok(suite)
    }

    fn open(name: &str, place: &str) -> Result<Self> {
        let dir = cmd::root().join("target/vm/apt").join(place);
        for part in ["lists/partial", "parts"] {
            fs::create_dir_all(dir.join(part)).with_context(|| format!("can't make {}", dir.display()))?;
        }
        let source = format!(
            "Types: deb\nURIs: {}\nSuites: {name}\nComponents: main\nSigned-By: {KEYRING}\n",
            mirror()?
        );
        let file = dir.join("parts").join(format!("{name}.sources"));
        fs::write(&file, source).with_context(|| format!("can't write {}", file.display()))?;
        Ok(Self {
            name: name.to_owned(),
            dir,
        })
    }

    /// Fetches the index, if the one that is there is old.
    pub(crate) fn update(&self) -> Result<()> {
        let stamp = self.dir.join("updated");
        let fresh = fs::metadata(&stamp)
            .and_then(|meta| meta.modified())
            .is_ok_and(|time| time.elapsed().is_ok_and(|age| age < FRESH));
        if fresh {
            return Ok(());
        }
        let mut update = self.command("apt-get");
        // Else a mirror that can't be reached is a warning only.
        update.args(["--quiet=2", "-o", "APT::Update::Error-Mode=any", "update"]);
        cmd::run(update).with_context(|| format!("can't fetch the index of Debian's suite {}", self.name))?;
        fs::write(&stamp, "").with_context(|| format!("can't write {}", stamp.display()))
    }

    /// What a package of this suite depends on, alternatives and the like left out.
    pub(crate) fn dependencies(&self, package: &str) -> Result<Vec<String>> {
        let mut command = self.command("apt-cache");
        command.args(["depends", package]);
        let listing = cmd::read(command)
            .with_context(|| format!("Debian's suite {} has no package {package}", self.name))?;
        Ok(listing
            .lines()
            .filter_map(|line| line.trim().strip_prefix("Depends: "))
            .map(ToOwned::to_owned)
            .collect())
    }

    /// Downloads packages into a directory and unpacks them there.
    pub(crate) fn unpack(&self, packages: &[String], into: &Path) -> Result<()> {
        let mut download = self.command("apt-get");
        // apt's own user may not write there.
        download.args(["--quiet=2", "-o", "APT::Sandbox::User=root", "download"]);
        download.args(packages).current_dir(into);
        let downloaded = cmd::run(download);
        if downloaded.is_err() {
            // It may name files that the mirror has no more.
            fs::remove_file(self.dir.join("updated")).ok();
        }
        downloaded.with_context(|| {
            let name = &self.name;
            format!("can't download from Debian's suite {name}; the next run fetches its index anew")
        })?;
        for entry in fs::read_dir(into)?.flatten() {
            let path = entry.path();
            if path.extension().is_some_and(|kind| kind == "deb") {
                let mut unpack = cmd::command("dpkg-deb", ["--extract"]);
                unpack.arg(&path).arg(into);
                cmd::run(unpack)?;
                fs::remove_file(&path)?;
            }
        }
        Ok(())
    }

    /// apt-get's arguments to install from here, as `apt::install` runs it.
    pub(super) fn install(&self, package: &str) -> Command {
        let mut install = self.command("apt-get");
        install.args([
            "--quiet",
            apt::WAIT,
            "install",
            "--yes",
            "--no-install-recommends",
        ]);
        install
            .args(["--target-release", &self.name, package])
            .env("DEBIAN_FRONTEND", "noninteractive");
        install
    }

    fn command(&self, program: &str) -> Command {
        let dir = self.dir.display();
        let mut command = cmd::command(
            program,
            [
                "-o".to_owned(),
                "Dir::Etc::sourcelist=/dev/null".to_owned(),
                "-o".to_owned(),
                format!("Dir::Etc::sourceparts={dir}/parts"),
                "-o".to_owned(),
                format!("Dir::State::lists={dir}/lists"),
                // The machine's own caches describe its own sources.
                "-o".to_owned(),
                "Dir::Cache::pkgcache=".to_owned(),
                "-o".to_owned(),
                "Dir::Cache::srcpkgcache=".to_owned(),
            ],
        );
        command.env("LC_ALL", "C");
        command
    }
}

/// The suite that this machine was installed from; `None` if it is no Debian.
pub(crate) fn own() -> Option<String> {
    let text = fs::read_to_string("/etc/os-release").ok()?;
    let debian = text.lines().any(|line| line == "ID=debian");
    let name = text
        .lines()
        .find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    name.filter(|_| debian)
        .map(|name| name.trim_matches('"').to_owned())
}

/// Where the machine's own suite comes from.
fn mirror() -> Result<String> {
    let Some(own) = own() else {
        bail!("this is no Debian: no mirror is known");
    };
    let format = "$(RELEASE) $(REPO_URI)";
    let targets = cmd::command(
        "apt-get",
        ["indextargets", "--format", format, "Created-By: Packages"],
    );
    let listing = cmd::read(targets).context("apt-get can't say where packages come from")?;
    listing
        .lines()
        .filter_map(|line| line.split_once(' '))
        .find(|(release, _)| *release == own)
        .map(|(_, mirror)| mirror.to_owned())
        .with_context(|| format!("apt's sources have no suite {own}"))
}
