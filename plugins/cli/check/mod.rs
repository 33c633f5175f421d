//! `bareboat check`: what the build checks found, in three forms on standard output.

mod human;
mod json;
mod sarif;

use std::path::Path;

use bareboat_core::{
    Class, Error,
    check::Checked,
    request::{BuildRequest, ContextSource},
};

use crate::{
    engine::{self, Services},
    outputs,
    render::Style,
};

/// How findings are shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    #[default]
    Human,
    /// As `docker buildx build --call=check,format=json` prints them.
    Json,
    /// SARIF 2.1.0.
    Sarif,
}

/// Checks and prints.
///
/// # Errors
/// What makes the Dockerfile unbuildable (class input), and findings (class gate): as in BuildKit, a check with findings
/// is no success.
pub async fn check(
    request: &BuildRequest,
    format: Format,
    style: Style,
    services: Services,
) -> anyhow::Result<()> {
    let checked = engine::check(request, services).await?;
    let text = match format {
        Format::Human => human::render(&checked, style),
        Format::Json => json::render(&checked)?,
        Format::Sarif => sarif::render(&checked, &place(request, &checked.name))?,
    };
    outputs::print_line(text.trim_end())?;
    verdict(checked).map_or(Ok(()), |error| Err(error.into()))
}

fn verdict(checked: Checked) -> Option<Error> {
    let count = checked.report.findings.len();
    let found = (count > 0).then(|| {
        let names = checked.report.rule_names().join(", ");
        let title = format!("the checks have {count} findings: {names}");
        Error::new(Class::Gate, title).hint("`# check=skip=NAME` silences a check")
    });
    checked.report.error.or(checked.gate).or(found)
}

/// Where the Dockerfile lies, for tools that look for the file from this directory on.
fn place(request: &BuildRequest, name: &str) -> String {
    match (&request.dockerfile, &request.context) {
        (None, Some(ContextSource::Directory(context))) => {
            let path = context.join(Path::new(name));
            path.strip_prefix(".").unwrap_or(&path).display().to_string()
        }
        _ => name.to_owned(),
    }
}

#[cfg(test)]
mod testing {
    use std::collections::BTreeMap;

    use bareboat_core::{
        check::Checked,
        dockerfile::lint::{Known, check_source},
        request::BuildRequest,
    };

    /// What a check of `text` gives, with no image known.
    pub fn checked(text: &str) -> Checked {
        let images = BTreeMap::new();
        let known = Known { images: &images, platform: None, ignored: None, all_stages: true };
        let request = BuildRequest::default();
        let (dockerfile, report) = check_source("Dockerfile", text.as_bytes(), &request, &known);
        let gate = dockerfile.and_then(|dockerfile| report.gate(&dockerfile));
        Checked { name: "Dockerfile".into(), source: text.into(), report, gate }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn findings_are_no_success() {
        let class = |text: &str| verdict(testing::checked(text)).map(|error| error.class());
        assert_eq!(class("FROM scratch\nCOPY a /a\n"), None);
        assert_eq!(class("FROM scratch\nMAINTAINER me\n"), Some(Class::Gate));
        assert_eq!(class("FROM scratch\nNOPE\n"), Some(Class::Input));
    }

    #[test]
    fn the_place_is_seen_from_here() {
        let mut request = BuildRequest::default();
        let place = |request: &BuildRequest| place(request, "Dockerfile");
        assert_eq!(place(&request), "Dockerfile");
        request.context = Some(ContextSource::Directory(".".into()));
        assert_eq!(place(&request), "Dockerfile");
        request.context = Some(ContextSource::Directory("a/b".into()));
        assert_eq!(place(&request), "a/b/Dockerfile");
        request.dockerfile = Some("Dockerfile".into());
        assert_eq!(place(&request), "Dockerfile");
    }
}
