//! Repositories through ECR's own API: made where one is missing, asked whether they keep their tags.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, PoisonError},
};

use aws_sdk_ecr::{
    Client,
    operation::create_repository::CreateRepositoryError,
    types::{
        EncryptionConfiguration, EncryptionType, ImageScanningConfiguration,
        ImageTagMutabilityExclusionFilter, ImageTagMutabilityExclusionFilterType as FilterType,
        Tag,
    },
};
use aws_smithy_runtime_api::client::{orchestrator::HttpResponse, result::SdkError};
use bareboat_core::registry::Repository;
use tokio::sync::OnceCell;

use crate::{
    context::{Context, Flavour},
    error::AwsError,
    host::PrivateHost,
    identity::Identity,
};

const CREATE: (&str, &str) = ("CreateRepository", "ecr:CreateRepository");
const LIFECYCLE: (&str, &str) = ("PutLifecyclePolicy", "ecr:PutLifecyclePolicy");

/// Whether a repository's tags can be moved to other content.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mutability {
    #[default]
    Mutable,
    Immutable,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Encryption {
    /// The account's default.
    #[default]
    Default,
    Aes256,
    /// With the account's own key for ECR where none is named.
    Kms {
        key: Option<String>,
    },
    /// The same, twice.
    KmsDsse {
        key: Option<String>,
    },
}

/// How a repository is made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RepositorySettings {
    pub mutability: Mutability,
    /// Tags for which the opposite holds: names with `*`, at most five.
    pub exceptions: Vec<String>,
    pub encryption: Encryption,
    pub scan_on_push: bool,
    pub tags: BTreeMap<String, String>,
    /// A lifecycle policy in ECR's JSON.
    pub lifecycle_policy: Option<String>,
}

/// What is known of repositories.
#[derive(Debug, Default)]
pub(crate) struct Repositories {
    created: Mutex<HashMap<Repository, Arc<OnceCell<()>>>>,
    rules: Mutex<HashMap<Repository, Arc<OnceCell<TagRules>>>>,
}

/// Which tags can't be moved.
#[derive(Clone, Debug, PartialEq, Eq)]
struct TagRules {
    immutable: bool,
    exceptions: Vec<String>,
}

impl TagRules {
    fn keeps(&self, tag: &str) -> bool {
        self.immutable != self.exceptions.iter().any(|pattern| matches(pattern, tag))
    }
}

/// A name with `*` for any run of characters.
fn matches(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = text.strip_prefix(first) else { return false };
    if !pattern.contains('*') {
        return rest.is_empty();
    }
    let parts: Vec<&str> = parts.collect();
    let Some((last, middle)) = parts.split_last() else { return rest.is_empty() };
    for part in middle {
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
    }
    rest.ends_with(last)
}

/// A repository and whose keys are used on it.
pub(crate) struct Place<'a> {
    pub(crate) context: &'a Context,
    pub(crate) identity: &'a Identity,
    pub(crate) host: &'a PrivateHost,
    pub(crate) repository: &'a Repository,
}

impl Repositories {
    /// Makes the repository, once however often it is called. That it exists already is success.
    ///
    /// # Errors
    /// What AWS answered.
    pub(crate) async fn create(
        &self,
        place: &Place<'_>,
        settings: &RepositorySettings,
    ) -> Result<(), AwsError> {
        let cell = cell(&self.created, place.repository);
        cell.get_or_try_init(|| place.create(settings)).await.copied()
    }

    /// Whether `tag` can't be moved; `false` too where AWS does not tell.
    pub(crate) async fn keeps_tag(&self, place: &Place<'_>, tag: &str) -> bool {
        let cell = cell(&self.rules, place.repository);
        match cell.get_or_try_init(|| place.rules()).await {
            Ok(rules) => rules.keeps(tag),
            Err(error) => {
                tracing::debug!(repository = %place.repository, %error, "immutability unknown");
                false
            }
        }
    }
}

fn cell<T>(
    cells: &Mutex<HashMap<Repository, Arc<OnceCell<T>>>>,
    repository: &Repository,
) -> Arc<OnceCell<T>> {
    let mut cells = cells.lock().unwrap_or_else(PoisonError::into_inner);
    cells.entry(repository.clone()).or_default().clone()
}

