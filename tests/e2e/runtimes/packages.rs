//! Package managers against registries that ask for a token, which they do not have.

use anyhow::Result;
use harness::{launch, require};

use super::*;

const HOST: &str = "packages.example.test";

const SCRIPTS: &[(&str, &str)] = &[
    (
        "apt",
        r#"
set -e
echo "deb [trusted=yes] https://packages.example.test apt/" > /etc/apt/sources.list.d/greeting.list
only="-o Dir::Etc::SourceList=/etc/apt/sources.list.d/greeting.list -o Dir::Etc::SourceParts=-"
apt-get $only -q update
apt-get $only -q --yes --reinstall install greeting
cat /usr/share/greeting/text
"#,
    ),
    (
        "pip",
        r#"
set -e
place=$(mktemp -d)
pip install -q --no-cache-dir --target "$place" --index-url https://packages.example.test/pip greeting
PYTHONPATH=$place python3 -c "import greeting; print(greeting.text)"
"#,
    ),
    (
        "npm",
        r#"
set -e
cd $(mktemp -d)
npm install --silent --no-audit --no-fund --registry https://packages.example.test/npm greeting
node -p "require('greeting')"
"#,
    ),
];

/// The rows that this file runs.
pub(super) const ROWS: &[&str] = &["apt", "pip", "npm"];

/// What each fetches at least.
const FETCHED: &[&str] = &[
    "/apt/greeting.deb",
    "/pip/greeting/greeting-1.0-py3-none-any.whl",
    "/npm/greeting-1.0.0.tgz",
];

fn registries(world: &mut World) -> Result<()> {
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

#[test]
fn apt_pip_and_npm_install_from_registries_that_ask_for_a_token() -> Result<()> {
    require!(Root, CgroupV2, Btf, Runtimes);
    let host = Host::new(&[HOST], "", registries)?;
    for way in WAYS {
        for ((name, script), path) in SCRIPTS.iter().zip(FETCHED) {
            let output = host.run(*way, script)?;
            let last = output.stdout.lines().last().map(ToOwned::to_owned);
            if !output.status.success() || last.as_deref() != Some("hello") {
                bail!("{name} ({way:?}): {output:?}\nrecords: {:#?}", host.0.records()?);
            }
            let fetched = [
                ("path", (*path).into()),
                ("outcome", "completed".into()),
                ("status", 200.into()),
                ("credential.name", "api".into()),
            ];
            wait::until("a record of the package", wait::PATIENCE, || {
                let records = host.0.records().ok()?;
                (!harness::audit::matching(&records, &fetched).is_empty()).then_some(())
            })?;
        }
    }
    promises(ROWS, "yes")?;
    let log = host.0.world().server(HOST)?.log()?;
    for path in FETCHED {
        assert!(
            log.iter().any(|one| one.uri == *path && one.status == 200),
            "{path}: {log:?}"
        );
    }
    assert!(
        log.iter()
            .all(|one| one.authorization == format!("Bearer {TOKEN}")),
        "{log:?}"
    );
    Ok(())
}
