//! Sources that change, fail and come back.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use super::super::spec::{CredentialScheme, HostScope};
use super::*;
use crate::addr::{Authority, HostName};

fn keeper(source: CredentialSource) -> Keeper {
    Keeper::new(CredentialSpec {
        name: CredentialName::parse("key").unwrap(),
        hosts: vec![HostScope {
            authority: Authority::new(HostName::parse("api.example.com").unwrap(), 443),
            path_prefix: None,
        }],
        scheme: CredentialScheme::Bearer,
        source,
    })
}

/// As the second after.
async fn look(keeper: &mut Keeper) -> Option<Result<(String, String), String>> {
    keeper.due = Instant::now();
    let update = keeper.settle(Duration::from_secs(20)).await?;
    Some(match update.value {
        Value::Ready { secret, version } => Ok((secret.expose().to_owned(), version.to_string())),
        Value::Unavailable { reason } => Err(reason.to_string()),
    })
}

fn write(path: &Path, content: &str) {
    let new = path.with_extension("new");
    fs::write(&new, content).unwrap();
    fs::set_permissions(&new, fs::Permissions::from_mode(0o600)).unwrap();
    fs::rename(&new, path).unwrap();
}

#[tokio::test]
async fn a_file_is_read_again_when_it_changes_and_only_then() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("secret");
    let mut keeper = keeper(CredentialSource::File { path: path.clone() });
    assert!(
        look(&mut keeper)
            .await
            .unwrap()
            .unwrap_err()
            .contains("No such file")
    );
    assert!(look(&mut keeper).await.is_none(), "the same failure is told once");
    write(&path, "hunter1\n");
    let (value, first) = look(&mut keeper).await.unwrap().unwrap();
    assert_eq!(value, "hunter1");
    assert!(first.starts_with("1@20"), "{first}");
    assert!(look(&mut keeper).await.is_none());
    write(&path, "hunter2\n");
    let (value, second) = look(&mut keeper).await.unwrap().unwrap();
    assert_eq!(value, "hunter2");
    assert!(second.starts_with("2@20"), "{second}");
    write(&path, "hunter2");
    assert!(look(&mut keeper).await.is_none(), "the same value is no news");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    assert!(
        look(&mut keeper)
            .await
            .unwrap()
            .unwrap_err()
            .contains("chmod 0600")
    );
    assert!(matches!(
        keeper.current().unwrap().value,
        Value::Unavailable { .. }
    ));
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(look(&mut keeper).await.unwrap().unwrap().0, "hunter2");
    assert!(!format!("{keeper:?}").contains("hunter2"));
}

#[tokio::test]
async fn a_source_is_not_looked_at_before_it_is_due() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("secret");
    let mut keeper = keeper(CredentialSource::File { path: path.clone() });
    assert!(keeper.poll().is_some());
    keeper.due = Instant::now() + Duration::from_secs(3600);
    write(&path, "hunter2");
    assert!(keeper.poll().is_none());
}

#[tokio::test]
async fn a_helper_that_fails_leaves_its_last_answer_only_until_that_ends() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("secret");
    let ttl = Duration::from_secs(3600);
    let mut keeper = keeper(CredentialSource::Exec {
        command: vec!["/bin/cat".to_owned(), path.to_str().unwrap().to_owned()],
        timeout: Duration::from_secs(20),
        ttl,
    });
    assert!(
        look(&mut keeper)
            .await
            .unwrap()
            .unwrap_err()
            .contains("exit status 1")
    );
    write(&path, "hunter1\n");
    assert_eq!(look(&mut keeper).await.unwrap().unwrap().0, "hunter1");
    assert!(keeper.due > Instant::now() + ttl / 2, "its answer is kept");
    fs::remove_file(&path).unwrap();
    assert!(look(&mut keeper).await.is_none(), "the answer still holds");
    assert!(matches!(keeper.current().unwrap().value, Value::Ready { .. }));
    keeper.expires = Some(Instant::now());
    assert!(
        look(&mut keeper)
            .await
            .unwrap()
            .unwrap_err()
            .contains("exit status 1")
    );
}

#[tokio::test]
async fn a_helper_that_hangs_holds_nobody_up_and_its_old_answer_ends_in_time() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("secret");
    write(&path, "hunter1");
    let script = format!("cat {0} && rm {0} || exec sleep 60", path.display());
    let mut keeper = keeper(CredentialSource::Exec {
        command: ["/bin/sh", "-c", &script].map(str::to_owned).to_vec(),
        timeout: Duration::from_secs(60),
        ttl: Duration::from_secs(3600),
    });
    assert_eq!(look(&mut keeper).await.unwrap().unwrap().0, "hunter1");
    keeper.due = Instant::now();
    assert!(keeper.poll().is_none(), "the helper runs, the old answer holds");
    assert!(matches!(keeper.current().unwrap().value, Value::Ready { .. }));
    keeper.expires = Some(Instant::now());
    let Some(Value::Unavailable { reason }) = keeper.poll().map(|update| update.value) else {
        panic!("the old answer has ended");
    };
    assert!(reason.contains("has ended"), "{reason}");
}

#[tokio::test]
async fn a_systemd_credential_without_systemd_says_what_to_do() {
    let mut keeper = keeper(CredentialSource::Systemd {
        name: "../x".to_owned(),
    });
    assert!(
        look(&mut keeper)
            .await
            .unwrap()
            .unwrap_err()
            .contains("one file name")
    );
}
