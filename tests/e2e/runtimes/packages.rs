//! Package managers against registries that ask for a token, which they do not have.

use anyhow::Result;
use harness::{audit, launch, require};

use super::*;

pub(super) const HOST: &str = "packages.example.test";

/// A package manager that installs the package: what for, what it fetches at least, and as whom it fetches.
struct Manager {
    name: &'static str,
    script: &'static str,
    fetched: &'static str,
    ways: &'static [Way],
    user: Option<&'static str>,
}

/// Installs for root alone, and has an ordinary user of its own fetch.
const APT: Manager = Manager {
    name: "apt",
    script: r#"
set -e
echo "deb [trusted=yes] https://packages.example.test apt/" > /etc/apt/sources.list.d/greeting.list
only="-o Dir::Etc::SourceList=/etc/apt/sources.list.d/greeting.list -o Dir::Etc::SourceParts=-"
apt-get clean
apt-get $only -q update
apt-get $only -q --yes --reinstall install greeting
cat /usr/share/greeting/text
"#,
    fetched: "/apt/greeting.deb",
    ways: AS_ROOT,
    user: Some("_apt"),
};

const PIP: Manager = Manager {
    name: "pip",
    script: r#"
set -e
place=$(mktemp -d)
pip install -q --no-cache-dir --target "$place" --index-url https://packages.example.test/pip greeting
PYTHONPATH=$place python3 -c "import greeting; print(greeting.text)"
"#,
    fetched: "/pip/greeting/greeting-1.0-py3-none-any.whl",
    ways: WAYS,
    user: None,
};

const NPM: Manager = Manager {
    name: "npm",
    script: r#"
set -e
cd $(mktemp -d)
npm install --silent --no-audit --no-fund --cache "$PWD/cache" --registry https://packages.example.test/npm greeting
node -p "require('greeting')"
"#,
    fetched: "/npm/greeting-1.0.0.tgz",
    ways: WAYS,
    user: None,
};

/// The rows that this file runs.
pub(super) const ROWS: &[&str] = &["apt", "pip", "npm"];

pub(super) fn registries(world: &mut World) -> Result<()> {
    let place = world.dir().join("packages");
    let script = include_str!("registry.py");
    let arguments =
        ["-c", script, &place.to_string_lossy(), &format!("https://{HOST}")].map(ToOwned::to_owned);
    launch::tool("python3".as_ref(), arguments)?;
    let files = format!(
        "if ($account = \"\") {{ return 401; }} root {}; index index.html; types {{ text/html html; }}",
        place.display()
    );
    world.upstream(Upstream::new(HOST).bearer(TOKEN, "acme").location("/", &files))?;
    Ok(())
}

/// It installs in each of its ways, and its calls, those to its own part of the registry, are on record as its user's.
fn check(host: &Host, manager: &Manager) -> Result<()> {
    for way in manager.ways {
        let output = host.run(*way, manager.script)?;
        let last = output.stdout.lines().last().map(ToOwned::to_owned);
        if !output.status.success() || last.as_deref() != Some("hello") {
            bail!("{way:?}: {output:?}\nrecords: {:#?}", host.0.records()?);
        }
    }
    let about = || -> Result<Vec<_>> {
        let mut records = host.0.records()?;
        records.retain(|one| one.text("path").starts_with(&format!("/{}/", manager.name)));
        Ok(records)
    };
    let fetched = [
        ("path", manager.fetched.into()),
        ("outcome", "completed".into()),
        ("status", 200.into()),
        ("credential.name", "api".into()),
    ];
    wait::until("a record of each fetched package", wait::PATIENCE, || {
        let records = about().ok()?;
        (audit::matching(&records, &fetched).len() == manager.ways.len()).then_some(())
    })
    .with_context(|| format!("{:#?}", about()))?;
    called_by(&about()?, manager.ways, manager.user)
}

#[test]
fn apt_pip_and_npm_install_from_registries_that_ask_for_a_token() -> Result<()> {
    require!(Root, CgroupV2, Btf, Runtimes);
    let host = Host::new(&[HOST], "", registries)?;
    let managers = [APT, PIP, NPM];
    for manager in &managers {
        check(&host, manager).context(manager.name)?;
    }
    promises(ROWS, "yes")?;
    let log = host.0.world().server(HOST)?.log()?;
    for manager in &managers {
        assert!(
            log.iter()
                .any(|one| one.uri == manager.fetched && one.status == 200),
            "{}: {log:?}",
            manager.fetched
        );
    }
    assert!(
        log.iter()
            .all(|one| one.authorization == format!("Bearer {TOKEN}")),
        "{log:?}"
    );
    Ok(())
}
