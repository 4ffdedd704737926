//! The file under full disks, kills, rotation and several writers.

use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigSet, Signal};

use std::collections::HashSet;
use std::os::unix::fs::FileExt as _;

use super::*;
use crate::audit::RequestId;

fn in_directory() -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("audit.jsonl");
    (directory, path)
}

#[test]
fn a_new_log_is_closed_to_others_and_a_link_is_never_followed() {
    let (directory, path) = in_directory();
    open(&path).unwrap();
    let mode = fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o137, 0, "{mode:o}");
    let link = directory.path().join("link");
    std::os::unix::fs::symlink(&path, &link).unwrap();
    open(&link).unwrap_err();
}

#[test]
fn a_torn_last_line_is_cut_off_and_whole_ones_stay() {
    let long = format!("{{}}\n{}", "x".repeat(10_000));
    for (before, after) in [
        ("", ""),
        ("torn", ""),
        ("{}\n", "{}\n"),
        ("{}\n{\"a", "{}\n"),
        (&long, "{}\n"),
    ] {
        let (_directory, path) = in_directory();
        fs::write(&path, before).unwrap();
        mend(&path, 1 << 20).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), after);
    }
}

#[test]
fn a_part_that_another_record_was_appended_to_is_blanked_and_every_line_is_json_again() {
    let (_directory, path) = in_directory();
    let whole = "{\"v\":1,\"path\":\"/{\\\"v\\\":\"}";
    fs::write(&path, format!("{whole}\n{{\"v\":1,\"ti{whole}\n{whole}\n{whole}")).unwrap();
    mend(&path, 1 << 20).unwrap();
    let text = fs::read_to_string(&path).unwrap();
    assert_eq!(text, format!("{whole}\n          {whole}\n{whole}\n"));
    mend(&path, 20).unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), text);
}

#[test]
fn a_worker_that_may_not_cut_the_file_completes_its_line_before_anybody_else_writes() {
    let (_directory, path) = in_directory();
    let mut worker = FileSink::new(open(&path).unwrap(), Writes::Worker, Sync::Never);
    let lines = b"first\nsecond\n";
    // As if write(2) had ended there.
    worker.lock().unwrap();
    OpenOptions::new()
        .write(true)
        .open(&path)
        .unwrap()
        .write_all_at(&lines[..8], 0)
        .unwrap();
    assert_eq!(
        worker
            .cut_short(lines, 8, io::ErrorKind::StorageFull.into())
            .written,
        6
    );
    let mut other = FileSink::new(open(&path).unwrap(), Writes::Supervisor, Sync::Never);
    assert_eq!(other.append(b"third\n").unwrap_err().written, 0);
    worker.append(&lines[6..]).unwrap();
    other.append(b"third\n").unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), "first\nsecond\nthird\n");
}

#[test]
fn a_file_that_was_removed_takes_no_records() {
    let (_directory, path) = in_directory();
    let mut sink = FileSink::new(open(&path).unwrap(), Writes::Worker, Sync::Never);
    sink.append(b"first\n").unwrap();
    assert!(sink.is_at(&path).unwrap());
    fs::remove_file(&path).unwrap();
    assert!(!sink.is_at(&path).unwrap());
    assert_eq!(sink.append(b"second\n").unwrap_err().written, 0);
    sink.reopen(open(&path).unwrap());
    sink.append(b"second\n").unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), "second\n");
}

#[test]
fn rotation_keeps_as_many_as_it_should() {
    let (_directory, path) = in_directory();
    for number in 0..5 {
        fs::write(&path, format!("{number}")).unwrap();
        assert!(rotate(&path, 1, 2).unwrap());
    }
    open(&path).unwrap();
    assert!(!rotate(&path, 1, 2).unwrap(), "an empty log is not rotated");
    assert_eq!(fs::read_to_string(rotated(&path, 1)).unwrap(), "4");
    assert_eq!(fs::read_to_string(rotated(&path, 2)).unwrap(), "3");
    assert!(!rotated(&path, 3).exists());
    fs::remove_file(&path).unwrap();
    assert!(
        rotate(&path, 1, 2).unwrap(),
        "a log that somebody removed is made anew"
    );
}

#[test]
fn two_writers_never_mix_their_lines() {
    let (_directory, path) = in_directory();
    let threads = ['a', 'b'].map(|letter| {
        let mut sink = FileSink::new(open(&path).unwrap(), Writes::Supervisor, Sync::EachBatch);
        let batch = format!("{}\n", letter.to_string().repeat(3000)).repeat(20);
        std::thread::spawn(move || (0..20).for_each(|_| sink.append(batch.as_bytes()).unwrap()))
    });
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    let text = fs::read_to_string(&path).unwrap();
    assert_eq!(text.lines().count(), 800);
    assert!(
        text.lines()
            .all(|line| line == "a".repeat(3000) || line == "b".repeat(3000))
    );
}

#[test]
fn a_line_cut_short_is_taken_off_again_and_written_whole_later() {
    // A file size limit holds for the whole process, so this test starts itself in one of its own.
    if let Some(directory) = std::env::var_os("CALLGATE_TEST_DIRECTORY") {
        return write_with_little_room(&PathBuf::from(directory));
    }
    let directory = tempfile::tempdir().unwrap();
    let own = "audit::file::tests::a_line_cut_short_is_taken_off_again_and_written_whole_later";
    let child = Command::new(std::env::current_exe().unwrap())
        .args([own, "--exact"])
        .env("CALLGATE_TEST_DIRECTORY", directory.path())
        .output()
        .unwrap();
    assert!(
        child.status.success(),
        "{}",
        String::from_utf8_lossy(&child.stdout)
    );
    let text = fs::read_to_string(directory.path().join("audit.jsonl")).unwrap();
    assert_eq!(text, "first line\nsecond line\nthird line\n");
}

fn write_with_little_room(directory: &Path) {
    let path = directory.join("audit.jsonl");
    let mut sink = FileSink::new(open(&path).unwrap(), Writes::Supervisor, Sync::Never);
    // Blocked, so that write(2) answers EFBIG instead.
    SigSet::from(Signal::SIGXFSZ).thread_block().unwrap();
    let (_, most) = getrlimit(Resource::RLIMIT_FSIZE).unwrap();
    setrlimit(Resource::RLIMIT_FSIZE, 16, most).unwrap();
    let lines = b"first line\nsecond line\nthird line\n";
    let error = sink.append(lines).unwrap_err();
    assert_eq!(error.written, 11);
    assert_eq!(fs::read(&path).unwrap(), b"first line\n");
    assert_eq!(sink.append(&lines[11..]).unwrap_err().written, 0);
    assert_eq!(fs::read(&path).unwrap(), b"first line\n");
    setrlimit(Resource::RLIMIT_FSIZE, most, most).unwrap();
    sink.append(&lines[11..]).unwrap();
}

#[test]
fn ids_are_read_past_torn_lines_and_only_from_the_tail() {
    let (_directory, path) = in_directory();
    assert!(ids(&path, 100).unwrap().is_empty());
    let [a, b] = [1, 2].map(|byte| RequestId::from_bytes([byte; 16]));
    let text = format!("{{\"v\":1,\"id\":\"{a}\"}}\n{{\"v\":1,\"id\":\"{b}\"}}\n{{\"torn");
    fs::write(&path, &text).unwrap();
    assert_eq!(ids(&path, 1 << 20).unwrap(), HashSet::from([a, b]));
    assert_eq!(ids(&path, text.len() as u64 - 5).unwrap(), HashSet::from([b]));
}
