//! Which source of AWS keys is configured. One is chosen, by what is set; if it then fails, that is the error, and no
//! other source is asked: a node's own role must not stand in for keys that someone meant to be used.

use crate::{
    error::AwsError,
    files::{Files, Variables},
    profile::{self, Profile},
};

/// A source of keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// GitHub Actions' token endpoint.
    GitHub { url: String, token: Bearer },
    /// An ID token in a variable, as GitLab's `id_tokens` puts it there.
    IdToken { variable: String, token: Bearer },
    /// `AWS_ACCESS_KEY_ID` and its like.
    Variables,
    /// A profile of the configuration files.
    Profile(Profile),
    /// A token file and a role in the variables: IAM roles for service accounts.
    TokenFile { path: String, role: String, session: Option<String> },
    /// ECS tasks, EKS Pod Identity.
    Container,
    /// The instance metadata service, version 2.
    Instance,
}

/// A token that proves who we are.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Bearer(pub(crate) String);

impl std::fmt::Debug for Bearer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("[redacted]")
    }
}

/// What the user said about where keys come from.
#[derive(Clone, Debug, Default)]
pub(crate) struct Choice<'a> {
    /// Some role was named, for all registries or for the one in question.
    pub(crate) role: bool,
    /// The name of the variable with an ID token, where one was given.
    pub(crate) id_token_variable: Option<&'a str>,
}

/// The variable that GitLab's documentation uses for an ID token for AWS.
pub(crate) const ID_TOKEN_VARIABLE: &str = "AWS_ID_TOKEN";
const REQUEST_URL: &str = "ACTIONS_ID_TOKEN_REQUEST_URL";
const REQUEST_TOKEN: &str = "ACTIONS_ID_TOKEN_REQUEST_TOKEN";

/// Chooses the source.
///
/// # Errors
/// A source is configured by half; or there is none at all, and why the metadata service is not asked.
pub(crate) fn choose(files: &Files, choice: &Choice<'_>) -> Result<Source, AwsError> {
    let variables = &files.variables;
    if let Some(source) = id_token(variables, choice)? {
        return Ok(source);
    }
    if variables.get("AWS_ACCESS_KEY_ID").is_some() || secret_key(variables).is_some() {
        return access_keys(variables);
    }
    if let Some(profile) = profile::selected(files)? {
        return Ok(Source::Profile(profile));
    }
    if let Some(path) = variables.get("AWS_WEB_IDENTITY_TOKEN_FILE") {
        return token_file(variables, path);
    }
    if variables.get("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI").is_some()
        || variables.get("AWS_CONTAINER_CREDENTIALS_FULL_URI").is_some()
    {
        return Ok(Source::Container);
    }
    instance(variables, choice)
}

/// Whether keys were given for this build, rather than found on the machine that it runs on.
pub(crate) fn is_explicit(source: &Source, variables: &Variables, choice: &Choice<'_>) -> bool {
    match source {
        Source::GitHub { .. } | Source::IdToken { .. } | Source::Variables => true,
        Source::Profile(_) => choice.role || variables.get("AWS_PROFILE").is_some(),
        Source::TokenFile { .. } | Source::Container | Source::Instance => choice.role,
    }
}

fn id_token(variables: &Variables, choice: &Choice<'_>) -> Result<Option<Source>, AwsError> {
    let variable = choice.id_token_variable.unwrap_or(ID_TOKEN_VARIABLE);
    let token = variables.get(variable);
    if choice.id_token_variable.is_some() && token.is_none() {
        return Err(AwsError::Source {
            provider: variable.to_owned(),
            reason: "the variable that --aws-id-token-var names is not set".into(),
            hint: Some(format!("on GitLab: id_tokens: {variable}: aud: sts.amazonaws.com")),
        });
    }
    // AWS_ROLE_ARN belongs to a token file, where there is one.
    let role = choice.role
        || variables.get("AWS_ROLE_ARN").is_some()
            && variables.get("AWS_WEB_IDENTITY_TOKEN_FILE").is_none();
    if !role {
        return match choice.id_token_variable {
            Some(_) => Err(no_role(variable)),
            None => Ok(None),
        };
    }
    if let Some(token) = token {
        let token = Bearer(token.to_owned());
        return Ok(Some(Source::IdToken { variable: variable.to_owned(), token }));
    }
    match (variables.get(REQUEST_URL), variables.get(REQUEST_TOKEN)) {
        (Some(url), Some(token)) => {
            Ok(Some(Source::GitHub { url: url.to_owned(), token: Bearer(token.to_owned()) }))
        }
        _ => Ok(None),
    }
}

