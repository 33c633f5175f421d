//! The JSON document of BuildKit's `lint` sub-request, which `docker buildx build --call=check,format=json` prints.

use bareboat_core::{
    Error,
    check::Checked,
    dockerfile::{ast::Span, lint::Finding},
};
use base64::{Engine, engine::general_purpose::STANDARD};
use serde::Serialize;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    warnings: Vec<Warning>,
    sources: [Source; 1],
    #[serde(skip_serializing_if = "Option::is_none")]
    build_error: Option<BuildError>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Warning {
    rule_name: &'static str,
    description: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    url: Option<String>,
    detail: String,
    location: Location,
}

#[derive(Serialize)]
struct BuildError {
    message: String,
    location: Location,
}

/// One range for each line, in source 0, which is not written out.
#[derive(Default, Serialize)]
struct Location {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    ranges: Vec<Range>,
}

#[derive(Serialize)]
struct Range {
    start: Position,
    end: Position,
}

/// The first character's number, 0, is not written out either.
#[derive(Serialize)]
struct Position {
    line: u32,
}

#[derive(Serialize)]
struct Source {
    filename: String,
    /// Base64.
    data: String,
    language: &'static str,
}

pub fn render(checked: &Checked) -> serde_json::Result<String> {
    let report = &checked.report;
    let document = Document {
        warnings: report.findings.iter().map(warning).collect(),
        sources: [Source {
            filename: checked.name.clone(),
            data: STANDARD.encode(&checked.source),
            language: "Dockerfile",
        }],
        build_error: match (&report.error, &checked.gate) {
            (Some(error), _) => Some(build_error(error)),
            // BuildKit names no place for this one.
            (None, Some(gate)) => {
                Some(BuildError { message: gate.title().to_owned(), location: Location::default() })
            }
            (None, None) => None,
        },
    };
    serde_json::to_string_pretty(&document)
}

fn warning(finding: &Finding) -> Warning {
    Warning {
        rule_name: finding.rule.name,
        description: finding.rule.description,
        url: finding.rule.url(),
        detail: finding.detail.clone(),
        location: location(finding.span),
    }
}

fn build_error(error: &Error) -> BuildError {
    let suggestion = error.hint_text().filter(|hint| hint.starts_with("did you mean"));
    let suggestion = suggestion.map(|hint| format!(" ({hint})")).unwrap_or_default();
    BuildError {
        message: format!("{}{suggestion}", error.title()),
        location: error.location().map(|at| location(at.span)).unwrap_or_default(),
    }
}

fn location(span: Span) -> Location {
    let range = |line| Range { start: Position { line }, end: Position { line } };
    Location { ranges: (span.first_line..=span.last_line).map(range).collect() }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::{super::testing::checked, *};

    fn document(text: &str) -> Value {
        serde_json::from_str(&render(&checked(text)).unwrap()).unwrap()
    }

    #[test]
    fn the_document_is_buildkits() {
        let text = "FROM scratch\nENV \\\n a b\n";
        let line = |line: u32| json!({"start": {"line": line}, "end": {"line": line}});
        assert_eq!(
            document(text),
            json!({
                "warnings": [{
                    "ruleName": "LegacyKeyValueFormat",
                    "description": "Legacy key/value format with whitespace separator should not be used",
                    "url": "https://docs.docker.com/go/dockerfile/rule/legacy-key-value-format/",
                    "detail": "\"ENV key=value\" should be used instead of legacy \"ENV key value\" format",
                    "location": {"ranges": [line(2), line(3)]},
                }],
                "sources": [{
                    "filename": "Dockerfile",
                    "data": STANDARD.encode(text),
                    "language": "Dockerfile",
                }],
            })
        );
    }

    #[test]
    fn errors_have_their_place() {
        let document = document("FROM scratch AS A\nRUNN x\n");
        assert_eq!(document["warnings"][0]["ruleName"], "StageNameCasing");
        assert_eq!(
            document["buildError"],
            json!({
                "message": "unknown instruction: RUNN (did you mean RUN?)",
                "location": {"ranges": [{"start": {"line": 2}, "end": {"line": 2}}]},
            })
        );
    }

    #[test]
    fn findings_that_are_errors_are_one_without_a_place() {
        let document = document("# check=error=true\nFROM scratch AS A\n");
        assert_eq!(
            document["buildError"],
            json!({"message": "lint violation found for rules: StageNameCasing", "location": {}})
        );
    }
}