impl Place<'_> {
    async fn client(&self) -> Result<(Client, String), AwsError> {
        let keys = self.identity.keys(self.context).await?;
        let flavour = Flavour { fips: self.host.fips, dual_stack: self.host.dual_stack };
        let credentials = Some(&keys.credentials);
        let config = self.context.sdk_config(&self.host.region, credentials, flavour).await;
        Ok((Client::new(&config), keys.provider))
    }

    async fn create(&self, settings: &RepositorySettings) -> Result<(), AwsError> {
        let (client, provider) = self.client().await?;
        let built = settings.parts().map_err(AwsError::Option)?;
        let sent = client
            .create_repository()
            .set_registry_id(self.host.account.clone())
            .repository_name(&self.repository.name)
            .image_tag_mutability(built.mutability)
            .set_image_tag_mutability_exclusion_filters(built.filters)
            .set_encryption_configuration(built.encryption)
            .set_image_scanning_configuration(built.scanning)
            .set_tags(built.tags)
            .send()
            .await;
        match sent {
            Ok(_) => tracing::info!(repository = %self.repository, "created in ECR"),
            Err(error) if exists(&error) => return Ok(()),
            Err(error) => return Err(AwsError::api(CREATE, &provider, &error)),
        }
        let Some(policy) = &settings.lifecycle_policy else { return Ok(()) };
        let sent = client
            .put_lifecycle_policy()
            .set_registry_id(self.host.account.clone())
            .repository_name(&self.repository.name)
            .lifecycle_policy_text(policy)
            .send()
            .await;
        sent.map(drop).map_err(|error| AwsError::api(LIFECYCLE, &provider, &error))
    }

    async fn rules(&self) -> Result<TagRules, AwsError> {
        const DESCRIBE: (&str, &str) = ("DescribeRepositories", "ecr:DescribeRepositories");
        let (client, provider) = self.client().await?;
        let sent = client
            .describe_repositories()
            .set_registry_id(self.host.account.clone())
            .repository_names(&self.repository.name)
            .send()
            .await;
        let answer = sent.map_err(|error| AwsError::api(DESCRIBE, &provider, &error))?;
        let found = answer.repositories.unwrap_or_default().into_iter().next();
        let found = found.ok_or_else(|| AwsError::Option("it is not listed".into()))?;
        let mutability = found.image_tag_mutability.map(|m| m.as_str().to_owned());
        let filters = found.image_tag_mutability_exclusion_filters.unwrap_or_default();
        Ok(TagRules {
            immutable: mutability.is_some_and(|word| word.starts_with("IMMUTABLE")),
            exceptions: filters.into_iter().map(|filter| filter.filter).collect(),
        })
    }
}

fn exists(error: &SdkError<CreateRepositoryError, HttpResponse>) -> bool {
    error
        .as_service_error()
        .is_some_and(CreateRepositoryError::is_repository_already_exists_exception)
}

/// The settings as ECR's API has them.
struct Parts {
    mutability: aws_sdk_ecr::types::ImageTagMutability,
    filters: Option<Vec<ImageTagMutabilityExclusionFilter>>,
    encryption: Option<EncryptionConfiguration>,
    scanning: Option<ImageScanningConfiguration>,
    tags: Option<Vec<Tag>>,
}

impl RepositorySettings {
    fn parts(&self) -> Result<Parts, String> {
        Ok(Parts {
            mutability: self.mutability(),
            filters: some(self.exceptions.iter().map(|pattern| filter(pattern)))?,
            encryption: self.encryption.configuration()?,
            scanning: self
                .scan_on_push
                .then(|| ImageScanningConfiguration::builder().scan_on_push(true).build()),
            tags: some(self.tags.iter().map(|(key, value)| {
                Tag::builder().key(key).value(value).build().map_err(|error| error.to_string())
            }))?,
        })
    }

    fn mutability(&self) -> aws_sdk_ecr::types::ImageTagMutability {
        use aws_sdk_ecr::types::ImageTagMutability as Api;
        match (self.mutability, self.exceptions.is_empty()) {
            (Mutability::Mutable, true) => Api::Mutable,
            (Mutability::Mutable, false) => Api::MutableWithExclusion,
            (Mutability::Immutable, true) => Api::Immutable,
            (Mutability::Immutable, false) => Api::ImmutableWithExclusion,
        }
    }
}

fn some<T>(items: impl Iterator<Item = Result<T, String>>) -> Result<Option<Vec<T>>, String> {
    let items = items.collect::<Result<Vec<T>, String>>()?;
    Ok(Some(items).filter(|items| !items.is_empty()))
}

fn filter(pattern: &str) -> Result<ImageTagMutabilityExclusionFilter, String> {
    ImageTagMutabilityExclusionFilter::builder()
        .filter_type(FilterType::Wildcard)
        .filter(pattern)
        .build()
        .map_err(|error| error.to_string())
}

impl Encryption {
    fn configuration(&self) -> Result<Option<EncryptionConfiguration>, String> {
        let (kind, key) = match self {
            Encryption::Default => return Ok(None),
            Encryption::Aes256 => (EncryptionType::Aes256, None),
            Encryption::Kms { key } => (EncryptionType::Kms, key.clone()),
            Encryption::KmsDsse { key } => (EncryptionType::KmsDsse, key.clone()),
        };
        let built = EncryptionConfiguration::builder().encryption_type(kind).set_kms_key(key);
        built.build().map(Some).map_err(|error| error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_and_their_exceptions() {
        let rules = |immutable, exceptions: &[&str]| TagRules {
            immutable,
            exceptions: exceptions.iter().map(|e| (*e).to_owned()).collect(),
        };
        assert!(rules(true, &[]).keeps("v1"));
        assert!(!rules(false, &[]).keeps("v1"));
        assert!(!rules(true, &["latest", "dev-*"]).keeps("dev-7"));
        assert!(rules(true, &["latest", "dev-*"]).keeps("latest2"));
        assert!(rules(false, &["v*"]).keeps("v1"));
        assert!(!rules(false, &["v*"]).keeps("latest"));
    }

    #[test]
    fn wildcards() {
        for (pattern, text, expected) in [
            ("a", "a", true),
            ("a", "ab", false),
            ("*", "", true),
            ("*", "x", true),
            ("a*", "a", true),
            ("*a", "ba", true),
            ("*a", "ab", false),
            ("a*b*c", "aXbYc", true),
            ("a*b*c", "aXcYb", false),
            ("a*a", "a", false),
            ("**", "x", true),
        ] {
            assert_eq!(matches(pattern, text), expected, "{pattern} {text}");
        }
    }
}
