//! The record's form on disk.

use std::path::Path;

use proptest::prelude::*;

use super::*;
use crate::identity::{Cgroup, WorkloadName};

fn full() -> Record {
    let caller = Caller {
        workload: Some(WorkloadName::parse("billing").unwrap()),
        unit: Some("billing.service".into()),
        invocation: Some("0123456789abcdef0123456789abcdef".into()),
        cgroup: Some(Cgroup {
            id: 42,
            path: Some("/callgate.slice/callgate-billing.slice/billing.service".into()),
        }),
        container: None,
        pid: Some(4711),
        start_time: Some(123_456_789_000),
        uid: Some(1000),
        gid: Some(1000),
        user: Some("app".into()),
        comm: Some("curl".into()),
        exe: Some(Exe {
            path: Some("/usr/bin/curl".into()),
            device: 65_025,
            inode: 99,
            sha256: None,
        }),
    };
    let time = Timestamp::from_unix_micros(1_700_000_000_000_001);
    let mut record = Record::new(Kind::Call, RequestId::from_bytes([7; 16]), time, caller.into());
    record.outcome = Outcome::Completed;
    record.connection = Some(ConnectionId::from_bytes([8; 16]));
    record.original_destination = Some("192.0.2.1:443".parse().unwrap());
    record.sni = Some("api.stripe.com".into());
    record.authority = Some("api.stripe.com:443".into());
    record.scheme = Some(Scheme::Https);
    record.protocol = Some(Protocol::H2);
    record.method = Some("GET".into());
    record.path = Some("/v1/charges".into());
    record.query = Some("limit=*".into());
    record.decision = Some(Decision::Allow);
    record.rule = Some("charges".into());
    record.policy = Some(Arc::new(PolicyVersion {
        digest: "ab".into(),
        generation: 3,
    }));
    record.credential = Some(Credential {
        name: "stripe".into(),
        version: "1@2026-01-01T00:00:00Z".into(),
    });
    record.upstream = Some("198.51.100.1:443".parse().unwrap());
    record.status = Some(200);
    record.bytes_down = 12;
    record.timings.total_us = 900;
    record
}

fn line(record: &Record) -> String {
    let mut line = Vec::new();
    record.write_line(&mut line).unwrap();
    String::from_utf8(line).unwrap()
}

#[test]
fn the_names_never_change() {
    assert_eq!(
        line(&full()),
        concat!(
            r#"{"v":1,"time":"2023-11-14T22:13:20.000001Z","id":"07070707-0707-0707-0707-070707070707","#,
            r#""kind":"call","connection":"08080808-0808-0808-0808-080808080808","#,
            r#""original_destination":"192.0.2.1:443","sni":"api.stripe.com","authority":"api.stripe.com:443","#,
            r#""scheme":"https","method":"GET","path":"/v1/charges","query":"limit=*","#,
            r#""workload":"billing","unit":"billing.service","invocation":"0123456789abcdef0123456789abcdef","#,
            r#""cgroup":{"id":42,"path":"/callgate.slice/callgate-billing.slice/billing.service"},"#,
            r#""pid":4711,"start_time":123456789000,"uid":1000,"gid":1000,"user":"app","comm":"curl","#,
            r#""exe":{"path":"/usr/bin/curl","device":65025,"inode":99},"#,
            r#""outcome":"completed","protocol":"h2","#,
            r#""decision":"allow","rule":"charges","policy":{"digest":"ab","generation":3},"#,
            r#""credential":{"name":"stripe","version":"1@2026-01-01T00:00:00Z"},"upstream":"198.51.100.1:443","#,
            r#""status":200,"bytes_up":0,"bytes_down":12,"timings":{"total_us":900}}"#,
            "\n"
        )
    );
}

#[test]
fn a_record_comes_back_as_it_was() {
    let mut record = full();
    assert_eq!(Record::parse(line(&record).as_bytes()).unwrap(), record);
    record.caller = Caller::default().into();
    assert_eq!(Record::parse(line(&record).as_bytes()).unwrap(), record);
}

#[test]
fn a_call_that_has_just_begun_is_told_by_what_it_has() {
    let record = full();
    for identify_us in [None, Some(5)] {
        let mut begun = Record::new(record.kind, record.id, record.time, record.caller.clone());
        begun.protocol = Some(Protocol::H2);
        begun.timings.identify_us = identify_us;
        let mut line = Vec::new();
        begun.beginning().write(&begun.caller, &mut line).unwrap();
        begun.write_unended(&mut line).unwrap();
        assert_eq!(Record::parse(&line).unwrap(), begun);
    }
}

#[test]
fn records_of_one_caller_share_its_words_and_another_has_its_own() {
    let mut record = full();
    let first = line(&record);
    assert_eq!(line(&record), first);
    record.caller = Caller {
        pid: Some(1),
        ..Caller::default()
    }
    .into();
    assert!(
        line(&record).contains(r#""query":"limit=*","pid":1,"outcome""#),
        "{}",
        line(&record)
    );
}

#[test]
fn no_fact_of_a_record_is_left_out_of_its_line() {
    let mut record = full();
    record.truncated = true;
    record.reason = Some("no_rule".into());
    record.error = Some(Error {
        source: Source::Upstream,
        kind: "connect".into(),
        message: "refused".into(),
    });
    record.kernel = Some(KernelLoss {
        events: 1,
        map_full: 2,
    });
    record.count = Some(3);
    assert_eq!(Record::parse(line(&record).as_bytes()).unwrap(), record);
}

#[test]
fn values_of_a_query_are_redacted_and_keys_stay() {
    for (query, want) in [
        ("", ""),
        ("a=1&b=2", "a=*&b=*"),
        ("a=&b", "a=*&b"),
        ("&&a=1&", "&&a=*&"),
        ("sk_live_0123456789abcdef0123456789abcdef", "*"),
        ("a[b]=1&x%20y=2", "a[b]=*&x%20y=*"),
        ("a=1;token=2", "a=*"),
        ("a;token=2", "*"),
        ("=x", "=*"),
        ("https://u:p@h/", "*"),
    ] {
        assert_eq!(redact_query(query), want, "{query:?}");
    }
}

#[test]
fn a_path_that_is_no_utf8_can_be_read_and_told_apart() {
    use std::os::unix::ffi::OsStrExt as _;
    let bytes = std::ffi::OsStr::from_bytes(b"/bin/\xff\xfea");
    assert_eq!(text::path(Path::new(bytes)), "/bin/\\xff\\xfea");
}

#[test]
fn clipping_never_cuts_a_character() {
    assert_eq!(clip("aü", 2), "a");
    assert_eq!(clip("aü", 3), "aü");
}

proptest! {
    #[test]
    fn whatever_a_client_sends_stays_in_one_line_of_printable_ascii(path in any::<String>(), method in any::<String>()) {
        let mut record = full();
        record.path = Some(path.into());
        record.method = Some(method.into());
        let line = line(&record);
        let body = line.strip_suffix('\n').unwrap();
        prop_assert!(body.bytes().all(|byte| matches!(byte, 0x20..0x7f)), "{}", body);
        prop_assert_eq!(Record::parse(body.as_bytes()).unwrap(), record);
    }

    #[test]
    fn no_value_of_a_query_survives(values in proptest::collection::vec("[a-z]{3}QQ[ -%'-~]{0,20}", 1..5)) {
        let query: Vec<_> = values.iter().map(|value| format!("k={value}")).collect();
        prop_assert!(!redact_query(&query.join("&")).contains("QQ"));
    }
}
