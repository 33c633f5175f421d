//! Amazon ECR among a client's keychains and hooks.

use std::sync::Arc;

use bareboat_core::{
    Class, Error,
    registry::{ClientOptions, DockerConfigKeychain, Keychain},
};
use bareboat_ecr::{AwsError, Ecr, EcrLogin, Options, Variables};

/// The helper that Docker's configuration names for ECR; its part is done here.
const HELPER: &str = "ecr-login";

/// What the AWS side is made of.
#[derive(Debug, Default)]
pub struct Aws {
    pub options: Options,
    pub variables: Variables,
}

/// Takes the helper for ECR out of the configurations, and says where it was named.
pub fn take_helper(configs: &mut Vec<DockerConfigKeychain>) -> EcrLogin {
    let mut login = EcrLogin::default();
    let taken = configs.drain(..).map(|config| {
        let (registries, everywhere) = config.uses_of_helper(HELPER);
        login.registries.extend(registries);
        login.everywhere |= everywhere;
        config.without_helper(HELPER)
    });
    let rest: Vec<_> = taken.collect();
    *configs = rest;
    login
}

/// Puts ECR before and after the other `keychains`, and its hooks into `options`.
pub async fn add(
    mut options: ClientOptions,
    keychains: Vec<Arc<dyn Keychain>>,
    login: EcrLogin,
    aws: Aws,
) -> Result<(ClientOptions, Vec<Arc<dyn Keychain>>), Error> {
    let ecr =
        Ecr::open(aws.variables, options.clone(), Options { ecr_login: login, ..aws.options });
    let ecr = ecr.await.map_err(failed)?;
    ecr.prepare();
    options.hooks = Some(ecr.clone());
    Ok((options, ecr.keychains(keychains)))
}

fn failed(error: AwsError) -> Error {
    let hint = error.hint();
    Error::from_cause(Class::Usage, error).maybe_hint(hint)
}