fn no_role(variable: &str) -> AwsError {
    AwsError::Source {
        provider: variable.to_owned(),
        reason: "there is an ID token, but no role to use it for".into(),
        hint: Some("name the role with --aws-role-arn".into()),
    }
}

fn secret_key(variables: &Variables) -> Option<&str> {
    variables.get("AWS_SECRET_ACCESS_KEY").or_else(|| variables.get("SECRET_ACCESS_KEY"))
}

fn access_keys(variables: &Variables) -> Result<Source, AwsError> {
    let missing = match (variables.get("AWS_ACCESS_KEY_ID"), secret_key(variables)) {
        (Some(_), Some(_)) => return Ok(Source::Variables),
        (Some(_), None) => "AWS_SECRET_ACCESS_KEY",
        _ => "AWS_ACCESS_KEY_ID",
    };
    Err(AwsError::Source {
        provider: "the environment".into(),
        reason: format!("{missing} is not set"),
        hint: Some("set both AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or neither".into()),
    })
}

fn token_file(variables: &Variables, path: &str) -> Result<Source, AwsError> {
    let role = variables.get("AWS_ROLE_ARN").ok_or_else(|| AwsError::Source {
        provider: "AWS_WEB_IDENTITY_TOKEN_FILE".into(),
        reason: "AWS_ROLE_ARN is not set".into(),
        hint: Some("annotate the pod's service account with eks.amazonaws.com/role-arn".into()),
    })?;
    Ok(Source::TokenFile {
        path: path.to_owned(),
        role: role.to_owned(),
        session: variables.get("AWS_ROLE_SESSION_NAME").map(str::to_owned),
    })
}

/// The last resort.
fn instance(variables: &Variables, choice: &Choice<'_>) -> Result<Source, AwsError> {
    if variables.get(ID_TOKEN_VARIABLE).is_some() && !choice.role {
        return Err(no_role(ID_TOKEN_VARIABLE));
    }
    let why_not = if variables.is_true("AWS_EC2_METADATA_DISABLED") {
        "AWS_EC2_METADATA_DISABLED is set"
    } else if variables.get("RUNNER_ENVIRONMENT") == Some("github-hosted") {
        "GitHub's own runners have no role"
    } else {
        return Ok(Source::Instance);
    };
    let tried = format!(
        "no ID token with a role, AWS_ACCESS_KEY_ID, profile, AWS_WEB_IDENTITY_TOKEN_FILE or \
         AWS_CONTAINER_CREDENTIALS_*; the instance metadata service is not asked: {why_not}"
    );
    Err(AwsError::NoSource { tried })
}

