//! Tests of `tls::ca`.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};

use tempfile::TempDir;

use super::*;

fn private_dir() -> TempDir {
    tempfile::tempdir().unwrap()
}

fn load(path: &Path) -> Result<Root, Error> {
    Root::load_or_create(path, SystemTime::now())
}

#[test]
fn the_root_is_made_once_and_then_read() {
    let dir = private_dir();
    let path = dir.path().join("state/ca.pem");
    let first = load(&path).unwrap();
    let second = load(&path).unwrap();
    assert_eq!(first.certificate_pem(), second.certificate_pem());
    assert!(first.certificate_pem().starts_with("-----BEGIN CERTIFICATE-----"));
    assert!(!first.certificate_pem().contains("PRIVATE"));
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o600);
    let names: Vec<_> = fs::read_dir(path.parent().unwrap())
        .unwrap()
        .map(|it| it.unwrap().file_name())
        .collect();
    assert_eq!(names, ["ca.pem"], "nothing temporary stays");
}

#[test]
fn many_makers_at_once_end_with_one_root() {
    let dir = private_dir();
    let path = dir.path().join("ca.pem");
    let roots: Vec<String> = std::thread::scope(|scope| {
        let makers: Vec<_> = (0..8)
            .map(|_| scope.spawn(|| load(&path).unwrap().certificate_pem))
            .collect();
        makers.into_iter().map(|maker| maker.join().unwrap()).collect()
    });
    assert!(roots.iter().all(|root| *root == roots[0]));
}

#[test]
fn a_file_that_others_can_read_or_replace_is_refused() {
    let dir = private_dir();
    let path = dir.path().join("ca.pem");
    load(&path).unwrap();
    for mode in [0o640, 0o604, 0o660, 0o700] {
        fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        let error = load(&path).unwrap_err();
        assert!(matches!(error, Error::RootUnsafe { .. }), "{mode:o}: {error}");
        assert!(error.to_string().contains(&format!("{mode:04o}")), "{error}");
    }
    fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
    fs::set_permissions(dir.path(), Permissions::from_mode(0o777)).unwrap();
    assert!(matches!(load(&path), Err(Error::RootUnsafe { .. })), "directory");
    assert!(
        matches!(load(&dir.path().join("new.pem")), Err(Error::RootUnsafe { .. })),
        "no new one either"
    );
    assert!(!dir.path().join("new.pem").exists());
}

#[test]
fn another_owner_is_refused() {
    if crate::tests::lacks_root() {
        return;
    }
    let dir = private_dir();
    let path = dir.path().join("ca.pem");
    load(&path).unwrap();
    std::os::unix::fs::chown(&path, Some(65534), None).unwrap();
    let error = load(&path).unwrap_err();
    assert!(error.to_string().contains("belongs to user 65534"), "{error}");
}

#[test]
fn links_and_other_files_are_refused() {
    let dir = private_dir();
    let real = dir.path().join("real.pem");
    load(&real).unwrap();
    let link = dir.path().join("link.pem");
    symlink(&real, &link).unwrap();
    assert!(matches!(load(&link), Err(Error::RootFile { .. })));
    let fifo = dir.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRUSR).unwrap();
    assert!(matches!(load(&fifo), Err(Error::RootUnsafe { .. })));
}

#[test]
fn a_damaged_file_is_named_and_left_alone() {
    let dir = private_dir();
    let path = dir.path().join("ca.pem");
    load(&path).unwrap();
    let good = fs::read_to_string(&path).unwrap();
    let other_path = dir.path().join("other.pem");
    let other = load(&other_path).unwrap();
    let mixed = format!("{}{}", other.certificate_pem(), file::key_part(&good).unwrap());
    for (what, text) in [
        ("empty", String::new()),
        ("cut", good[..good.len() / 2].to_owned()),
        ("no key", file::certificate_part(&good).unwrap().to_owned()),
        ("another root's certificate", mixed),
    ] {
        fs::write(&path, &text).unwrap();
        assert!(matches!(load(&path), Err(Error::RootDamaged { .. })), "{what}");
        assert_eq!(fs::read_to_string(&path).unwrap(), text, "{what}");
    }
}

#[test]
fn an_intermediate_travels_whole_and_shows_no_key() {
    let dir = private_dir();
    let root = load(&dir.path().join("ca.pem")).unwrap();
    let host = "api.example.com".parse().unwrap();
    let intermediate = root.issue_intermediate(&host, SystemTime::now()).unwrap();
    let bytes = postcard::to_stdvec(&intermediate).unwrap();
    let back: Intermediate = postcard::from_bytes(&bytes).unwrap();
    assert_eq!(back.key_pkcs8.as_slice(), intermediate.key_pkcs8.as_slice());
    assert_eq!(back.certificate_der, intermediate.certificate_der);
    let shown = format!("{:?} {root:?}", intermediate.key_pkcs8);
    assert_eq!(shown, "KeyBytes(..) Root(..)");
    let again = root.issue_intermediate(&host, SystemTime::now()).unwrap();
    assert_ne!(again.key_pkcs8.as_slice(), intermediate.key_pkcs8.as_slice());
}

#[test]
fn a_host_of_full_length_gets_an_intermediate() {
    let dir = private_dir();
    let root = load(&dir.path().join("ca.pem")).unwrap();
    let label = "a".repeat(61);
    let host = HostName::parse(&format!("{label}.{label}.{label}.{label}.ab")).unwrap();
    root.issue_intermediate(&host, SystemTime::now()).unwrap();
}
