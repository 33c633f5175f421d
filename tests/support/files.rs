//! A web server for files of a folder. Bare repositories in it can be fetched too, once `git update-server-info` has
//! listed their refs.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    thread,
};

use super::peers::run_command;

pub struct FileServer {
    pub address: String,
    folder: tempfile::TempDir,
    log: Log,
}

/// Path and Authorization of each request.
type Log = Arc<Mutex<Vec<(String, Option<String>)>>>;

impl FileServer {
    pub fn new() -> FileServer {
        let folder = tempfile::tempdir().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let log = Log::default();
        let (root, asked) = (folder.path().to_owned(), log.clone());
        // The thread waits in accept() until the test process ends: there is nothing of it to clean up.
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (root, asked) = (root.clone(), asked.clone());
                thread::spawn(move || answer(stream, &root, &asked));
            }
        });
        FileServer { address, folder, log }
    }

    pub fn url(&self, name: &str) -> String {
        format!("http://{}/{name}", self.address)
    }

    /// Puts a file in the folder.
    pub fn file(&self, name: &str, content: impl AsRef<[u8]>) -> &FileServer {
        fs::write(self.folder.path().join(name), content).unwrap();
        self
    }

    /// Puts a bare repository in the folder, made by a script in a checkout of it, and returns its path.
    pub fn repository(&self, name: &str, script: &str) -> PathBuf {
        let work = tempfile::tempdir().unwrap();
        let bare = self.folder.path().join(name);
        let script = format!(
            "set -e; git init -q -b main .; {script}\ngit clone -q --bare . '{0}'; git -C '{0}' update-server-info",
            bare.display()
        );
        let mut command = std::process::Command::new("sh");
        command.args(["-c", &script]).current_dir(work.path()).env("HOME", work.path());
        for who in ["AUTHOR", "COMMITTER"] {
            command.env(format!("GIT_{who}_NAME"), "A").env(format!("GIT_{who}_EMAIL"), "a@a.test");
            command.env(format!("GIT_{who}_DATE"), "1000000000 +0000");
        }
        run_command(&mut command);
        bare
    }

    /// The paths that were asked for so far.
    pub fn requests(&self) -> Vec<String> {
        self.log.lock().unwrap().iter().map(|(path, _)| path.clone()).collect()
    }

    /// The credentials that came so far.
    pub fn authorizations(&self) -> Vec<String> {
        self.log.lock().unwrap().iter().filter_map(|(_, value)| value.clone()).collect()
    }
}

fn answer(mut stream: TcpStream, root: &Path, log: &Log) {
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
    let first = lines.next().unwrap_or_default();
    let authorization =
        lines.by_ref().take_while(|line| !line.is_empty()).fold(None, |known, line| {
            let (name, value) = line.split_once(": ").unwrap_or_default();
            if name.eq_ignore_ascii_case("authorization") { Some(value.to_owned()) } else { known }
        });
    let Some(path) = first.split(' ').nth(1) else { return };
    log.lock().unwrap().push((path.to_owned(), authorization));
    let name = path.split('?').next().unwrap_or_default().trim_start_matches('/');
    let (status, body) = match fs::read(root.join(name)) {
        Ok(body) => ("200 OK", body),
        Err(_) => ("404 Not Found", Vec::new()),
    };
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Length: {}\r\nContent-Type: application/octet-stream\r\nConnection: close\r\n\r\n",
        body.len()
    );
    let _ = stream.write_all(head.as_bytes());
    let _ = stream.write_all(&body);
}
