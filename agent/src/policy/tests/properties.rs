//! Properties of decisions, against an evaluator that knows no index: it walks the rules as they are listed.

use proptest::prelude::*;
use proptest::sample::subsequence;

use super::super::explain::miss;
use super::*;

/// Decides as DESIGN's sentence says it: deny wins; of the allows the most specific path, then the exact host.
fn reference(policy: &Policy, identity: &Identity, call: &Call<'_>) -> Option<String> {
    let workload = policy.workload(&identity.workload)?;
    if !workload.conditions().hold(identity).for_allow() {
        return None;
    }
    let matching: Vec<&Rule> = workload
        .rules()
        .iter()
        .filter(|rule| miss(rule, identity, call).is_none())
        .collect();
    if matching.iter().any(|rule| rule.kind == RuleKind::Deny) {
        return None;
    }
    let specific = |rule: &&&Rule| {
        let of_template = |template: &path::Template| {
            let kind = |segment: &str| match segment {
                segment if segment.ends_with("..}") => 2,
                segment if segment.starts_with('{') => 1,
                _ => 0,
            };
            template
                .as_str()
                .split('/')
                .skip(1)
                .map(kind)
                .collect::<Vec<u8>>()
        };
        let paths = rule
            .paths
            .iter()
            .filter(|template| template.matches(call.path))
            .map(of_template);
        let wildcard = matches!(rule.host, Some(matcher::HostPattern::Below(_)));
        (
            paths.min().unwrap_or_else(|| vec![9]),
            wildcard,
            Arc::clone(&rule.label),
        )
    };
    let best = matching
        .iter()
        .filter(|rule| rule.kind == RuleKind::Allow)
        .min_by_key(specific)?;
    Some(format!(
        "allow {} {}",
        best.label,
        best.credential.as_ref().map_or("-", |name| name.as_str())
    ))
}

fn text_rule(kind: &'static str) -> impl Strategy<Value = String> {
    let host = prop::sample::select(vec!["a.b.c", "b.c", "*.b.c", "*.c.d", "x.c.d"]);
    let paths = subsequence(
        vec![
            "/",
            "/a",
            "/a/",
            "/a/{x}",
            "/{x}/b",
            "/a/b",
            "/{r..}",
            "/a/{r..}",
            "/A",
            "/a/{x}/{r..}",
        ],
        0..4,
    );
    let methods = subsequence(vec!["GET", "POST", "PUT"], 0..3);
    let extra = prop::sample::select(vec![
        "",
        "exe = '/usr/bin/app'",
        "exe = '/usr/bin/other'",
        "user = 'app'",
        "query = { q = ['1', '2*'] }",
        "headers = { h = 'x' }",
        "port = 8443",
        "scheme = 'http'",
    ]);
    (host, paths, methods, extra, any::<bool>()).prop_map(move |(host, paths, methods, extra, credential)| {
        let list = |key: &str, values: &[&str]| {
            if values.is_empty() {
                String::new()
            } else {
                format!("{key} = {values:?}\n")
            }
        };
        let credential = if kind == "allow" && credential && !host.starts_with('*') {
            "credential = 's'\n"
        } else {
            ""
        };
        format!(
            "host = '{host}'\n{}{}{extra}\n{credential}",
            list("paths", &paths),
            list("methods", &methods)
        )
    })
}

/// Rules that each have a name of their own, as texts.
fn text_rules() -> impl Strategy<Value = Vec<String>> {
    let rule = prop_oneof![3 => text_rule("allow").prop_map(|r| ("allow", r)), 1 => text_rule("deny").prop_map(|r| ("deny", r))];
    prop::collection::vec(rule, 1..8).prop_map(|rules| {
        let named = rules.into_iter().enumerate();
        named
            .map(|(at, (kind, body))| format!("[[workload.{kind}]]\nname = 'r{at}'\n{body}\n"))
            .collect()
    })
}

const CREDENTIAL: &str = "[credential.s]\nhosts = ['a.b.c', 'b.c', 'x.c.d', 'a.b.c:8443', 'b.c:8443', 'x.c.d:8443', \
                          'a.b.c:80', 'b.c:80', 'x.c.d:80']\nscheme = 'bearer'\nsource = { file = '/s' }\n";

fn compiled(rules: &[String]) -> Option<Policy> {
    let text = format!("[[workload]]\nname = 'w'\n{}", rules.concat());
    Policy::compile(&[Source::new("a", &text), Source::new("b", CREDENTIAL)]).ok()
}

