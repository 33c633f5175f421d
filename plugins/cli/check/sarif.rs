//! Findings as SARIF 2.1.0 (OASIS), for code scanning.

use bareboat_core::{
    Error,
    check::Checked,
    dockerfile::{
        ast::Span,
        lint::{Finding, RULES, Rule},
    },
};
use serde::Serialize;

const SCHEMA: &str = "https://json.schemastore.org/sarif-2.1.0.json";
/// The rule of what makes a Dockerfile unbuildable.
const BUILD_ERROR: &str = "BuildError";

#[derive(Serialize)]
struct Log {
    #[serde(rename = "$schema")]
    schema: &'static str,
    version: &'static str,
    runs: [Run; 1],
}

#[derive(Serialize)]
struct Run {
    tool: Tool,
    results: Vec<ResultObject>,
}

#[derive(Serialize)]
struct Tool {
    driver: Driver,
}

#[derive(Serialize)]
struct Driver {
    name: &'static str,
    version: &'static str,
    rules: Vec<ReportingDescriptor>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ReportingDescriptor {
    id: &'static str,
    short_description: Message,
    #[serde(skip_serializing_if = "Option::is_none")]
    help_uri: Option<String>,
}

#[derive(Serialize)]
struct Message {
    text: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ResultObject {
    rule_id: &'static str,
    rule_index: usize,
    level: Level,
    message: Message,
    locations: [Location; 1],
}

#[derive(Clone, Copy, Serialize)]
#[serde(rename_all = "lowercase")]
enum Level {
    Warning,
    Error,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Location {
    physical_location: PhysicalLocation,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct PhysicalLocation {
    artifact_location: ArtifactLocation,
    #[serde(skip_serializing_if = "Option::is_none")]
    region: Option<Region>,
}

#[derive(Serialize)]
struct ArtifactLocation {
    uri: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Region {
    start_line: u32,
    end_line: u32,
}

/// `place` is the Dockerfile's path as tools find it.
pub fn render(checked: &Checked, place: &str) -> serde_json::Result<String> {
    let uri = uri(place);
    let report = &checked.report;
    let level = if report.findings_are_errors { Level::Error } else { Level::Warning };
    let findings = report.findings.iter().map(|finding| result(finding, level, &uri));
    let error = report.error.as_ref().map(|error| broken(error, &uri));
    let log = Log {
        schema: SCHEMA,
        version: "2.1.0",
        runs: [Run {
            tool: Tool {
                driver: Driver {
                    name: "bareboat",
                    version: env!("CARGO_PKG_VERSION"),
                    rules: rules(),
                },
            },
            results: findings.chain(error).collect(),
        }],
    };
    serde_json::to_string_pretty(&log)
}

/// Every rule, and behind them the one of errors.
fn rules() -> Vec<ReportingDescriptor> {
    let descriptor = |rule: &&'static Rule| ReportingDescriptor {
        id: rule.name,
        short_description: Message { text: rule.description.to_owned() },
        help_uri: rule.url(),
    };
    let error = ReportingDescriptor {
        id: BUILD_ERROR,
        short_description: Message { text: "The Dockerfile cannot be built".to_owned() },
        help_uri: None,
    };
    RULES.iter().map(descriptor).chain([error]).collect()
}

fn result(finding: &Finding, level: Level, uri: &str) -> ResultObject {
    let position = RULES.iter().position(|rule| rule.name == finding.rule.name);
    ResultObject {
        rule_id: finding.rule.name,
        rule_index: position.unwrap_or_default(),
        level,
        message: Message { text: finding.detail.clone() },
        locations: [location(Some(finding.span), uri)],
    }
}

fn broken(error: &Error, uri: &str) -> ResultObject {
    ResultObject {
        rule_id: BUILD_ERROR,
        rule_index: RULES.len(),
        level: Level::Error,
        message: Message { text: error.title().to_owned() },
        locations: [location(error.location().map(|location| location.span), uri)],
    }
}

fn location(span: Option<Span>, uri: &str) -> Location {
    let region = span.filter(|span| span.first_line > 0).map(|span| Region {
        start_line: span.first_line,
        end_line: span.last_line.max(span.first_line),
    });
    let artifact_location = ArtifactLocation { uri: uri.to_owned() };
    Location { physical_location: PhysicalLocation { artifact_location, region } }
}

/// A path as a URI reference (RFC 3986).
fn uri(path: &str) -> String {
    let mut uri = String::from(if path.starts_with('/') { "file://" } else { "" });
    for byte in path.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => {
                uri.push(char::from(byte));
            }
            other => uri += &format!("%{other:02X}"),
        }
    }
    uri
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::{super::testing::checked, *};

    fn run(text: &str) -> Value {
        let log: Value =
            serde_json::from_str(&render(&checked(text), "my app/Dockerfile").unwrap()).unwrap();
        assert_eq!(log["version"], "2.1.0");
        log["runs"][0].clone()
    }

    fn place(first: u32, last: u32) -> Value {
        json!([{"physicalLocation": {
            "artifactLocation": {"uri": "my%20app/Dockerfile"},
            "region": {"startLine": first, "endLine": last},
        }}])
    }

    #[test]
    fn a_finding_is_a_result_of_its_rule() {
        let run = run("FROM scratch\nENV \\\n a b\n");
        let result = &run["results"][0];
        assert_eq!(result["ruleId"], "LegacyKeyValueFormat");
        assert_eq!(result["level"], "warning");
        assert_eq!(result["locations"], place(2, 3));
        let rules = run["tool"]["driver"]["rules"].as_array().unwrap();
        assert_eq!(rules.len(), 23);
        let rule = &rules[result["ruleIndex"].as_u64().unwrap() as usize];
        assert_eq!(rule["id"], "LegacyKeyValueFormat");
        assert!(rule["helpUri"].as_str().unwrap().ends_with("/legacy-key-value-format/"));
    }

    #[test]
    fn errors_have_their_level() {
        assert_eq!(run("# check=error=true\nFROM scratch AS A\n")["results"][0]["level"], "error");
        let broken = run("FROM scratch\nRUNN x\n")["results"][0].clone();
        assert_eq!((&broken["ruleId"], &broken["ruleIndex"]), (&json!("BuildError"), &json!(22)));
        assert_eq!(broken["locations"], place(2, 2));
        assert_eq!(run("FROM scratch\n")["results"], json!([]));
    }

    #[test]
    fn paths_become_uris() {
        assert_eq!(uri("a/ä#?.x"), "a/%C3%A4%23%3F.x");
        assert_eq!(uri("/w/Dockerfile"), "file:///w/Dockerfile");
    }
}
