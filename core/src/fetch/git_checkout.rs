//! One checkout with the `git` program: a shallow fetch of one commit, or what the server allows, and its submodules.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use super::{
    error::FetchError,
    git::{Connection, ResolvedCommit, check},
    git_reference::GitReference,
    git_tree::{Shape, TreeError},
};
use crate::tree::Timestamp;

/// One checkout under way.
pub(super) struct Task<'a> {
    pub(super) reference: &'a GitReference,
    pub(super) resolved: &'a ResolvedCommit,
    pub(super) connection: Connection,
    pub(super) work: &'a Path,
    pub(super) tree: PathBuf,
}

impl Task<'_> {
    async fn git(&self, action: &'static str, arguments: &[&str]) -> Result<String, FetchError> {
        self.connection.runner.run(&self.tree, action, arguments).await
    }

    fn repository(&self) -> String {
        self.reference.remote.url.clone()
    }

    fn io(&self) -> impl Fn(io::Error) -> FetchError + '_ {
        |source| FetchError::Work {
            repository: self.repository(),
            path: self.work.to_owned(),
            source,
        }
    }

    pub(super) async fn initialise(&self) -> Result<(), FetchError> {
        fs::create_dir(&self.tree).map_err(self.io())?;
        let mut arguments = vec!["init", "--quiet", "--template="];
        if self.resolved.object.len() == 64 {
            arguments.push("--object-format=sha256");
        }
        self.git("making a repository", &arguments).await?;
        // What submodules are relative to, and what a kept `.git` says.
        let url = &self.reference.remote.url;
        self.git("making a repository", &["remote", "add", "--", "origin", url]).await.map(drop)
    }

    /// Fetches the object, by ever more expensive means.
    pub(super) async fn fetch(&self) -> Result<(), FetchError> {
        let object = &*self.resolved.object;
        let by_name = self.resolved.name.as_ref().map(|name| format!("+{name}:{name}"));
        let by_name = by_name.filter(|_| !self.reference.fetch_by_commit);
        if let Some(refspec) = &by_name
            && self.try_fetch(&["--depth=1", "--", &self.connection.remote, refspec]).await?
        {
            return Ok(());
        }
        if self.try_fetch(&["--depth=1", "--", &self.connection.remote, object]).await? {
            return Ok(());
        }
        // Servers that know no depth, or give no commit but the tips.
        if let Some(refspec) = &by_name
            && self.try_fetch(&["--", &self.connection.remote, refspec]).await?
        {
            return Ok(());
        }
        if !self.reference.fetch_by_commit && self.fetch_all().await? {
            return Ok(());
        }
        Err(FetchError::NoSuchCommit { repository: self.repository(), commit: object.to_owned() })
    }

    async fn fetch_all(&self) -> Result<bool, FetchError> {
        let mut options = vec![];
        if self.tree.join(".git/shallow").exists() {
            options.push("--unshallow");
        }
        let branches = "+refs/heads/*:refs/remotes/origin/*";
        let tags = "+refs/tags/*:refs/tags/*";
        options.extend(["--", &self.connection.remote, branches, tags]);
        self.try_fetch(&options).await
    }

    /// Whether the object is there afterwards. Only a failure that other means may mend is none.
    async fn try_fetch(&self, options: &[&str]) -> Result<bool, FetchError> {
        let common = ["fetch", "--quiet", "--no-tags", "--force", "--update-head-ok"];
        let arguments = [&common, options].concat();
        match self.git("the fetch", &arguments).await {
            Ok(_) => {}
            Err(FetchError::Git { message, .. }) if may_be_mended(&message) => {
                tracing::debug!(repository = self.repository(), message, "fetching in another way");
                return Ok(false);
            }
            Err(error) => return Err(error),
        }
        let commit = format!("{}^{{commit}}", self.resolved.object);
        match self.git("looking for the commit", &["cat-file", "-e", &commit]).await {
            Ok(_) => Ok(true),
            Err(FetchError::Git { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Puts the files in place. Returns the commit.
    pub(super) async fn check_out(&self) -> Result<String, FetchError> {
        let object = &self.resolved.object;
        let commit = format!("{object}^{{commit}}");
        let commit =
            self.git("looking for the commit", &["rev-parse", "--verify", &commit]).await?;
        let commit = commit.trim().to_owned();
        let resolved = ResolvedCommit { peeled: Some(commit.clone()), ..self.resolved.clone() };
        check(self.reference, resolved)?;
        let arguments = ["checkout", "--quiet", "--force", "--detach", &commit, "--"];
        self.git("the checkout", &arguments).await?;
        Ok(commit)
    }

    pub(super) async fn update_submodules(&self) -> Result<(), FetchError> {
        if self.tree.join(".gitmodules").symlink_metadata().is_err() {
            return Ok(());
        }
        let action = "fetching the submodules";
        let arguments = ["submodule", "--quiet", "update", "--init", "--recursive", "--depth=1"];
        match self.git(action, &arguments).await {
            Err(FetchError::Git { message, .. }) if may_be_mended(&message) => {
                self.git(action, &arguments[..5]).await.map(drop)
            }
            other => other.map(drop),
        }
    }

    pub(super) async fn commit_time(&self, commit: &str) -> Result<Timestamp, FetchError> {
        let action = "reading the commit";
        let seconds = self.git(action, &["show", "-s", "--format=%ct", commit, "--"]).await?;
        let seconds = seconds.trim().parse().map_err(|_| FetchError::Git {
            repository: self.repository(),
            action,
            message: "it has no time".into(),
        })?;
        Ok(Timestamp::from_seconds(seconds))
    }

    /// Leaves in a kept `.git` what a fresh checkout has, under the name that was asked for.
    pub(super) async fn tidy_git_dir(&self) -> Result<(), FetchError> {
        if let Some(name) = &self.resolved.name {
            let object = &self.resolved.object;
            self.git("naming the commit", &["update-ref", "--no-deref", name, object]).await?;
        }
        for name in ["FETCH_HEAD", "ORIG_HEAD"] {
            match fs::remove_file(self.tree.join(".git").join(name)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(self.io()(error));
                }
                _ => {}
            }
        }
        Ok(())
    }

    pub(super) async fn shape(&self, shape: Shape) -> Result<PathBuf, FetchError> {
        let work = self.work.to_owned();
        let shaped = tokio::task::spawn_blocking(move || shape.apply(&work)).await;
        match shaped.map_err(|error| self.io()(io::Error::other(error)))? {
            Ok(directory) => Ok(directory),
            Err(TreeError::Io(source)) => Err(self.io()(source)),
            Err(TreeError::Subdirectory(reason)) => Err(FetchError::Subdirectory {
                repository: self.repository(),
                subdirectory: self.reference.subdirectory.to_string(),
                reason,
            }),
        }
    }
}

/// Whether git failed for a want of depth or of a right to the object.
fn may_be_mended(message: &str) -> bool {
    ["shallow", "--depth", "not our ref", "unadvertised object", "couldn't find remote ref"]
        .into_iter()
        .any(|sign| message.contains(sign))
}