fn request() -> impl Strategy<Value = Request> {
    let host = prop::sample::select(vec!["a.b.c", "b.c", "x.c.d", "q.a.b.c", "a.b.c:8443", "z.z"]);
    let path = prop::sample::select(vec![
        "/",
        "/a",
        "/a/",
        "/A",
        "/a/b",
        "/a/b/",
        "/a/c",
        "/x/b",
        "/a;p/B",
        "/a/b/c",
        "/%41/b%3Bq",
        "/a%20b",
    ]);
    let method = prop::sample::select(vec!["GET", "POST", "PUT", "get"]);
    let query = prop::sample::select(vec!["", "q=1", "q=22", "q=1&q=3", "Q=1", "z;q=1"]);
    (any::<bool>(), host, path, method, query, any::<bool>()).prop_map(
        |(plain, host, path, method, query, header)| {
            let scheme = if plain { "http" } else { "https" };
            let request = Request::new(method, &format!("{scheme}://{host}{path}?{query}"));
            if header { request.header("h", "x") } else { request }
        },
    )
}

fn someone() -> impl Strategy<Value = Identity> {
    (any::<bool>(), any::<bool>()).prop_map(|(executable, user)| Identity {
        executable: caller().executable.filter(|_| executable),
        user: caller().user.filter(|_| user),
        ..caller()
    })
}

fn allowed(outcome: &str) -> Option<String> {
    outcome.starts_with("allow").then(|| outcome.to_owned())
}

proptest! {
    #![proptest_config(ProptestConfig { max_global_rejects: 20_000, ..ProptestConfig::with_cases(600) })]

    #[test]
    fn the_engine_decides_as_the_reference_does(rules in text_rules(), requests in prop::collection::vec((request(), someone()), 8)) {
        let policy = compiled(&rules);
        prop_assume!(policy.is_some());
        let policy = policy.unwrap();
        for (request, identity) in &requests {
            let outcome = outcome(&policy, identity, request);
            prop_assert_eq!(allowed(&outcome), reference(&policy, identity, &request.call()), "{}", outcome);
        }
    }

    #[test]
    fn adding_a_deny_never_allows_more(
        rules in text_rules(), deny in text_rule("deny"), request in request(), identity in someone(),
    ) {
        let more: Vec<String> =
            rules.iter().cloned().chain([format!("[[workload.deny]]\nname = 'more'\n{deny}\n")]).collect();
        let (before, after) = (compiled(&rules), compiled(&more));
        prop_assume!(before.is_some() && after.is_some());
        let (before, after) = (before.unwrap(), after.unwrap());
        let (before, after) = (outcome(&before, &identity, &request), outcome(&after, &identity, &request));
        prop_assert!(allowed(&after).is_none() || after == before, "{} {}", before, after);
    }

    #[test]
    fn the_order_of_rules_and_files_never_matters(
        (rules, shuffled) in text_rules().prop_flat_map(|rules| (Just(rules.clone()), Just(rules).prop_shuffle())),
        requests in prop::collection::vec((request(), someone()), 4),
    ) {
        let one = compiled(&rules);
        let text = format!("[[workload]]\nname = 'w'\n{}", shuffled.concat());
        let other = Policy::compile(&[Source::new("0", CREDENTIAL), Source::new("z", &text)]).ok();
        prop_assert_eq!(one.is_some(), other.is_some());
        prop_assume!(one.is_some());
        let (one, other) = (one.unwrap(), other.unwrap());
        for (request, identity) in &requests {
            prop_assert_eq!(outcome(&one, identity, request), outcome(&other, identity, request));
        }
    }

    #[test]
    fn what_is_matched_is_what_is_sent(raw in "/(a|%61|b|%7e|%3B|;|A){1,4}(/(a|%62|c)){0,2}/?", rules in text_rules()) {
        let policy = compiled(&rules);
        prop_assume!(policy.is_some());
        let policy = policy.unwrap();
        let Ok(path) = NormalPath::parse(&raw) else { return Ok(()) };
        let first = Request::new("GET", &format!("https://a.b.c{raw}"));
        // The upstream, or an agent before it, reads what is sent: it must come to the same answer.
        let again = Request::new("GET", &format!("https://a.b.c{path}"));
        prop_assert_eq!(first.path.as_str(), again.path.as_str());
        prop_assert_eq!(outcome(&policy, &caller(), &first), outcome(&policy, &caller(), &again));
    }

    #[test]
    fn no_text_makes_the_compiler_panic(text in "(\\[\\[workload\\]\\]|\\[workload.allow\\]|name|host|[a-z.='\"\\[\\]{},0-9é]|\n){0,40}") {
        drop(Policy::compile(&[Source::new("p", &text)]));
    }
}
