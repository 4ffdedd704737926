//! Files that may be read as secrets, and those that may not.

use std::os::unix::fs::{PermissionsExt as _, symlink};

use super::*;

fn secret_file(directory: &Path, content: &[u8], mode: u32) -> PathBuf {
    let path = directory.join("secret");
    fs::write(&path, content).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    path
}

fn refused(path: &Path) -> String {
    let error = read(path).unwrap_err();
    let text = format!("{error} {error:?}");
    assert!(!text.contains("hunter2"), "{text}");
    text
}

#[test]
fn a_closed_file_of_the_agents_own_is_read() {
    let directory = tempfile::tempdir().unwrap();
    for mode in [0o600, 0o400] {
        let path = secret_file(directory.path(), b"hunter2\n", 0o600);
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        let (secret, stamp) = read(&path).unwrap();
        assert_eq!(secret.expose(), "hunter2");
        assert_eq!(super::stamp(&path).unwrap(), stamp);
        fs::remove_file(&path).unwrap();
    }
}

#[test]
fn a_file_that_others_may_open_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    for mode in [0o640, 0o604, 0o620, 0o602, 0o610, 0o644, 0o666] {
        let path = secret_file(directory.path(), b"hunter2", mode);
        assert!(refused(&path).contains("chmod 0600"), "{mode:o}");
    }
}

#[test]
fn a_file_of_somebody_else_is_refused() {
    let metadata = tempfile::tempfile().unwrap().metadata().unwrap();
    let other = Path::new("/secret");
    let result = check_file(other, &metadata, metadata.uid() + 1);
    // Root's own files are fine for every agent.
    assert_eq!(
        result.is_ok(),
        metadata.uid() == 0 && metadata.mode() & 0o077 == 0
    );
    if nix::unistd::geteuid().is_root() {
        let directory = tempfile::tempdir().unwrap();
        let path = secret_file(directory.path(), b"hunter2", 0o600);
        std::os::unix::fs::chown(&path, Some(65_533), None).unwrap();
        assert!(refused(&path).contains("belongs to uid 65533"));
    }
}

#[test]
fn what_is_no_regular_file_is_refused_without_waiting() {
    let directory = tempfile::tempdir().unwrap();
    let target = secret_file(directory.path(), b"hunter2", 0o600);
    let link = directory.path().join("link");
    symlink(&target, &link).unwrap();
    assert!(refused(&link).contains("symbolic link"));
    let pipe = directory.path().join("pipe");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
    assert!(refused(&pipe).contains("regular file"));
    let socket = directory.path().join("socket");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    assert!(refused(&socket).contains("regular file"));
    assert!(refused(directory.path()).contains("regular file"));
    assert!(refused(Path::new("/dev/null")).contains("regular file"));
    assert!(refused(&directory.path().join("none")).contains("No such file"));
    assert!(refused(Path::new("secret")).contains("absolute"));
    assert!(refused(Path::new("/")).contains("regular file"));
}

#[test]
fn a_directory_that_others_may_write_is_refused_unless_it_is_sticky() {
    let directory = tempfile::tempdir().unwrap();
    let inner = directory.path().join("inner");
    fs::create_dir(&inner).unwrap();
    let path = secret_file(&inner, b"hunter2", 0o600);
    for (mode, good) in [
        (0o700, true),
        (0o755, true),
        (0o777, false),
        (0o775, false),
        (0o1777, true),
    ] {
        fs::set_permissions(&inner, fs::Permissions::from_mode(mode)).unwrap();
        assert_eq!(read(&path).is_ok(), good, "{mode:o}");
    }
    fs::set_permissions(&inner, fs::Permissions::from_mode(0o777)).unwrap();
    let link = directory.path().join("link");
    symlink(&inner, &link).unwrap();
    assert!(refused(&link.join("secret")).contains("can replace"));
}

#[test]
fn bad_content_is_refused_and_not_shown() {
    let directory = tempfile::tempdir().unwrap();
    let long = [b"hunter2".as_slice(), &[b'x'; MAX_LEN]].concat();
    for (content, reason) in [
        (b"".as_slice(), "empty"),
        (b"\n", "empty"),
        (b"hunter2\n\n", "line break"),
        (b"hunter2\0", "NUL"),
        (b"hunter2\xff", "ASCII"),
        (&long, "longer than"),
    ] {
        let path = secret_file(directory.path(), content, 0o600);
        assert!(refused(&path).contains(reason), "{reason}");
    }
    let path = secret_file(
        directory.path(),
        &[[b'x'; MAX_LEN].as_slice(), b"\r\n"].concat(),
        0o600,
    );
    assert_eq!(read(&path).unwrap().0.expose().len(), MAX_LEN);
}
