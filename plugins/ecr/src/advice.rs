//! What ECR's answers mean, and what to do: the action in IAM's words, and whose keys were used.

use bareboat_core::registry::{Refusal, RefusalKind, RegistryError};

use crate::text::printable;

/// How the sources of ECR's own credentials begin.
pub(crate) const SOURCE: &str = "ECR with keys from ";

/// What is known around an error.
#[derive(Clone, Debug, Default)]
pub(crate) struct Around {
    /// Where the keys came from.
    pub(crate) provider: Option<String>,
    /// The ARN that they belong to.
    pub(crate) caller: Option<String>,
    /// The account of the registry.
    pub(crate) account: Option<String>,
    /// `host/name`
    pub(crate) repository: String,
    /// A missing repository is to be created.
    pub(crate) creates: bool,
    pub(crate) public: bool,
}

/// Whether advice on `error` has to say whose keys were used.
pub(crate) fn names_caller(error: &RegistryError) -> bool {
    match error.kind() {
        Some(
            RefusalKind::Unauthorized
            | RefusalKind::Expired
            | RefusalKind::Denied
            | RefusalKind::NameUnknown,
        ) => true,
        Some(_) => false,
        None => matches!(error, RegistryError::UploadClosed { .. }),
    }
}

/// What to do about `error`.
pub(crate) fn advice(error: &RegistryError, around: &Around) -> Option<String> {
    if matches!(error, RegistryError::UploadClosed { .. }) {
        return Some(around.missing());
    }
    let refusal = error.refusal()?;
    // Others' passwords are no matter of AWS keys.
    let foreign = refusal.credential.as_deref().is_some_and(|source| !source.starts_with(SOURCE));
    match refusal.kind {
        RefusalKind::Unauthorized | RefusalKind::Expired if foreign => None,
        RefusalKind::Unauthorized | RefusalKind::Expired => Some(around.bad_token()),
        RefusalKind::Denied => Some(around.denied(refusal)),
        RefusalKind::NameUnknown => Some(around.missing()),
        RefusalKind::ManifestUnknown | RefusalKind::NotFound => Some(around.not_found()),
        RefusalKind::QuotaExceeded => Some(QUOTA.into()),
        RefusalKind::TooManyRequests => Some(THROTTLED.into()),
        RefusalKind::Unsupported => Some(UNSUPPORTED.into()),
        RefusalKind::TagImmutable => Some(IMMUTABLE.into()),
        RefusalKind::BlobUnknown => Some(LAYERS.into()),
        _ if says(refusal, &["referencedimagesnotfound", "referenced images not found"]) => {
            Some(CHILDREN.into())
        }
        _ => None,
    }
}

const QUOTA: &str = "a quota of the repository or the account is reached: delete images (a lifecycle policy does that by itself) or ask AWS to raise it";
const THROTTLED: &str = "ECR takes 10 PutImage calls a second for an account and Region: push fewer tags at once, or ask AWS to raise the quota";
const UNSUPPORTED: &str =
    "ECR does not take this kind of manifest: check its media type and what it refers to";
const IMMUTABLE: &str = "the tag is immutable and names other content: push under another tag, or leave it as it is with --skip-immutable";
const LAYERS: &str = "layers vanished while they were pushed: does a lifecycle policy, or another job, delete from this repository?";
const CHILDREN: &str =
    "an index needs its images in the same repository first: was one of them deleted?";

fn says(refusal: &Refusal, words: &[&str]) -> bool {
    let text = format!("{} {}", refusal.code.as_deref().unwrap_or_default(), refusal.message);
    let text = text.to_ascii_lowercase();
    words.iter().any(|word| text.contains(word))
}

impl Around {
    fn keys(&self) -> String {
        match (&self.provider, &self.caller) {
            (Some(provider), Some(caller)) => format!("the keys came from {provider} ({caller})"),
            (Some(provider), None) => format!("the keys came from {provider}"),
            (None, _) => "no AWS keys were used".into(),
        }
    }

    /// Whether the caller is of another account than the registry.
    fn foreign_account(&self) -> Option<&str> {
        let account = self.account.as_deref()?;
        let own = self.caller.as_deref()?.split(':').nth(4)?;
        (own != account).then_some(account)
    }

    fn bad_token(&self) -> String {
        format!(
            "{}; ECR takes its token neither at first nor renewed: do they belong to an account that may use this registry?",
            self.keys()
        )
    }

    fn missing(&self) -> String {
        let create = match (self.creates, self.public) {
            (true, false) => "it could not be created",
            (_, true) => "create it in ECR Public by hand",
            (false, false) => "create it, or let bareboat do that with --create-repository",
        };
        format!(
            "the repository does not exist in this account and Region ({create}), or it may not be pushed to \
             (ecr:InitiateLayerUpload, UploadLayerPart, CompleteLayerUpload, PutImage); {}",
            self.keys()
        )
    }

    fn not_found(&self) -> String {
        "check the tag; where the repository is a pull-through cache, the first pull of an image needs \
         ecr:BatchImportUpstreamImage and ecr:CreateRepository, and a tag (a digest alone imports nothing)"
            .into()
    }

    fn denied(&self, refusal: &Refusal) -> String {
        let action = named_action(&refusal.message).unwrap_or_else(|| action_of(refusal).into());
        let mut advice = format!("allow {action} on {}; {}", self.repository, self.keys());
        if let Some(account) = self.foreign_account() {
            advice += &format!(
                ", and the repository is in account {account}: its repository policy must allow them too"
            );
        }
        if named_action(&refusal.message).is_none() && is_manifest_put(refusal) {
            advice += "; or the repository's quota of images is reached, which ECR answers in the same way";
        }
        advice
    }
}

fn is_manifest_put(refusal: &Refusal) -> bool {
    refusal.method == reqwest::Method::PUT && refusal.url.contains("/manifests/")
}

/// The action that IAM's own sentence names: "… is not authorized to perform: ecr:PutImage on resource: …".
fn named_action(message: &str) -> Option<String> {
    let (_, rest) = message.split_once("not authorized to perform")?;
    let word = rest.trim_start_matches(':').split_whitespace().next()?;
    let good = |c: char| c.is_ascii_alphanumeric() || c == ':' || c == '-';
    (word.contains(':') && word.chars().all(good)).then(|| printable(word, 80))
}

/// The actions that a request needs.
fn action_of(refusal: &Refusal) -> &'static str {
    let (url, method) = (refusal.url.as_str(), refusal.method.as_str());
    match method {
        "POST" => "ecr:InitiateLayerUpload",
        "PUT" if url.contains("/manifests/") => "ecr:PutImage",
        "PUT" | "PATCH" => "ecr:UploadLayerPart and ecr:CompleteLayerUpload",
        "HEAD" if url.contains("/blobs/") => "ecr:BatchCheckLayerAvailability",
        _ if url.contains("/blobs/") => "ecr:GetDownloadUrlForLayer",
        _ => "ecr:BatchGetImage",
    }
}
