//! One file, split into what is code, what is comment and what is test.

use super::Finding;

/// A text file.
#[derive(Debug)]
pub(super) struct Source {
    /// Its path from the workspace's root, with `/`.
    pub(super) path: String,
    /// Its lines.
    pub(super) lines: Vec<String>,
    /// The index of the first line that is only for tests.
    tests_from: usize,
}

impl Source {
    pub(super) fn new(path: &str, text: &str) -> Self {
        let lines: Vec<_> = text.lines().map(ToOwned::to_owned).collect();
        let only_tests = path.starts_with("tests/")
            || path.ends_with("/tests.rs")
            || ["/tests/", "/benches/", "/examples/"]
                .iter()
                .any(|part| path.contains(part));
        // The test module stands last in a file.
        let module = lines.iter().position(|line| line.trim() == "#[cfg(test)]");
        let tests_from = if only_tests {
            0
        } else {
            module.unwrap_or(lines.len())
        };
        Self {
            path: path.to_owned(),
            lines,
            tests_from,
        }
    }

    /// Line numbers (from 1) and code of the lines outside tests; comments and the content of strings left out.
    pub(super) fn code(&self) -> impl Iterator<Item = (usize, String)> + '_ {
        self.lines
            .iter()
            .take(self.tests_from)
            .enumerate()
            .map(|(index, line)| (index + 1, strip(line)))
    }

    /// The same with the tests.
    pub(super) fn all_code(&self) -> impl Iterator<Item = (usize, String)> + '_ {
        self.lines
            .iter()
            .enumerate()
            .map(|(index, line)| (index + 1, strip(line)))
    }

    pub(super) fn finding(&self, line: usize, rule: &'static str, fix: impl Into<String>) -> Finding {
        Finding {
            path: self.path.clone(),
            line,
            rule,
            fix: fix.into(),
        }
    }
}

/// A line without its comment and without what stands between quotes; good enough for rules of style.
fn strip(line: &str) -> String {
    let mut code = String::new();
    let mut quoted = false;
    let mut chars = line.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\\' if quoted => drop(chars.next()),
            '\'' if !quoted && chars.peek() == Some(&'"') => drop(chars.next()),
            '"' => {
                quoted = !quoted;
                code.push(c);
            }
            '/' if !quoted && chars.peek() == Some(&'/') => break,
            _ if quoted => {}
            _ => code.push(c),
        }
    }
    code
}

/// Whether `word` stands in `code` as a word of its own.
pub(super) fn has_word(code: &str, word: &str) -> bool {
    let part = |c: char| c.is_alphanumeric() || c == '_';
    code.match_indices(word).any(|(at, _)| {
        let before = code[..at].chars().next_back();
        let after = code[at + word.len()..].chars().next();
        !before.is_some_and(part) && !after.is_some_and(part)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_strings_are_no_code() {
        assert_eq!(strip(r#"let a = "x // unsafe"; // unsafe"#), r#"let a = ""; "#);
        assert_eq!(strip(r#"let a = "q\"unsafe";"#), r#"let a = "";"#);
        assert_eq!(strip(r#"let q = '"'; unsafe {}"#), "let q = '; unsafe {}");
    }

    #[test]
    fn the_test_module_is_no_code_of_the_product() {
        let source = Source::new("agent/src/a.rs", "a\n#[cfg(test)]\nmod tests {}\n");
        assert_eq!(source.code().count(), 1);
        assert_eq!(source.all_code().count(), 3);
        assert_eq!(Source::new("agent/src/a/tests.rs", "a\n").code().count(), 0);
    }

    #[test]
    fn words_are_whole() {
        assert!(has_word("use aya::Ebpf;", "aya"));
        assert!(!has_word("use aya_log::X;", "aya"));
    }
}
