use std::{
    fs,
    io::{Read, Write},
    os::unix::{
        fs::PermissionsExt,
        net::{UnixListener, UnixStream},
    },
    path::Path,
    process::{Command, Output},
};

use super::{key::Fault, *};

const ACCESS: SocketAccess = SocketAccess { mode: 0o600, uid: 0, gid: 0 };

fn keygen(directory: &Path, name: &str, arguments: &[&str]) -> PathBuf {
    let path = directory.join(name);
    let mut command = Command::new("ssh-keygen");
    command.args(["-q", "-C", name, "-f"]).arg(&path).args(arguments);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {output:?}");
    path
}

async fn with_agent(program: &str, socket: &Path, arguments: &[&str]) -> Output {
    let mut command = tokio::process::Command::new(program);
    command.args(arguments).env("SSH_AUTH_SOCK", socket).current_dir(socket.parent().unwrap());
    command.stdin(std::process::Stdio::null()).output().await.unwrap()
}

/// ssh-keygen has the agent sign a file and verifies the signature.
async fn signs(socket: &Path, key: &Path) -> bool {
    let folder = socket.parent().unwrap();
    let (file, public) = (folder.join("file"), key.with_extension("pub"));
    fs::write(&file, "text").unwrap();
    let signature = folder.join("file.sig");
    let _ = fs::remove_file(&signature);
    let name = |path: &Path| path.to_str().unwrap().to_owned();
    let sign = ["-Y", "sign", "-f", &name(&public), "-n", "file", &name(&file)];
    if !with_agent("ssh-keygen", socket, &sign).await.status.success() {
        return false;
    }
    let check = format!(
        "ssh-keygen -Y check-novalidate -n file -s '{}' < '{}'",
        signature.display(),
        file.display()
    );
    with_agent("sh", socket, &["-c", &check]).await.status.success()
}

#[tokio::test]
async fn keys_of_every_type_are_listed_and_sign() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let keys = [
        keygen(path, "ed25519", &["-t", "ed25519", "-N", ""]),
        keygen(path, "p256", &["-t", "ecdsa", "-b", "256", "-N", ""]),
        keygen(path, "p384", &["-t", "ecdsa", "-b", "384", "-N", ""]),
        keygen(path, "rsa", &["-t", "rsa", "-b", "2048", "-N", ""]),
        keygen(path, "pkcs1", &["-t", "rsa", "-b", "2048", "-N", "", "-m", "PEM"]),
        keygen(path, "pkcs8", &["-t", "ecdsa", "-b", "256", "-N", "", "-m", "PKCS8"]),
    ];
    let source = SshSource::Keys(keys.to_vec());
    let forwarding = forward(&source, path, "socket", ACCESS).unwrap();
    let socket = path.join("socket");
    let listed = with_agent("ssh-add", &socket, &["-l"]).await;
    let listed = String::from_utf8(listed.stdout).unwrap();
    assert_eq!(listed.lines().count(), keys.len(), "{listed}");
    for key in &keys {
        // Only the agent can sign.
        fs::remove_file(key).unwrap();
        assert!(signs(&socket, key).await, "{}", key.display());
    }
    assert!(!with_agent("ssh-add", &socket, &["-D"]).await.status.success());
    drop(forwarding);
    tokio::task::yield_now().await;
    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    assert!(UnixStream::connect(&socket).is_err(), "nobody answers any more");
}

#[test]
fn keys_that_cannot_be_used_are_told() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let of = |path: &Path| key::parse(&fs::read(path).unwrap()).err();
    for (name, more) in [("a", &["-t", "ed25519"][..]), ("b", &["-t", "rsa", "-m", "PEM"])] {
        let path = keygen(path, name, &[more, &["-N", "secret"]].concat());
        assert_eq!(of(&path), Some(Fault::Encrypted), "{name}");
    }
    let plain = keygen(path, "c", &["-t", "ed25519", "-N", ""]);
    assert!(of(&plain).is_none());
    assert!(matches!(of(&plain.with_extension("pub")), Some(Fault::Other(_))));
    let text = fs::read_to_string(&plain).unwrap();
    for length in 0..text.find("-----END").unwrap() {
        assert!(key::parse(&text.as_bytes()[..length]).is_err(), "{length}");
    }
    let missing = SshSource::Keys(vec![path.join("none")]);
    let request = BuildRequest { ssh: [("a".into(), missing)].into(), ..BuildRequest::default() };
    assert_eq!(check(&request).unwrap_err().class(), Class::Usage);
    let locked = SshSource::Keys(vec![path.join("a")]);
    let request = BuildRequest { ssh: [("a".into(), locked)].into(), ..BuildRequest::default() };
    assert!(check(&request).unwrap_err().title().contains("passphrase"));
}

/// An agent that counts the messages of each type and answers each with success.
fn stub(path: &Path) -> std::sync::mpsc::Receiver<u8> {
    let (send, receive) = std::sync::mpsc::channel();
    let listener = UnixListener::bind(path).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (mut stream, send) = (stream.unwrap(), send.clone());
            std::thread::spawn(move || {
                let mut head = [0; 5];
                while stream.read_exact(&mut head).is_ok() {
                    let rest = u32::from_be_bytes(head[..4].try_into().unwrap()) - 1;
                    stream.read_exact(&mut vec![0; rest as usize]).unwrap();
                    send.send(head[4]).unwrap();
                    stream.write_all(&[0, 0, 0, 1, 6]).unwrap();
                }
            });
        }
    });
    receive
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_is_asked_for_keys_and_signatures_only() {
    let folder = tempfile::tempdir().unwrap();
    let deep = folder.path().join("d".repeat(120));
    fs::create_dir(&deep).unwrap();
    let asked = stub(&folder.path().join("agent"));
    let source = SshSource::Agent(folder.path().join("agent"));
    let access = SocketAccess { mode: 0o4640, uid: 7, gid: 8 };
    let Ok(_forwarding) = forward(&source, &deep, "socket", access) else {
        assert!(!rustix::process::geteuid().is_root());
        return;
    };
    let metadata = fs::metadata(deep.join("socket")).unwrap();
    let owner = (std::os::unix::fs::MetadataExt::uid(&metadata), metadata.permissions().mode());
    assert_eq!((owner.0, owner.1 & 0o7777), (7, 0o640));
    let link = folder.path().join("l");
    std::os::unix::fs::symlink(&deep, &link).unwrap();
    let mut client = UnixStream::connect(link.join("socket")).unwrap();
    let mut ask = |message: &[u8]| {
        client.write_all(&(message.len() as u32).to_be_bytes()).unwrap();
        client.write_all(message).unwrap();
        let mut answer = [0; 5];
        client.read_exact(&mut answer).unwrap();
        answer[4]
    };
    // List, sign; add, remove, remove all, lock, unlock, an extension.
    let answers: Vec<u8> =
        [11, 13, 17, 18, 19, 22, 23, 27].iter().map(|kind| ask(&[*kind, 0])).collect();
    assert_eq!(answers, [6, 6, 5, 5, 5, 5, 5, 5]);
    assert_eq!(asked.try_iter().collect::<Vec<_>>(), [11, 13]);
    client.write_all(&u32::MAX.to_be_bytes()).unwrap();
    assert_eq!(client.read(&mut [0; 5]).unwrap(), 0, "an impossible message ends it");
}
