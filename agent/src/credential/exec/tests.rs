//! Helpers that succeed, fail, hang, flood and leave children behind.

use std::time::Instant;

use super::*;

fn sh(script: &str) -> Vec<String> {
    ["/bin/sh", "-c", script].map(str::to_owned).to_vec()
}

async fn refused(script: &str, timeout: Duration) -> ExecError {
    let error = run(&sh(script), timeout).await.unwrap_err();
    let text = format!("{error} {error:?}");
    assert!(!text.contains("hunter2"), "{text}");
    error
}

const LONG: Duration = Duration::from_secs(20);

#[tokio::test]
async fn what_a_helper_prints_is_the_secret() {
    let secret = run(&sh("echo hunter2; echo noise >&2"), LONG).await.unwrap();
    assert_eq!(secret.expose(), "hunter2");
}

#[tokio::test]
async fn a_helper_gets_no_environment_and_no_shell() {
    let secret = run(&["/usr/bin/env".to_owned()], LONG).await.unwrap();
    assert_eq!(secret.expose(), format!("PATH={PATH}"));
    let secret = run(&["/bin/echo".to_owned(), "$HOME;`id`".to_owned()], LONG)
        .await
        .unwrap();
    assert_eq!(secret.expose(), "$HOME;`id`");
}

#[tokio::test]
async fn a_helper_that_fails_gives_its_status_and_nothing_it_printed() {
    let error = refused("echo hunter2; echo hunter2 >&2; exit 3", LONG).await;
    assert!(error.to_string().contains("exit status 3"), "{error}");
    let error = refused("echo hunter2; kill -9 $$", LONG).await;
    assert!(error.to_string().contains("signal 9"), "{error}");
}

#[tokio::test]
async fn what_can_be_no_secret_is_refused() {
    for script in [
        "true",
        "echo",
        "printf 'hunter2\\nhunter2\\n'",
        "printf 'hunter2\\0'",
    ] {
        assert!(
            matches!(refused(script, LONG).await, ExecError::Output { .. }),
            "{script}"
        );
    }
}

#[tokio::test]
async fn a_flood_is_cut_off() {
    let began = Instant::now();
    let error = refused("yes hunter2", LONG).await;
    assert!(began.elapsed() < LONG, "{error}");
}

#[tokio::test]
async fn a_helper_that_hangs_is_killed_with_all_its_children() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("pid");
    let script = format!(
        "sleep 1000 & echo $! > {0}.new; mv {0}.new {0}; wait",
        file.display()
    );
    let error = refused(&script, Duration::from_secs(1)).await;
    assert!(matches!(error, ExecError::Timeout { .. }));
    let pid: i32 = std::fs::read_to_string(&file).unwrap().trim().parse().unwrap();
    let deadline = Instant::now() + LONG;
    while running(pid) {
        assert!(Instant::now() < deadline, "the helper's child lives on");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A zombie that waits for its new parent has ended too.
fn running(pid: i32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit(')').next().unwrap().trim_start().starts_with('Z'))
}

#[tokio::test]
async fn a_helper_is_named_by_its_absolute_path() {
    for command in [vec![], vec!["sh".to_owned()], vec!["./sh".to_owned()]] {
        assert!(matches!(
            run(&command, LONG).await,
            Err(ExecError::Relative { .. })
        ));
    }
    let missing = run(&["/nonexistent/helper".to_owned()], LONG).await.unwrap_err();
    assert!(missing.to_string().contains("No such file"), "{missing}");
}