impl Source {
    /// For messages.
    pub(crate) fn name(&self) -> String {
        match self {
            Source::GitHub { .. } => "GitHub's OIDC token".into(),
            Source::IdToken { variable, .. } => format!("the ID token in {variable}"),
            Source::Variables => "AWS_ACCESS_KEY_ID".into(),
            Source::Profile(profile) => format!("the profile {:?}", profile.name),
            Source::TokenFile { .. } => "AWS_WEB_IDENTITY_TOKEN_FILE".into(),
            Source::Container => "AWS_CONTAINER_CREDENTIALS_*".into(),
            Source::Instance => "the instance's role (IMDSv2)".into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn files(pairs: &[(&str, &str)]) -> Files {
        let pairs = pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        Files::open(Variables::new(pairs)).await
    }

    async fn chosen(pairs: &[(&str, &str)], role: bool) -> Result<String, String> {
        let files = files(pairs).await;
        let choice = Choice { role, id_token_variable: None };
        choose(&files, &choice).map(|s| s.name()).map_err(|e| e.to_string())
    }

    const GITHUB: [(&str, &str); 2] = [(REQUEST_URL, "https://x/?a=b"), (REQUEST_TOKEN, "t")];
    const KEYS: [(&str, &str); 2] = [("AWS_ACCESS_KEY_ID", "i"), ("AWS_SECRET_ACCESS_KEY", "s")];
    const IRSA: [(&str, &str); 2] =
        [("AWS_WEB_IDENTITY_TOKEN_FILE", "/t"), ("AWS_ROLE_ARN", "arn:aws:iam::1:role/x")];
    const POD: [(&str, &str); 1] =
        [("AWS_CONTAINER_CREDENTIALS_FULL_URI", "http://[fd00:ec2::23]/")];

    #[tokio::test]
    async fn the_order() {
        let all = [&GITHUB[..], &KEYS, &IRSA, &POD].concat();
        assert_eq!(chosen(&all, true).await.unwrap(), "GitHub's OIDC token");
        assert_eq!(chosen(&all, false).await.unwrap(), "AWS_ACCESS_KEY_ID");
        let with_token = [&all[..], &[(ID_TOKEN_VARIABLE, "j")]].concat();
        assert_eq!(chosen(&with_token, true).await.unwrap(), "the ID token in AWS_ID_TOKEN");
        assert_eq!(chosen(&with_token, false).await.unwrap(), "AWS_ACCESS_KEY_ID");
        let cluster = [&IRSA[..], &POD].concat();
        assert_eq!(chosen(&cluster, false).await.unwrap(), "AWS_WEB_IDENTITY_TOKEN_FILE");
        assert_eq!(chosen(&POD, false).await.unwrap(), "AWS_CONTAINER_CREDENTIALS_*");
        assert_eq!(chosen(&[], false).await.unwrap(), "the instance's role (IMDSv2)");
        assert_eq!(chosen(&[], true).await.unwrap(), "the instance's role (IMDSv2)");
    }

    #[tokio::test]
    async fn what_is_set_by_half_is_an_error_and_not_the_nodes_role() {
        for (pairs, words) in [
            (&KEYS[..1], "AWS_SECRET_ACCESS_KEY"),
            (&KEYS[1..], "AWS_ACCESS_KEY_ID"),
            (&IRSA[..1], "AWS_ROLE_ARN"),
            (&[(ID_TOKEN_VARIABLE, "j")][..], "no role"),
            (&[("AWS_PROFILE", "nobody")][..], "nobody"),
            (&[("AWS_EC2_METADATA_DISABLED", "true")][..], "AWS_EC2_METADATA_DISABLED"),
            (&[("RUNNER_ENVIRONMENT", "github-hosted")][..], "runners"),
        ] {
            let error = chosen(pairs, false).await.unwrap_err();
            assert!(error.contains(words), "{pairs:?}: {error}");
        }
        // The role of AWS's own variable will do for an ID token.
        let pairs = [&GITHUB[..], &IRSA[1..]].concat();
        assert_eq!(chosen(&pairs, false).await.unwrap(), "GitHub's OIDC token");
        // Blank is not set.
        assert!(chosen(&[("AWS_ACCESS_KEY_ID", " ")], false).await.unwrap().contains("IMDS"));
    }

    #[tokio::test]
    async fn a_named_variable_must_be_set() {
        let files = files(&KEYS).await;
        let choice = Choice { role: true, id_token_variable: Some("JWT") };
        assert!(choose(&files, &choice).unwrap_err().to_string().contains("JWT"));
        let files = self::files(&[("JWT", "j")]).await;
        assert!(choose(&files, &choice).unwrap().name().contains("JWT"));
        let choice = Choice { role: false, ..choice };
        assert!(choose(&files, &choice).unwrap_err().to_string().contains("no role"));
    }

    #[tokio::test]
    async fn explicit_is_what_was_given_for_this_build() {
        for (pairs, role, explicit) in [
            (&KEYS[..], false, true),
            (&GITHUB[..], true, true),
            (&IRSA[..], false, false),
            (&IRSA[..], true, true),
            (&POD[..], false, false),
            (&[][..], false, false),
            (&[][..], true, true),
        ] {
            let files = files(pairs).await;
            let choice = Choice { role, id_token_variable: None };
            let source = choose(&files, &choice).unwrap();
            assert_eq!(is_explicit(&source, &files.variables, &choice), explicit, "{pairs:?}");
        }
    }

    #[test]
    fn tokens_are_not_shown() {
        let source = Source::GitHub { url: "u".into(), token: Bearer("hunter2".into()) };
        assert!(!format!("{source:?}").contains("hunter2"));
    }
}
