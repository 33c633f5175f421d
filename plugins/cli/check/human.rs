//! Findings for people: rule, page, what is wrong, and the lines.

use std::sync::Arc;

use bareboat_core::{check::Checked, dockerfile::lint::Finding, error::Location};

use crate::render::{Style, message, source_frame};

/// In the order of the lines, with a count at the end.
pub fn render(checked: &Checked, style: Style) -> String {
    let source: Arc<str> = String::from_utf8_lossy(&checked.source).into();
    let mut findings: Vec<&Finding> = checked.report.findings.iter().collect();
    findings.sort_by_key(|finding| finding.span.first_line);
    let mut text = String::new();
    for finding in &findings {
        text += &block(finding, &checked.name, &source, style);
    }
    text + &summary(findings.len(), checked.report.error.is_some(), style)
}

fn block(finding: &Finding, file: &str, source: &Arc<str>, style: Style) -> String {
    let page = finding.rule.url().map(|url| format!(" - {url}")).unwrap_or_default();
    let location = Location { file: file.to_owned(), source: source.clone(), span: finding.span };
    format!(
        "{} {}{page}\n{}\n{}\n",
        style.warning("warning:"),
        style.bold(finding.rule.name),
        message(&finding.detail),
        source_frame(&location, style)
    )
}

fn summary(findings: usize, is_broken: bool, style: Style) -> String {
    let count = match findings {
        0 => style.good("no warnings"),
        1 => style.warning("1 warning"),
        more => style.warning(&format!("{more} warnings")),
    };
    let ended = if is_broken { "stopped at an error" } else { "complete" };
    format!("Check {ended}: {count}\n")
}

#[cfg(test)]
mod tests {
    use super::{super::testing::checked, *};

    fn shown(text: &str) -> String {
        render(&checked(text), Style { colored: false })
    }

    #[test]
    fn a_finding_has_its_page_and_lines() {
        assert_eq!(
            shown("FROM scratch\nCMD x\nENV \\\n a b\n"),
            "\
warning: JSONArgsRecommended - https://docs.docker.com/go/dockerfile/rule/json-args-recommended/
JSON arguments recommended for CMD to prevent unintended behavior related to OS signals
 --> Dockerfile:2
  |
1 | FROM scratch
2 | CMD x
  | ^^^
3 | ENV \\
  |

warning: LegacyKeyValueFormat - https://docs.docker.com/go/dockerfile/rule/legacy-key-value-format/
\"ENV key=value\" should be used instead of legacy \"ENV key value\" format
 --> Dockerfile:3
  |
2 | CMD x
3 | ENV \\
  | ^^^
4 |  a b
  |

Check complete: 2 warnings
"
        );
    }

    #[test]
    fn none_is_said_too() {
        assert_eq!(shown("FROM scratch\n"), "Check complete: no warnings\n");
        assert_eq!(shown("FROM\n"), "Check stopped at an error: no warnings\n");
    }

    #[test]
    fn input_is_made_printable() {
        let text = shown("FROM scratch\nARG \u{1b}]0;x\u{7}_TOKEN\nUSER ##[group]$x\n");
        assert!(!text.contains('\u{1b}') && !text.contains("##["), "{text}");
    }
}
