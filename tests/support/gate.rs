//! A door that a step waits at: the test knows when the step has come, and opens when it likes.

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use super::process::wait_until;

pub struct Gate {
    port: u16,
    visitors: Arc<AtomicUsize>,
    open: Arc<AtomicBool>,
}

impl Gate {
    pub fn closed() -> Gate {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let gate = Gate { port, visitors: Arc::default(), open: Arc::default() };
        let (visitors, open) = (gate.visitors.clone(), gate.open.clone());
        // The thread waits in accept() until the test process ends: there is nothing of it to clean up.
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                visitors.fetch_add(1, Ordering::SeqCst);
                let open = open.clone();
                thread::spawn(move || hold(stream, &open));
            }
        });
        gate
    }

    /// A busybox command that ends when the gate is open.
    pub fn pass(&self) -> String {
        format!("wget -q -O /passed {}", self.url())
    }

    /// Its URL, which stands in the arguments of whoever waits.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}/", self.port)
    }

    pub fn open(&self) {
        self.open.store(true, Ordering::SeqCst);
    }

    /// Waits until `count` steps have come to the gate.
    #[track_caller]
    pub fn wait_for_visitors(&self, count: usize) {
        wait_until(60, "the step comes to the gate", || {
            self.visitors.load(Ordering::SeqCst) >= count
        });
    }
}

fn hold(mut stream: TcpStream, open: &AtomicBool) {
    let mut request = [0; 1024];
    let _ = stream.read(&mut request);
    while !open.load(Ordering::SeqCst) {
        thread::sleep(Duration::from_millis(20));
    }
    let _ = stream.write_all(b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nopen\n");
}
